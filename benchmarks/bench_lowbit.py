"""Low-bit convolutions of ResNet-18 and linear layers, against onnxruntime's integers and torch.

A convolution takes codes and gives codes, batch normalisation, ReLU and requantization in float64 included; QLinearConv
requantizes, torch's convolutions do none of it. A linear layer takes floats, quantizes them to 8 bits on the way, as
MatMulNBits does, and gives floats; MatMulNBits has a scale each 32 inputs, ours one a row. Without onnxruntime (`make
bench` installs it) its columns are missing.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from ceilings import Bound, byte_rate, fma_rate
from interleave import Interleaved
from pytest_benchmark.fixture import BenchmarkFixture
from report import Listing, Report, Row
from torch import Tensor

import spos_kernels as sk

SHAPES = [(64, 56), (128, 28), (256, 14), (512, 7)]
PAIRS = [(1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (4, 8)]
ALL_PAIRS = [(w, a) for w in range(1, 5) for a in range(1, 9)] + [(8, 8)]
BATCH = 8
HAS_ONNXRUNTIME = find_spec("onnxruntime") is not None
LINEAR = 2048


def codes(bits: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(bits)
    return torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.int32).to(torch.uint8)


def convolution(channels: int, size: int, w_bits: int, a_bits: int) -> Callable[[], object]:
    x = codes(a_bits, BATCH, channels, size, size).contiguous(memory_format=torch.channels_last)
    levels = 2**w_bits - 1
    weight = sk.pack_weight(
        codes(w_bits, channels, channels, 3, 3),
        w_bits,
        scale=torch.rand(channels).double() + 0.1,
        zero_point=levels / 2,
    )  # float64, as in a deployed network
    bias = torch.randn(channels).double()
    x_quantizer, out_quantizer = sk.Quantizer(0.1, a_bits), sk.Quantizer(3.0, a_bits)
    return lambda: sk.lowbit_conv2d(
        x, weight, x_quantizer=x_quantizer, padding=1, bias=bias, relu=True, out_quantizer=out_quantizer
    )


def peers(channels: int, size: int) -> dict[str, Callable[[], object]]:
    found: dict[str, Callable[[], object]] = {}
    if HAS_ONNXRUNTIME:
        from onnx_peers import qlinear_conv

        weight = codes(8, channels, channels, 3, 3).to(torch.int8).numpy()
        found["QLinearConv"] = qlinear_conv(codes(8, BATCH, channels, size, size).numpy(), weight)
    for name, dtype in (("fp32 NHWC", torch.float32), ("bf16 NHWC", torch.bfloat16)):
        x = torch.randn(BATCH, channels, size, size).to(dtype).contiguous(memory_format=torch.channels_last)
        kernel = torch.randn(channels, channels, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
        found[name] = lambda x=x, kernel=kernel: F.conv2d(x, kernel, padding=1)  # type: ignore[misc]
    return found


def dot_bound(operations: float) -> Bound:
    """Return the bound of dot products of bytes."""
    return Bound(operations / byte_rate(torch.get_num_threads()), "dots")


def measure(
    benchmark: BenchmarkFixture,
    report: Report,
    suite: str,
    ours: dict[str, Callable[[], object]],
    baselines: dict[str, Callable[[], object]],
    operations: float,
    bound: Bound | None = None,
) -> None:
    """Time all of ours and all baselines in the same rounds; a row for each of ours."""
    with torch.no_grad():
        interleaved = Interleaved(ours | baselines, pause=0.05, warm_up=0.03)
        rounds = interleaved.rounds_in(seconds=12, least=10, most=40)
        benchmark.pedantic(interleaved.round, rounds=rounds, warmup_rounds=0)
    spreads = interleaved.spreads()
    rows = [
        Row(
            suite=suite,
            shape=name,
            ours=spreads[name],
            baselines={other: spreads[other] for other in baselines},
            bound=bound or dot_bound(operations),
            operations=operations,
            rounds=rounds,
        )
        for name in ours
    ]
    benchmark.extra_info.update({row.shape: row.ratio for row in rows})
    report.rows.extend(rows)


@pytest.fixture(scope="module", autouse=True)
def _print_plans(report: Report) -> object:
    yield
    plans = sk.lowbit_plans()
    if plans:
        report.listings.append(Listing("methods chosen by measurement", ("call", "method"), [*plans.items()]))


@pytest.mark.parametrize(("channels", "size"), SHAPES)
@pytest.mark.parametrize(
    "pairs", [pytest.param(PAIRS, id="main"), pytest.param(ALL_PAIRS, id="all", marks=pytest.mark.full)]
)
def test_convolution(
    benchmark: BenchmarkFixture, report: Report, pairs: list[tuple[int, int]], channels: int, size: int
) -> None:
    ours = {f"{channels}x{size}² w{w}a{a}": convolution(channels, size, w, a) for w, a in pairs}
    operations = 2 * BATCH * size**2 * channels**2 * 9
    whole = "all pairs of bits, " if pairs is ALL_PAIRS else ""
    measure(
        benchmark, report, f"low bit, {whole}3×3 convolution, batch {BATCH}", ours, peers(channels, size), operations
    )


@pytest.mark.parametrize(("outputs", "size", "kernel", "stride"), [(64, 224, 7, 2), (16, 32, 3, 1)])
def test_stem(benchmark: BenchmarkFixture, report: Report, outputs: int, size: int, kernel: int, stride: int) -> None:
    """The first convolution in float64, against torch's in float32, with what follows it."""
    pooled = size > 64
    x = torch.randn(BATCH, 3, size, size).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(outputs, 3, kernel, kernel).contiguous(memory_format=torch.channels_last)
    scale, bias = torch.rand(outputs).double() + 0.1, torch.randn(outputs).double()

    def ours() -> Tensor:
        return sk.stem_conv2d(x, weight, scale, bias, stride=stride, padding=kernel // 2, relu=True, max_pool=pooled)

    def fp32() -> Tensor:
        y = F.conv2d(x, weight, bias.float(), stride, kernel // 2).relu_()
        return F.max_pool2d(y, 3, 2, 1) if pooled else y

    map_size = size // stride
    operations = 2 * BATCH * map_size**2 * outputs * 3 * kernel**2
    bound = Bound(operations / (fma_rate(torch.get_num_threads()) / 2), "fma")
    named = {f"{size}² {kernel}×{kernel}": ours}
    measure(benchmark, report, "low bit, stem in float64 and what follows it", named, {"fp32": fp32}, operations, bound)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("rows", [1, 256])
def test_linear(benchmark: BenchmarkFixture, report: Report, rows: int, bits: int) -> None:
    x = torch.randn(rows, LINEAR)
    weight = sk.pack_weight(codes(bits, LINEAR, LINEAR), bits, scale=torch.rand(LINEAR) + 0.1)
    quantizer = sk.Quantizer(0.05, 8, 128)
    ours: dict[str, Callable[[], object]] = {
        f"{rows} rows, w{bits}a8": lambda: sk.lowbit_matmul(x, weight, x_quantizer=quantizer)
    }
    baselines: dict[str, Callable[[], object]] = {}
    if HAS_ONNXRUNTIME:
        from onnx_peers import matmul_nbits

        baselines["MatMulNBits"] = matmul_nbits(x.numpy(), LINEAR, bits)
    floats = torch.randn(LINEAR, LINEAR)
    baselines["fp32"] = lambda: F.linear(x, floats)
    if rows > 16:  # the least that it takes
        left, right = codes(7, rows, LINEAR).to(torch.int8), codes(7, LINEAR, LINEAR).to(torch.int8)
        baselines["_int_mm"] = lambda: torch._int_mm(left, right)
    measure(benchmark, report, f"low bit, linear {LINEAR}x{LINEAR}, {rows} rows", ours, baselines, 2 * rows * LINEAR**2)
