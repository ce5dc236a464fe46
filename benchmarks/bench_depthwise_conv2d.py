"""Depthwise convolution over the shapes of the SPOS ShuffleNet space, against the three ways that torch has for it.

Baselines: torch's convolution eager on channels_last, eager on contiguous NCHW, and torch.compile of the channels_last
one. Each candidate gets its input in its own layout. Operations count the taps that lie inside the map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from ceilings import Bound, bound
from interleave import Interleaved
from pytest_benchmark.fixture import BenchmarkFixture
from report import Report, Row
from torch import Tensor

import spos_kernels as sk


@dataclass(frozen=True)
class Shape:
    batch: int
    channels: int
    size: int
    kernel: int
    stride: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.channels}x{self.size}x{self.size} k{self.kernel} s{self.stride}"

    @property
    def out_size(self) -> int:
        return (self.size - 1) // self.stride + 1

    @property
    def operations(self) -> float:
        """Floating-point operations of one pass (forward, dgrad and wgrad have the same)."""
        pad = self.kernel // 2
        starts = [i * self.stride - pad for i in range(self.out_size)]
        taps = sum(min(start + self.kernel, self.size) - max(start, 0) for start in starts)
        return 2.0 * self.batch * self.channels * taps**2

    @property
    def bytes(self) -> int:
        """Bytes that one pass has to move: an input-like and an output-like map (the weight is small)."""
        return 4 * self.batch * self.channels * (self.size**2 + self.out_size**2)


# (channels, map) of the depthwise layers, per stride: at 224 pixels with 16 images, at 32 pixels with 64.
MAPS = {
    (16, 1): [(32, 56), (80, 28), (160, 14), (320, 7)],
    (16, 2): [(16, 56), (64, 56), (80, 56), (160, 28), (320, 14)],
    (64, 1): [(32, 16), (80, 8), (160, 4), (320, 2)],
    (64, 2): [(16, 32), (32, 32), (64, 16), (80, 16), (160, 8), (320, 4)],
}
SHAPES = [
    Shape(batch, channels, size, kernel, stride)
    for (batch, stride), maps in MAPS.items()
    for channels, size in maps
    for kernel in (3, 5, 7)
]
SUBSET = {
    *(Shape(16, channels, size, kernel, 1) for channels, size in ((32, 56), (320, 7)) for kernel in (3, 5, 7)),
    *(Shape(64, channels, size, kernel, 1) for channels, size in ((32, 16), (320, 2)) for kernel in (3, 7)),
    Shape(16, 64, 56, 3, 2),
    Shape(64, 160, 8, 5, 2),
}


def candidates(shape: Shape, backward: bool) -> dict[str, Callable[[], object]]:
    pad = shape.kernel // 2
    nchw = torch.randn(shape.batch, shape.channels, shape.size, shape.size)
    weight = torch.randn(shape.channels, 1, shape.kernel, shape.kernel)

    def torch_convolution(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, stride=shape.stride, padding=pad, groups=shape.channels)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return sk.depthwise_conv2d(x, weight, stride=shape.stride)

    def measured(
        function: Callable[[Tensor, Tensor], Tensor], memory_format: torch.memory_format
    ) -> Callable[[], object]:
        x = nchw.to(memory_format=memory_format).requires_grad_(backward)
        w = weight.clone().requires_grad_(backward)
        if not backward:
            return lambda: function(x, w)
        dy = torch.randn_like(function(x, w))
        return lambda: torch.autograd.grad(function(x, w), (x, w), dy)

    torch.compiler.reset()
    compiled = torch.compile(torch_convolution, dynamic=False)
    return {
        "ours": measured(ours, torch.channels_last),
        "eager NHWC": measured(torch_convolution, torch.channels_last),
        "eager NCHW": measured(torch_convolution, torch.contiguous_format),
        "compiled NHWC": measured(compiled, torch.channels_last),
    }


@pytest.mark.parametrize("backward", [True, False], ids=["forward+backward", "forward"])
@pytest.mark.parametrize(
    "shape", [pytest.param(s, marks=[] if s in SUBSET else pytest.mark.full, id=str(s)) for s in SHAPES]
)
def test_depthwise_conv2d(benchmark: BenchmarkFixture, report: Report, shape: Shape, backward: bool) -> None:
    interleaved = Interleaved(candidates(shape, backward))
    rounds = interleaved.rounds_in(seconds=1.5)
    benchmark.pedantic(interleaved.round, rounds=rounds, warmup_rounds=0)
    spreads = interleaved.spreads()
    passes = 3 if backward else 1
    one = bound(shape.operations, shape.bytes, torch.get_num_threads())
    row = Row(
        suite="depthwise_conv2d " + ("forward and backward" if backward else "forward"),
        shape=str(shape),
        ours=spreads.pop("ours"),
        baselines=spreads,
        bound=Bound(one.seconds * passes, one.limit),
        operations=shape.operations * passes,
        rounds=rounds,
    )
    benchmark.extra_info.update(ratio=row.ratio, baseline=row.best)
    report.rows.append(row)
