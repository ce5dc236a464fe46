"""The low-bit CUDA kernels: random calls and every pair of widths at its extremes, exactly as the reference."""

from __future__ import annotations

import dataclasses
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cuda_support import CUDA_BACKENDS, device_of, needs_emulator
from lowbit_support import Draws, Result, same
from torch import Tensor

import spos_kernels as sk


def moved(value: Any, device: str) -> Any:
    if isinstance(value, sk.PackedWeight) and device != "cpu":
        tensors = {f.name: moved(getattr(value, f.name), device) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **tensors)
    return value.to(device) if isinstance(value, Tensor) else value


def on(backend: str, operation: Any, x: Tensor, weight: sk.PackedWeight, options: dict[str, Any]) -> Result:
    device = device_of(backend)
    with sk.use_backend(backend):
        found = operation(
            moved(x, device), moved(weight, device), **{key: moved(value, device) for key, value in options.items()}
        )
    return tuple(map(Tensor.cpu, found)) if isinstance(found, tuple) else found.cpu()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_random_convolutions_equal_the_reference(backend: str, seed: int) -> None:
    draws = Draws(seed)
    for call in filter(None, (draws.conv2d() for _ in range(14))):
        x, weight, options = call
        expected = sk.lowbit_conv2d_reference(x, weight, **options)
        assert same(on(backend, sk.lowbit_conv2d, x, weight, options), expected), (x.shape, weight.bits, options)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_random_products_equal_the_reference(backend: str, seed: int) -> None:
    draws = Draws(100 + seed)
    for _ in range(14):
        x, weight, options = draws.matmul()
        expected = sk.lowbit_matmul_reference(x, weight, **options)
        assert same(on(backend, sk.lowbit_matmul, x, weight, options), expected), (x.shape, weight.bits, options)


@pytest.mark.parametrize("w_bits", range(1, 9))
@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_every_pair_of_widths_is_exact_at_its_extremes(backend: str, w_bits: int) -> None:
    for x_bits in range(1, 9):
        most_x, most_w = 2**x_bits - 1, 2**w_bits - 1
        x = torch.tensor([0, most_x], dtype=torch.uint8).repeat(1, 69, 3, 2)
        codes = torch.tensor([most_w, 0, most_w], dtype=torch.uint8).repeat(9, 69, 2, 1)
        codes[1], codes[2] = 0, most_w
        for zero in (None, most_w / 2):
            weight = sk.pack_weight(codes, w_bits, zero_point=zero)
            centre = 2 ** (w_bits - 1) if zero is None else zero
            exact = F.conv2d(x.double(), codes.double() - centre, padding=1) * (2 if weight.doubled else 1)
            options = {"x_quantizer": sk.Quantizer(1.0, x_bits), "padding": 1}
            assert torch.equal(on(backend, sk.lowbit_conv2d, x, weight, options), exact.long()), (x_bits, zero)


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_the_longest_sums_are_exact_and_longer_ones_refused(backend: str) -> None:
    """65,793 products of 255 by -128 are the last that 32 bits hold."""
    options = {"x_quantizer": sk.Quantizer(1.0, 8)}
    for size in (65793, 65794):
        x = torch.full((1, size), 255, dtype=torch.uint8)
        for code, zero in ((0, None), (255, 0), (0, 127.5)):
            weight = sk.pack_weight(torch.full((3, size), code, dtype=torch.uint8), 8, zero_point=zero)
            if size > 65793:
                with pytest.raises(ValueError, match="expected at most 65,793 products a sum at 8 by 8 bits"):
                    on(backend, sk.lowbit_matmul, x, weight, options)
                continue
            exact = int(size * 255 * (code - (128 if zero is None else zero)) * (2 if weight.doubled else 1))
            found = on(backend, sk.lowbit_matmul, x, weight, options)
            assert isinstance(found, Tensor) and found.tolist() == [[exact] * 3]


@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_scales_of_float64_are_refused(backend: str) -> None:
    draws = Draws(5, torch.float64)
    x, weight = draws.codes(4, 3, 24), draws.weight(4, True, 10, 24)
    with pytest.raises(TypeError, match=r"weight.scale has dtype torch.float64: backend '.*' accepts torch.float32"):
        on(backend, sk.lowbit_matmul, x, weight, {"x_quantizer": sk.Quantizer(0.3, 4)})


@needs_emulator
def test_products_run_on_tensor_cores(emulator: ModuleType) -> None:
    draws = Draws(5)
    x, weight = draws.codes(8, 64, 256), draws.weight(4, True, 64, 256)
    emulator.configure(count=True)
    emulator.take_counters()
    on("cuda-emulated", sk.lowbit_matmul, x, weight, {"x_quantizer": sk.Quantizer(0.3, 8)})
    counters = emulator.take_counters()
    assert counters["mma_u8s8"] + counters["mma_s8"] >= 64 * 64 * 256 // (16 * 8 * 32)
