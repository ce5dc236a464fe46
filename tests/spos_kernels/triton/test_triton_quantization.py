"""Fake quantization and low-bit products on the Triton kernels: to the bit of the reference where that is exact."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowbit_support import Draws, Result, on, same

import spos_kernels as sk


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("method", ["pact", "lsq", "dorefa"])
@pytest.mark.parametrize(
    ("bits", "dtype"),
    [(1, torch.float32), (2, torch.float16), (3, torch.bfloat16), (4, torch.float32), (8, torch.float32)],
    ids=str,
)
def test_fake_quantize(bits: int, method: str, axis: int | None, dtype: torch.dtype, device: str) -> None:
    shape = (6, 9, 5, 3)
    x = torch.randn(shape, device=device).to(dtype).to(memory_format=torch.channels_last)
    x[0, 0, 0, :3] = torch.tensor([0.5, -0.5, 1e4])
    channels = 1 if axis is None else shape[axis]
    learned = None if method == "dorefa" else torch.rand(channels, device=device) * 0.5 + 0.1
    dy = torch.randn(shape, device=device).to(dtype)
    signed = method == "lsq"

    def run(backend: str, kind: torch.dtype) -> dict[str, torch.Tensor]:
        own = x.to(kind).detach().requires_grad_()
        scale = None if learned is None else learned.to(torch.float32 if kind is not torch.float64 else kind)
        scale = None if scale is None else scale.clone().requires_grad_()
        options: dict[str, Any] = {"axis": axis, "signed": signed} if signed else {"axis": axis}
        with sk.use_backend(backend):
            y = sk.fake_quantize(own, bits, method, scale, **options)
            codes = sk.quantize(own.detach(), bits, method, None if scale is None else scale.detach(), **options)
        leaves = [own] if scale is None else [own, scale]
        return {
            "y": y.detach(),
            "codes": codes,
            **dict(zip(("dx", "dscale"), torch.autograd.grad(y, leaves, dy.to(kind)), strict=False)),
        }

    found, right = run("triton", dtype), run("reference", torch.float32)
    if method == "dorefa":  # tanh is not the same to the last bit: another code where it decides
        step = 2 / (2**bits - 1)
        assert float((found["y"].float() - right["y"]).abs().max()) <= step + 1e-2
        assert float((found["codes"] != right["codes"]).float().mean()) < 0.01
        torch.testing.assert_close(found["dx"].float(), right["dx"], rtol=1e-2, atol=1e-2)
        return
    assert torch.equal(found["y"], right["y"].to(dtype)) and torch.equal(found["codes"], right["codes"])
    assert torch.equal(found["dx"], right["dx"].to(dtype))
    torch.testing.assert_close(found["dscale"], right["dscale"], rtol=1e-3, atol=1e-3)


def test_nan_and_the_largest_numbers(device: str) -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 0.0], device=device)
    for method, scale in (("pact", torch.ones(1)), ("lsq", torch.ones(1))):
        results = []
        for backend in ("triton", "reference"):
            with sk.use_backend(backend):
                own = None if scale is None else scale.to(device)
                results.append((sk.fake_quantize(x, 4, method, own), sk.quantize(x, 4, method, own)))
        (y, codes), (right, right_codes) = results
        assert torch.equal(y.nan_to_num(7.0), right.nan_to_num(7.0)) and torch.equal(codes, right_codes)


def run_both(
    call: Any, reference: Any, x: torch.Tensor, weight: sk.PackedWeight, device: str, how: dict[str, Any]
) -> None:
    moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in how.items()}
    with sk.use_backend("triton"):
        found = call(x.to(device), on(device, weight), **moved)
    results: Result = found.cpu() if isinstance(found, torch.Tensor) else (found[0].cpu(), found[1].cpu())
    assert same(results, reference(x, weight, **how))


@pytest.mark.parametrize("seed", range(24))
def test_products_are_exact(seed: int, device: str) -> None:
    draws = Draws(seed)
    w_bits, x_bits = 1 + seed % 8, draws.any.randrange(1, 9)
    groups = draws.any.choice([1, 2, 4]) if seed % 2 else 1
    scaled = draws.any.random() < 0.7
    weight = draws.weight(
        w_bits,
        scaled,
        draws.any.randrange(1, 70),
        8 * groups * draws.any.randrange(1, 6),
        groups=groups if scaled else 1,
    )
    rows = draws.any.randrange(1, 9)
    x = draws.codes(x_bits, rows, weight.shape[1])
    how: dict[str, Any] = {"x_quantizer": sk.Quantizer(0.37, x_bits, draws.any.randrange(2**x_bits))}
    if scaled and draws.any.random() < 0.7:
        columns = weight.shape[0]
        how |= {"bias": torch.randn(columns), "relu": draws.any.random() < 0.5, "residual": torch.randn(rows, columns)}
        if draws.any.random() < 0.6:
            how |= {
                "out_quantizer": sk.Quantizer(0.21, draws.any.randrange(1, 9), 1),
                "keep_float": draws.any.random() < 0.5,
            }
    run_both(sk.lowbit_matmul, sk.lowbit_matmul_reference, x, weight, device, how)


@pytest.mark.parametrize("seed", range(16))
def test_convolutions_are_exact(seed: int, device: str) -> None:
    draws = Draws(100 + seed)
    w_bits, x_bits = 1 + seed % 8, draws.any.randrange(1, 9)
    groups, inputs, outputs = draws.any.choice([(1, 5, 7), (3, 2, 4), (6, 1, 1), (1, 17, 34), (2, 1, 3)])
    kernel = draws.any.choice([(1, 1), (3, 3), (2, 3)])
    weight = draws.weight(w_bits, True, groups * outputs, inputs, *kernel)
    how: dict[str, Any] = {
        "x_quantizer": sk.Quantizer(0.37, x_bits, draws.any.randrange(2**x_bits)),
        "stride": draws.any.choice([1, 2, (2, 1)]),
        "padding": draws.any.choice([0, 1, (1, 2)]),
        "dilation": draws.any.choice([1, 2]),
        "groups": groups,
    }
    x = draws.codes(x_bits, 2, groups * inputs, 7, 8)
    if seed % 4 == 3:
        x = torch.randn(2, groups * inputs, 7, 8)
        x[0, 0, 0, :2] = torch.tensor([float("nan"), 1e30])
    run_both(sk.lowbit_conv2d, sk.lowbit_conv2d_reference, x, weight, device, how)
