"""Sliced convolutions at a quarter, a half and three quarters of the widths of the SPOS ShuffleNet and of ResNet-50.

Forward and backward of a training step: ours on the whole weight, with a gradient sink, against what torch offers,
without momentum or update on either side. Baselines: torch's convolution of a weight that was sliced once beforehand
(what no search can do, on channels_last and on NCHW), and of a slice made contiguous in every step, through which
autograd reaches the whole weight. Operations count the taps that lie inside the map.
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
    kind: str
    batch: int
    full_in: int
    full_out: int
    size: int
    kernel: int
    width: float

    def __str__(self) -> str:
        channels = f"{self.channels_in}→{self.channels_out}" if self.kind != "depthwise" else f"{self.channels_in}"
        return f"{self.batch}x{channels}x{self.size}x{self.size} k{self.kernel} of {self.full_in}→{self.full_out}"

    @property
    def channels_in(self) -> int:
        return int(self.full_in * self.width)

    @property
    def channels_out(self) -> int:
        return int(self.full_out * self.width)

    @property
    def groups(self) -> int:
        return self.channels_in if self.kind == "depthwise" else 1

    @property
    def operations(self) -> float:
        """Floating-point operations of one pass (forward, dgrad and wgrad have the same)."""
        pad = self.kernel // 2
        starts = [i - pad for i in range(self.size)]
        taps = sum(min(start + self.kernel, self.size) - max(start, 0) for start in starts)
        return 2.0 * self.batch * self.channels_in // self.groups * self.channels_out * taps**2

    @property
    def bytes(self) -> int:
        """Bytes that one pass has to move: both maps and the slice."""
        maps = self.batch * (self.channels_in + self.channels_out) * self.size**2
        return 4 * (maps + self.channels_in // self.groups * self.channels_out * self.kernel**2)


# (channels in, channels out, map)
POINTWISE = {
    "ShuffleNet pointwise": [(64, 64, 56), (160, 160, 28), (320, 320, 14), (640, 640, 7)],
    "ResNet pointwise": [
        (64, 64, 56),
        (64, 256, 56),
        (256, 64, 56),
        (256, 128, 56),
        (128, 512, 28),
        (512, 128, 28),
        (256, 1024, 14),
        (1024, 256, 14),
        (512, 2048, 7),
        (2048, 512, 7),
    ],
}
SHAPES = [
    *(
        Shape(kind, batch, *channels_and_size, 1, width)
        for batch in (2, 16)
        for kind, shapes in POINTWISE.items()
        for channels_and_size in shapes
        for width in (0.25, 0.5, 0.75)
    ),
    *(
        Shape("3x3", batch, channels, channels, size, 3, width)
        for batch in (2, 16)
        for channels, size in ((64, 56), (128, 28), (256, 14), (512, 7))
        for width in (0.25, 0.5, 0.75)
    ),
    *(
        Shape("depthwise", batch, channels, channels, size, kernel, width)
        for batch in (2, 16)
        for channels, size in ((64, 56), (160, 28), (320, 14), (640, 7))
        for kernel in (3, 5, 7)
        for width in (0.25, 0.5, 0.75)
    ),
]


def is_main(shape: Shape) -> bool:
    return shape.width == 0.5 and shape.kernel != 5 and (shape.batch == 2) == (shape.size in (7, 28))


def candidates(shape: Shape) -> dict[str, Callable[[], object]]:
    pad = shape.kernel // 2
    columns = 1 if shape.kind == "depthwise" else shape.full_in
    whole = torch.randn(shape.full_out, columns, shape.kernel, shape.kernel, requires_grad=True)
    part = whole[: shape.channels_out, : shape.channels_in]
    nchw = torch.randn(shape.batch, shape.channels_in, shape.size, shape.size)
    options = {"padding": pad, "groups": shape.groups}
    sink = sk.GradientSink([whole])

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        sink.zero_grad()
        with sink:
            return sk.sliced_conv2d(x, weight, out_channels=shape.channels_out, **options)

    def sliced_before(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight, **options)

    def sliced_now(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv2d(x, weight[: shape.channels_out, : shape.channels_in].contiguous(), **options)

    def measured(
        function: Callable[[Tensor, Tensor], Tensor], weight: Tensor, memory_format: torch.memory_format
    ) -> Callable[[], object]:
        x = nchw.to(memory_format=memory_format).requires_grad_()
        weight = weight.detach().clone().requires_grad_() if function is not ours else weight
        dy = torch.randn_like(function(x, weight))

        def step() -> None:
            x.grad = weight.grad = None
            function(x, weight).backward(dy)

        return step

    return {
        "ours": measured(ours, whole, torch.channels_last),
        "before NHWC": measured(sliced_before, part, torch.channels_last),
        "before NCHW": measured(sliced_before, part, torch.contiguous_format),
        "slice+copy": measured(sliced_now, whole, torch.channels_last),
    }


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(s, marks=[] if is_main(s) else pytest.mark.full, id=f"{s.kind} {s}".replace(" ", "_"))
        for s in SHAPES
    ],
)
def test_sliced_conv2d(benchmark: BenchmarkFixture, report: Report, shape: Shape) -> None:
    interleaved = Interleaved(candidates(shape))
    rounds = interleaved.rounds_in(seconds=1.0)
    benchmark.pedantic(interleaved.round, rounds=rounds, warmup_rounds=0)
    spreads = interleaved.spreads()
    one = bound(shape.operations, shape.bytes, torch.get_num_threads())
    row = Row(
        suite=f"sliced_conv2d {shape.kind}, forward and backward",
        shape=str(shape),
        ours=spreads.pop("ours"),
        baselines=spreads,
        bound=Bound(3 * one.seconds, one.limit),
        operations=3 * shape.operations,
        rounds=rounds,
    )
    benchmark.extra_info.update(ratio=row.ratio, baseline=row.best)
    report.rows.append(row)
