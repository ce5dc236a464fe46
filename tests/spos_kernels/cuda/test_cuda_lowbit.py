"""The low-bit CUDA kernels: random calls and every pair of widths at its extremes, exactly as the reference."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cuda_support import CUDA_BACKENDS, SEEDS, device_of, needs_emulator
from lowbit_support import Draws, Result, poisoned, same
from torch import Tensor

import spos_kernels as sk
from spos_kernels.cuda import lowbit as lowbit_cuda
from spos_kernels.cuda.lowbit import BODIES, Wanted

MULTIPLIES = {"s8": ("mma_u8s8",), "s4": ("mma_u4s4",), "b1": ("mma_b1",), "rows": ("dp4a",), "direct": ("dp4a",)}

MOST_BITS = {"s4": 4, "b1": 2}  # of weights


def moved(value: Any, device: str) -> Any:
    if isinstance(value, sk.PackedWeight) and device != "cpu":
        tensors = {f.name: moved(getattr(value, f.name), device) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **tensors)
    return value.to(device) if isinstance(value, Tensor) else value


def on(backend: str, operation: Any, x: Tensor, weight: sk.PackedWeight, options: dict[str, Any]) -> Result:
    device = device_of(backend)
    with sk.use_backend(backend), poisoned():
        found = operation(
            moved(x, device), moved(weight, device), **{key: moved(value, device) for key, value in options.items()}
        )
    return tuple(map(Tensor.cpu, found)) if isinstance(found, tuple) else found.cpu()


def want(monkeypatch: pytest.MonkeyPatch, backend: str, body: str, **others: int) -> None:
    """Run what follows by one body, where the device has its instruction."""
    if backend == "cuda":
        major, minor = torch.cuda.get_device_capability()
        if 10 * major + minor >= {"s4": 90, "b1": 100}.get(body, 1000):
            pytest.skip(f"the device has no {body} products")
    monkeypatch.setattr(lowbit_cuda, "wanted", Wanted(BODIES.index(body), **others))


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


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_random_calls_by_each_body(backend: str, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    want(monkeypatch, backend, body)
    draws, ran = Draws(200), 0
    for number in range(400):
        if ran == 20:
            break
        product = number % 2 == 0
        call = draws.matmul() if product else draws.conv2d()
        if call is None:
            continue
        x, weight, options = call
        operation = sk.lowbit_matmul if product else sk.lowbit_conv2d
        reference = sk.lowbit_matmul_reference if product else sk.lowbit_conv2d_reference
        try:
            found = on(backend, operation, x, weight, options)
        except ValueError as error:
            assert str(error) == "wanted: a body that cannot run this call on this device"
            continue
        ran += 1
        assert same(found, reference(x, weight, **options)), (x.shape, weight.shape, weight.bits, options)
    assert ran == 20


def shapes_of(body: str) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Shapes of x and of codes, and options, of a convolution that a body can run: odd, and more than one step."""
    if body == "rows":
        return (1, 619, 1, 3), (9, 619, 1, 1), {}
    if body == "direct":
        return (1, 21, 3, 2), (9, 7, 3, 3), {"padding": 1, "groups": 3}
    return (1, 69, 3, 2), (9, 69, 3, 3), {"padding": 1}


def pattern(values: list[int], shape: tuple[int, ...]) -> Tensor:
    size = math.prod(shape)
    return torch.tensor(values, dtype=torch.uint8).repeat(-(-size // len(values)))[:size].view(shape)


@pytest.mark.parametrize(("body", "w_bits"), [(b, w) for b in BODIES for w in range(1, MOST_BITS.get(b, 8) + 1)])
@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_every_pair_of_widths_is_exact_at_its_extremes(
    backend: str, body: str, w_bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    want(monkeypatch, backend, body)
    x_shape, shape, options = shapes_of(body)
    for x_bits in range(1, 5 if body == "s4" else 9):
        most_x, most_w = 2**x_bits - 1, 2**w_bits - 1
        x = (
            torch.tensor([0, most_x, most_x], dtype=torch.uint8)
            .repeat(800)[: torch.Size(x_shape).numel()]
            .view(x_shape)
        )
        codes = torch.tensor([most_w, 0, most_w, most_w, 0], dtype=torch.uint8).repeat(2000)
        codes = codes[: torch.Size(shape).numel()].view(shape).clone()
        codes[1], codes[2] = 0, most_w
        for zero in (None, most_w / 2):
            weight = sk.pack_weight(codes, w_bits, zero_point=zero)
            centre = 2 ** (w_bits - 1) if zero is None else zero
            exact = F.conv2d(x.double(), codes.double() - centre, **options) * (2 if weight.doubled else 1)
            found = on(backend, sk.lowbit_conv2d, x, weight, {"x_quantizer": sk.Quantizer(1.0, x_bits), **options})
            assert isinstance(found, Tensor) and torch.equal(found, exact.long()), (x_bits, zero)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_slices_of_channels_at_an_offset(backend: str, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of codes and of floats; groups of four inputs, whose words lie at odd addresses."""
    want(monkeypatch, backend, body)
    draws = Draws(7)
    groups = 8 if body == "direct" else 1
    options = {"x_quantizer": sk.Quantizer(0.9, 4, 5), "padding": 0 if body == "rows" else 1, "groups": groups}
    height, kernel = (1, 1) if body == "rows" else (4, 3)
    wide = draws.codes(4, 1, 43, height, 4).contiguous(memory_format=torch.channels_last)
    weight = draws.weight(2, True, 16, 32 // groups, kernel, kernel)
    for x in (wide[:, 3:35], wide.float()[:, 3:35], wide[:, 4:36]):
        assert x.stride(3) == 43
        found = on(backend, sk.lowbit_conv2d, x, weight, options)
        assert same(found, sk.lowbit_conv2d_reference(x, weight, **options))


@pytest.mark.parametrize("body", ["s8", "rows"])
@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_the_longest_sums_are_exact_and_longer_ones_refused(
    backend: str, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """65,793 products of 255 by -128 are the last that 32 bits hold; of 255 by 255, too, without a sign."""
    want(monkeypatch, backend, body)
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


def product(
    rows: int, inputs: int, outputs: int, w_bits: int, x_bits: int, dtype: torch.dtype = torch.uint8
) -> Callable[[], Result]:
    """A matrix product. What is not uint8 is packed beforehand by every body of the tensor cores."""

    def call() -> Result:
        draws = Draws(5)
        x, weight = draws.codes(x_bits, rows, inputs).to(dtype), draws.weight(w_bits, True, outputs, inputs)
        return on("cuda-emulated", sk.lowbit_matmul, x, weight, {"x_quantizer": sk.Quantizer(0.3, x_bits)})

    return call


def grouped(channels: int, groups: int, dtype: torch.dtype = torch.uint8) -> Callable[[], Result]:
    """A 3 x 3 convolution of 4 by 4 bits."""

    def call() -> Result:
        draws = Draws(6)
        x = draws.codes(4, 2, channels, 9, 9).to(dtype).contiguous(memory_format=torch.channels_last)
        weight = draws.weight(4, True, channels, channels // groups, 3, 3)
        options = {"x_quantizer": sk.Quantizer(0.3, 4), "padding": 1, "groups": groups}
        return on("cuda-emulated", sk.lowbit_conv2d, x, weight, options)

    return call


# Of each plan: its body, its launches, its instructions that multiply.
COUNTED = {
    "s8": (product(8, 256, 64, 8, 8), "s8", 1, 64 * 64 * 256 // (16 * 8 * 32)),
    "s8 of codes that do not lie as wanted": (product(8, 250, 64, 8, 8), "s8", 2, 64 * 64 * 256 // (16 * 8 * 32)),
    "s4": (product(8, 256, 64, 4, 3, torch.float32), "s4", 2, 64 * 64 * 256 // (16 * 8 * 64)),
    "b1": (product(8, 512, 64, 2, 1, torch.float32), "b1", 2, 2 * 64 * 64 * 512 // (16 * 8 * 256)),
    "rows": (product(1, 512, 32, 3, 8), "rows", 1, (32 + 32 // 4) * 512 // 4),
    "four rows": (product(3, 512, 32, 8, 8), "rows", 1, 4 * (32 + 32 // 4) * 512 // 4),
    "depthwise": (grouped(64, 64), "direct", 1, 2 * 2 * 81 * 64 * 3),
    "depthwise floats": (grouped(64, 64, torch.float32), "direct", 2, 2 * 2 * 81 * 64 * 3),
    "groups of four": (grouped(64, 16), "direct", 1, 2 * 2 * 81 * 64 * 9),
}


@needs_emulator
@pytest.mark.parametrize("name", COUNTED)
def test_the_plan_decides_which_instructions_multiply(emulator: ModuleType, name: str) -> None:
    call, body, launches, multiplies = COUNTED[name]
    emulator.configure(count=True)
    emulator.take_counters()
    call()
    counters = emulator.take_counters()
    assert counters["launches"] == launches
    kinds = {kind for kind in counters if kind.startswith("mma") and counters[kind]}
    assert kinds == {kind for kind in MULTIPLIES[body] if kind.startswith("mma")}
    assert sum(counters[kind] for kind in MULTIPLIES[body]) == multiplies


@needs_emulator
@pytest.mark.parametrize(
    ("call", "bodies"),
    [
        (product(4096, 1024, 2048, 4, 4), {80: "s4", 89: "s4", 90: "s8", 100: "s8", 120: "s8"}),
        (product(4096, 1024, 2048, 1, 2), {80: "b1", 89: "b1", 90: "b1", 100: "s8", 120: "s8"}),
        (product(4096, 1024, 2048, 2, 2, torch.float32), {80: "s4", 90: "b1", 100: "s8"}),
        (product(4096, 1024, 2048, 5, 4), {80: "s8", 90: "s8"}),
        (product(64, 256, 64, 4, 4), {80: "s8"}),  # packing x would take longer than the product
        (product(4, 1024, 256, 4, 4), {80: "rows", 120: "rows"}),
        (product(5, 1024, 256, 4, 4, torch.float32), {80: "s4", 120: "s8"}),
        (grouped(64, 64), {80: "direct", 120: "direct"}),
        (grouped(64, 16), {80: "direct", 120: "direct"}),
        (grouped(64, 2, torch.float32), {80: "s4", 120: "s8"}),
    ],
)
def test_plans_follow_the_architecture(
    emulator: ModuleType, call: Callable[[], Result], bodies: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unrun = SimpleNamespace(**vars(emulator))
    unrun.lowbit_conv2d = lambda *_, **__: None
    monkeypatch.setattr(lowbit_cuda, "module_of", lambda _: unrun)
    monkeypatch.setattr(lowbit_cuda, "_plans", {})
    for capability, body in bodies.items():
        made: list[str] = []
        monkeypatch.setattr(lowbit_cuda, "record", lambda _, words, made=made: made.append(words))
        monkeypatch.setattr(lowbit_cuda, "wanted", Wanted(capability=capability))
        call()
        assert [words.split(",")[0] for words in made] == [body], capability


@needs_emulator
def test_a_body_without_its_instruction_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for body, capability in (("s4", 90), ("b1", 100)):
        monkeypatch.setattr(lowbit_cuda, "wanted", Wanted(BODIES.index(body), capability=capability))
        with pytest.raises(ValueError, match="cannot run this call on this device"):
            product(8, 64, 8, 1, 1)()


@needs_emulator
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        (product(9, 600, 70, 4, 4), Wanted(splits=3)),
        (product(9, 1500, 70, 2, 1), Wanted(splits=3)),
        (product(1, 5000, 21, 5, 4), Wanted(splits=3)),
        (product(3, 5000, 21, 8, 8), Wanted(splits=1)),
        (product(200, 300, 130, 3, 2), Wanted(BODIES.index("s4"), tile=128)),
        (grouped(24, 24), Wanted()),
        (grouped(24, 6), Wanted()),
    ],
)
def test_schedules(
    emulator: ModuleType, call: Callable[[], Result], wanted: Wanted, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The emulator reports races as errors; splits or none, the result is that of bytes."""
    monkeypatch.setattr(lowbit_cuda, "wanted", Wanted(BODIES.index("s8")))
    expected = call()
    monkeypatch.setattr(lowbit_cuda, "wanted", wanted)
    emulator.configure(seed=seed)
    assert same(call(), expected)
