"""Choice blocks of the SPOS ShuffleNet net, one by one, and what each keeps for its backward pass.

Baselines: the same block of torch's layers, eager in NCHW (with the released channel shuffle) and in NHWC, our
reference backend, and in the full run torch.compile of the NHWC one. Each gets its input in its own layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from ceilings import bound
from interleave import Interleaved
from plain_shufflenet import memory_format, plain
from pytest_benchmark.fixture import BenchmarkFixture
from report import Listing, Report, Row
from torch import Tensor, nn

import spos_kernels as sk
from spos.spaces.shufflenet import CHOICES, ShuffleBlock


@dataclass(frozen=True)
class Shape:
    """A block by its option, batch, channels, stride and the size of its input map."""

    choice: str
    batch: int
    inputs: int
    outputs: int
    size: int
    stride: int

    def __str__(self) -> str:
        return f"{self.choice} {self.batch}x{self.inputs}x{self.size}² → {self.outputs} s{self.stride}"

    @property
    def out_size(self) -> int:
        return self.size // self.stride

    def block(self) -> ShuffleBlock:
        block = ShuffleBlock(self.choice, self.inputs, self.outputs, self.stride)
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
        return block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def multiply_adds(self) -> float:
        """Of a forward pass, with the padding's."""
        counts = []
        block = plain(self.block(), nhwc=False)
        for layer in block.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(lambda m, _, y: counts.append(y.numel() * m.weight[0].numel()))
        with torch.no_grad():
            block(torch.zeros(2, self.inputs, self.size, self.size))
        return sum(counts) * self.batch / 2

    def map_bytes(self, training: bool) -> int:
        """Bytes that any implementation moves: x and y; training reads x again, and dy, and writes dx."""
        x, y = self.inputs * self.size**2, self.outputs * self.out_size**2
        return 4 * self.batch * ((3 * x + 2 * y) if training else (x + y))


# The two kinds of blocks of each stage: of 64 images of 32 pixels, whose stem keeps them, and of 8 images of 224.
WIDTHS = (16, 64, 160, 320, 640)
SHAPES = [
    Shape(choice, batch, inputs, outputs, size, stride)
    for batch, first in ((64, 32), (8, 112))
    for stage, outputs in enumerate(WIDTHS[1:])
    for inputs, size, stride in ((WIDTHS[stage], first >> stage, 2), (outputs, first >> stage + 1, 1))
    for choice in CHOICES
]
SUBSET = {
    shape
    for shape in SHAPES
    if (shape.choice == "choice_3" and shape.outputs in (64, 640))
    or (shape.stride == 1 and (shape.batch, shape.outputs) in ((64, 160), (8, 320)))
}


def parameters(compiled: bool) -> list[object]:
    """Every shape; with the compiled baseline the subset only, since each takes half a minute to compile."""
    chosen = [shape for shape in SHAPES if shape in SUBSET or not compiled]
    full = [compiled or shape not in SUBSET for shape in chosen]
    return [
        pytest.param(shape, compiled, marks=[pytest.mark.full] * is_full, id=f"{shape}{' compiled' * compiled}")
        for shape, is_full in zip(chosen, full, strict=True)
    ]


def candidates(shape: Shape, training: bool, compiled: bool) -> dict[str, Callable[[], object]]:
    block = shape.block()
    nchw = torch.randn(shape.batch, shape.inputs, shape.size, shape.size)

    def measured(block: nn.Module, nhwc: bool, backend: str = "auto", compiled: bool = False) -> Callable[[], object]:
        x = nchw.to(memory_format=memory_format(nhwc)).requires_grad_(training)
        block.train(training)
        function = torch.compile(block, dynamic=False) if compiled else block
        if not training:

            def evaluate() -> Tensor:
                with torch.no_grad(), sk.use_backend(backend):
                    return function(x)

            return evaluate
        leaves = [x, *block.parameters()]
        dy = torch.randn_like(function(x).detach())

        def train() -> tuple[Tensor, ...]:
            with sk.use_backend(backend):
                y = function(x)
            return torch.autograd.grad(y, leaves, dy)

        return train

    torch.compiler.reset()
    found = {
        "ours": measured(block, True, "cpu"),
        "eager NHWC": measured(plain(block, nhwc=True), True),
        "eager NCHW": measured(plain(block, nhwc=False), False),
        "reference": measured(block, True, "reference"),
    }
    return found | ({"compiled NHWC": measured(plain(block, nhwc=True), True, compiled=True)} if compiled else {})


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("shape", "compiled"), parameters(False) + parameters(True))
def test_choice_block(
    benchmark: BenchmarkFixture, report: Report, shape: Shape, compiled: bool, training: bool
) -> None:
    interleaved = Interleaved(candidates(shape, training, compiled))
    rounds = interleaved.rounds_in(seconds=1.5)
    benchmark.pedantic(interleaved.round, rounds=rounds, warmup_rounds=0)
    spreads = interleaved.spreads()
    operations = 2 * shape.multiply_adds() * (3 if training else 1)
    row = Row(
        suite=("choice block, forward and backward" if training else "choice block, evaluation forward")
        + ", with torch.compile" * compiled,
        shape=str(shape),
        ours=spreads.pop("ours"),
        baselines=spreads,
        bound=bound(operations, shape.map_bytes(training), torch.get_num_threads()),
        operations=operations,
        rounds=rounds,
    )
    benchmark.extra_info.update(ratio=row.ratio, baseline=row.best)
    report.rows.append(row)


def bytes_kept(function: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes of distinct memory that stay allocated until backward, with the result, without x and the weights."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        saved.append(function(x))
    owned = {x.untyped_storage().data_ptr()}
    if isinstance(function, nn.Module):
        owned |= {t.untyped_storage().data_ptr() for t in (*function.parameters(), *function.buffers())}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    return sum(size for address, size in storages.items() if address not in owned)


def test_bytes_kept_for_backward(benchmark: BenchmarkFixture, report: Report) -> None:
    """x belongs to the block before; the result is counted, since the block after keeps it whatever it is."""
    benchmark.pedantic(lambda: report.listings.append(kept_for_backward()), rounds=1)


def kept_for_backward() -> Listing:
    rows = []
    for shape in SHAPES:
        block = shape.block()
        x = torch.randn(shape.batch, shape.inputs, shape.size, shape.size).to(memory_format=torch.channels_last)
        ours = bytes_kept(block, x.clone().requires_grad_())
        eager = bytes_kept(plain(block, nhwc=True), x.clone().requires_grad_())
        assert ours <= 0.65 * eager, f"{shape}: {ours} bytes against {eager}"
        rows.append((str(shape), f"{ours / 2**20:.2f}", f"{eager / 2**20:.2f}", f"{ours / eager:.2f}"))
    return Listing("bytes kept for backward, with the result", ("block", "ours MiB", "eager MiB", "ratio"), rows)
