"""Fake quantization at the activations and weights of ResNet-18, against torch's own operators and torch.compile.

Baselines: the same formulas by torch.compile, forward and backward each written out (which spares it autograd) and, for
backward, as autograd derives it from the reference; the formulas without compiling; for "lsq" torch's learnable fake
quantization. Beside them torch copies as many bytes as the pass has to move, in the
same rounds: one read and one write forward, two reads and one write backward. That is the bound of each row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from ceilings import Bound
from interleave import Interleaved
from pytest_benchmark.fixture import BenchmarkFixture
from report import Report, Row
from torch import Tensor

import spos_kernels as sk

BITS, LEVELS = 4, 15
OPERATIONS = 5  # an element: a division, two comparisons, a rounding, a multiplication


@dataclass(frozen=True)
class Shape:
    method: str
    shape: tuple[int, int, int, int]
    axis: int | None = None

    def __str__(self) -> str:
        where = "" if self.axis is None else " per channel"
        return f"{self.method}{where} " + "x".join(map(str, self.shape))

    @property
    def elements(self) -> int:
        return int(torch.Size(self.shape).numel())

    @property
    def others(self) -> list[int]:
        return [d for d in range(4) if d != self.axis]


ACTIVATIONS = [(64, 56), (128, 28), (256, 14), (512, 7)]
SHAPES = [
    Shape(method, (batch, channels, size, size), axis)
    for batch in (8, 64)
    for channels, size in ACTIVATIONS
    for method, axis in (("lsq", None), ("lsq", 1), ("pact", None))
] + [Shape("dorefa", (out, out, 3, 3), axis) for out in (64, 128, 256, 512) for axis in (None, 0)]
SUBSET = {
    Shape("lsq", (8, 64, 56, 56)),
    Shape("lsq", (8, 64, 56, 56), 1),
    Shape("lsq", (8, 512, 7, 7), 1),
    Shape("lsq", (64, 64, 56, 56)),
    Shape("pact", (8, 128, 28, 28)),
    Shape("dorefa", (512, 512, 3, 3), 0),
}


def forward(shape: Shape, x: Tensor, scale: Tensor) -> Tensor:
    if shape.method == "dorefa":
        tanh = x.tanh()
        ratio = tanh / (2 * tanh.abs().amax(shape.others, keepdim=True)) + 0.5
        return (2 * (LEVELS * ratio).round() - LEVELS) / LEVELS
    step = scale / LEVELS if shape.method == "pact" else scale
    return (x / step).round().clamp(0, LEVELS) * step


def backward(shape: Shape, dy: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor | None]:
    if shape.method == "dorefa":
        tanh = x.tanh()
        return dy * ((1 - tanh * tanh) / tanh.abs().amax(shape.others, keepdim=True)), None
    if shape.method == "pact":
        return torch.where((x > 0) & (x < scale), dy, 0), torch.where(x >= scale, dy, 0).sum(shape.others, True)
    v = x / scale
    coefficient = torch.where(v <= 0, 0, torch.where(v >= LEVELS, LEVELS, v.round() - v))
    factor = (shape.elements // scale.numel() * LEVELS) ** -0.5
    return torch.where((v >= 0) & (v <= LEVELS), dy, 0), (dy * coefficient).sum(shape.others, True) * factor


def torch_lsq(shape: Shape, x: Tensor, scale: Tensor) -> Tensor:
    zero_point = torch.zeros_like(scale)
    if shape.axis is None:
        return torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero_point, 0, LEVELS, 1.0)
    return torch._fake_quantize_learnable_per_channel_affine(x, scale, zero_point, shape.axis, 0, LEVELS, 1.0)


def candidates(shape: Shape, name: str) -> dict[str, Callable[[], object]]:
    memory_format = torch.contiguous_format if shape.method == "dorefa" else torch.channels_last
    x = torch.randn(shape.shape).to(memory_format=memory_format)
    if shape.method == "dorefa":
        x *= 0.05
    learned = torch.full(
        (1 if shape.axis is None else shape.shape[shape.axis],), 2.0 if shape.method == "pact" else 0.13
    )
    along = learned.view([-1 if d == shape.axis else 1 for d in range(4)])
    dy = torch.randn_like(x)
    arguments: tuple[Any, ...] = (BITS, shape.method, *((learned,) if shape.method != "dorefa" else ()))
    streams = 3 if name == "backward" else 2
    source = torch.randn(shape.elements * streams // 2)
    target = torch.empty_like(source)
    found: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}

    torch.compiler.reset()
    if name == "forward":
        compiled = torch.compile(lambda x, scale: forward(shape, x, scale), dynamic=False)
        found["ours"] = lambda: sk.fake_quantize(x, *arguments, axis=shape.axis)
        found["compiled"] = lambda: compiled(x, along)
        found["eager"] = lambda: forward(shape, x, along)
        if shape.method == "lsq":
            found["torch's own"] = lambda: torch_lsq(shape, x, learned)
        return found
    x.requires_grad_()
    inputs = [x, learned.requires_grad_()] if shape.method != "dorefa" else [x]
    y = sk.fake_quantize(x, *arguments, axis=shape.axis)
    compiled_backward = torch.compile(lambda dy, x, scale: backward(shape, dy, x, scale), dynamic=False)
    plain, plain_scale = x.detach(), along.detach()
    found["ours"] = lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)
    found["compiled"] = lambda: compiled_backward(dy, plain, plain_scale)
    with torch._functorch.config.patch(donated_buffer=False):  # for retain_graph
        derived = torch.compile(sk.fake_quantize_reference, dynamic=False)(x, *arguments, axis=shape.axis)
        torch.autograd.grad(derived, inputs, dy, retain_graph=True)
    found["compiled autograd"] = lambda: torch.autograd.grad(derived, inputs, dy, retain_graph=True)
    found["eager"] = lambda: backward(shape, dy, plain, plain_scale)
    if shape.method == "lsq":
        theirs = torch_lsq(shape, x, learned)
        found["torch's own"] = lambda: torch.autograd.grad(theirs, inputs, dy, retain_graph=True)
    return found


@pytest.mark.parametrize("name", ["forward", "backward"])
@pytest.mark.parametrize(
    "shape", [pytest.param(s, marks=[] if s in SUBSET else pytest.mark.full, id=str(s)) for s in SHAPES]
)
def test_fake_quantize(benchmark: BenchmarkFixture, report: Report, shape: Shape, name: str) -> None:
    interleaved = Interleaved(candidates(shape, name), warm_up=0.01)
    rounds = interleaved.rounds_in(seconds=2.5)
    benchmark.pedantic(interleaved.round, rounds=rounds, warmup_rounds=0)
    spreads = interleaved.spreads()
    row = Row(
        suite=f"fake_quantize {name}, {shape.method}",
        shape=str(shape),
        ours=spreads.pop("ours"),
        bound=Bound(spreads.pop("copy").median, "copy"),
        baselines=spreads,
        operations=float(OPERATIONS * shape.elements),
        rounds=rounds,
    )
    benchmark.extra_info.update(ratio=row.ratio, baseline=row.best)
    report.rows.append(row)
