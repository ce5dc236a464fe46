"""The choice block: what a branch is to the kernels, their memory, and both passes as sequences of launches.

Launches: one for each convolution and one for y forward; backward one or two for the sums over y's gradient and two for
each convolution. With the choice in device memory there are as many as the longest branch needs, whatever the choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spos_kernels.triton import choice_block_depthwise_backward as depthwise_backward
from spos_kernels.triton import choice_block_forward as forward_kernels
from spos_kernels.triton import choice_block_pointwise_backward as pointwise_backward
from spos_kernels.triton.choice_block_gradients import end_sums_kernel
from spos_kernels.triton.choice_block_parts import ROW_SIZE
from spos_kernels.triton.launch import INTERPRETED, blocks

CHOICE_BLOCK_COUNTERS = 1024
MOST_PARTS = 256  # programs that share a column of tiles; the last of them adds up
MOST_SPLITS = 64  # of a weight's gradient
SLOTS = 7
POINTWISE_TILE, PIXELS, CHANNELS, END_PIXELS = 64, 32, 32, 64  # the kernels' blocks
KEPT_ALIGNMENT = 8  # elements: each convolution's kept output begins at a whole vector

Layers = Sequence[Sequence[Tensor | None]]
Gradients = Sequence[Sequence[Tensor | None]]


class Layer(NamedTuple):
    """Fields of the table's rows, in their order, as `choice_block_parts.FIELDS`."""

    weight: int
    gamma: int
    beta: int
    mean: int
    var: int
    batches: int
    dweight: int
    dgamma: int
    dbeta: int
    kept: int
    statistics: int
    kernel: int
    stride: int
    inputs: int
    outputs: int
    weight_stride: int
    in_height: int
    in_width: int
    height: int
    width: int


class Branch(NamedTuple):
    main: int
    layers: tuple[Layer, ...]

    def row(self) -> list[int]:
        flat = [self.main, len(self.layers) - self.main]
        for layer in self.layers:
            flat += layer
        return flat + [0] * (ROW_SIZE - len(flat))

    def in_slot(self, slot: int, proj: bool) -> tuple[int, Layer] | None:
        """The place in the chain of the layer in a slot, and the layer."""
        chain = self.layers[self.main :] if proj else self.layers[: self.main]
        if not chain:
            return None
        index = slot - (chain[0].kernel == 1)
        return (index, chain[index]) if 0 <= index < len(chain) else None


class Block(NamedTuple):
    """A block's sizes, and the branches that a call may run."""

    batch: int
    x_pixel: int
    out_channels: int
    out_height: int
    out_width: int
    beside: int
    passes: bool
    kept: int  # elements
    statistics: int
    branches: tuple[Branch, ...]

    @property
    def pixels(self) -> int:
        """Of y."""
        return self.batch * self.out_height * self.out_width

    def pixels_of(self, layer: Layer) -> int:
        return self.batch * layer.height * layer.width

    def slots(self, backwards: bool) -> Iterator[tuple[int, bool, list[tuple[int, Layer]]]]:
        """Yield (slot, whether of proj, what it may be) of the slots in use, in the order of the pass."""
        for proj in (False, True) if backwards else (True, False):
            for slot in reversed(range(SLOTS)) if backwards else range(SLOTS):
                used = [found for branch in self.branches if (found := branch.in_slot(slot, proj)) is not None]
                if used:
                    yield slot, proj, used


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _branch(
    x: Tensor, layers: Layers, main: int, stride: int, whole: bool, gradients: Gradients | None
) -> tuple[Branch, int, int]:
    """Return the branch, and the elements of what it keeps and of its statistics."""
    batch, channels, height, width = x.shape
    arriving = channels // 2 if stride == 1 and not whole else channels
    kept = statistics = 0
    found: list[Layer] = []
    size, left, inputs = (height, width), stride, arriving
    for i, tensors in enumerate(layers):
        if i == main:
            size, left, inputs = (height, width), stride, arriving
        weight, gamma, beta, mean, var, count = tensors
        assert weight is not None
        kernel, outputs = weight.shape[3], weight.shape[0]
        own_stride = left if kernel > 1 else 1
        left = 1 if kernel > 1 else left
        out = tuple((n - 1) // own_stride + 1 for n in size)
        kept += -kept % KEPT_ALIGNMENT
        dweight, dgamma, dbeta = (None, None, None) if gradients is None else gradients[i]
        addresses = (_address(t) for t in (weight, gamma, beta, mean, var, count, dweight, dgamma, dbeta))
        row_stride = weight.stride(0) if outputs > 1 else inputs
        sizes = (kept, statistics, kernel, own_stride, inputs, outputs, row_stride, *size, *out)
        found.append(Layer._make((*addresses, *sizes)))
        kept += batch * out[0] * out[1] * outputs
        statistics += 2 * outputs
        size, inputs = (out[0], out[1]), outputs
    return Branch(main, tuple(found)), kept, statistics


def _block(x: Tensor, branches: Sequence[tuple[Layers, int, Gradients | None]], stride: int, whole: bool) -> Block:
    described = [_branch(x, layers, main, stride, whole, gradients) for layers, main, gradients in branches]
    batch, channels = x.shape[:2]
    passes = stride == 1 and not whole
    beside = 0 if whole else channels // 2 if passes else channels
    first = described[0][0]
    end = first.layers[first.main - 1]
    if any(branch.layers[branch.main - 1].outputs != end.outputs for branch, *_ in described):
        raise ValueError("branches: expected the same number of outputs of each")
    return Block(
        batch, _pixel(x), beside + end.outputs, end.height, end.width, beside,
        passes, max(kept for _, kept, _ in described), max(size for *_, size in described),
        tuple(branch for branch, *_ in described),
    )  # fmt: skip


def _pixel(tensor: Tensor) -> int:
    """The distance from one pixel to the next, of maps one pixel wide, whose own strides may say anything."""
    _, channels, height, width = tensor.shape
    if width > 1:
        return tensor.stride(3)
    if height > 1:
        return tensor.stride(2)
    return tensor.stride(0) if tensor.shape[0] > 1 else channels


def _forward_floats(block: Block) -> int:
    most = 0
    for slot, _, used in block.slots(False):
        tile = POINTWISE_TILE if slot % 2 else PIXELS
        for _, layer in used:
            most = max(most, min(blocks(block.pixels_of(layer), tile), MOST_PARTS) * 3 * layer.outputs)
    return most


class Plan(NamedTuple):
    """Where a backward pass keeps what, in its workspace: elements of a map, floats of the rest."""

    map: int
    sums: int
    parts: int
    weight_parts: int


def _backward_plan(block: Block) -> Plan:
    largest = parts = weight_parts = 0
    for slot, _, used in block.slots(True):
        for _, layer in used:
            pixels, before = block.pixels_of(layer), block.batch * layer.in_height * layer.in_width
            largest = max(largest, pixels * layer.outputs, before * layer.inputs)
            tile = POINTWISE_TILE if slot % 2 else PIXELS
            most = max(min(blocks(before, tile), MOST_PARTS), min(blocks(pixels, END_PIXELS), MOST_PARTS))
            parts = max(parts, most * 2 * max(layer.inputs, layer.outputs))
            if slot % 2:
                splits = _splits(pixels, _tiles(layer))
                size = layer.outputs * layer.inputs
            else:
                splits = _splits(pixels, layer.kernel * blocks(layer.outputs, CHANNELS))
                size = layer.outputs * layer.kernel**2
            weight_parts = max(weight_parts, splits * size if splits > 1 else 0)
    return Plan(*(-(-n // 8) * 8 for n in (largest, block.statistics, parts, weight_parts)))


def _tiles(layer: Layer) -> int:
    return blocks(layer.outputs, POINTWISE_TILE) * blocks(layer.inputs, POINTWISE_TILE)


def _splits(pixels: int, tiles: int) -> int:
    """As the kernels count them."""
    return max(1, min(MOST_SPLITS, 512 // tiles, blocks(pixels, 256)))


def _backward_bytes(plan: Plan, element: int) -> int:
    return 2 * plan.map * element + 4 * (plan.sums + plan.parts + plan.weight_parts)


@lru_cache(maxsize=1024)
def _table(row: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """A table of one branch, and the choice of it."""
    return torch.tensor(row, dtype=torch.int64, device=device), torch.zeros(1, dtype=torch.int32, device=device)


def _math(x: Tensor, tf32: bool) -> dict[str, Any]:
    return {"PRECISION": "tf32" if tf32 else "ieee", "UPCAST": INTERPRETED and x.dtype is torch.bfloat16}


def _run_forward(
    block: Block, table: Tensor, choice: Tensor, x: Tensor, y: Tensor, kept: Tensor, statistics: Tensor | None,
    workspace: Tensor, counters: Tensor, training: bool, track: bool, momentum: float, eps: float, tf32: bool,
) -> None:  # fmt: skip
    given = statistics is not None
    floats = workspace[: 4 * _forward_floats(block)].view(torch.float32)
    statistics = floats if statistics is None else statistics
    kind = {"PASSES": block.passes, "GIVEN": given}
    for slot, proj, used in block.slots(False):
        common = (
            table,
            choice,
            slot,
            x,
            kept,
            statistics,
            floats,
            counters,
            block.batch,
            block.x_pixel,
            MOST_PARTS,
            eps,
        )
        pointwise = slot % 2 == 1
        tile, across = (POINTWISE_TILE, POINTWISE_TILE) if pointwise else (PIXELS, CHANNELS)
        programs = max(min(blocks(block.pixels_of(layer), tile), MOST_PARTS) for _, layer in used)
        columns = max(blocks(layer.outputs, across) for _, layer in used)
        of = forward_kernels.pointwise_forward_kernel if pointwise else forward_kernels.depthwise_forward_kernel
        of.launch(
            (programs, columns), *common,
            PROJ=proj, TRAINING=training, **kind, **(_math(x, tf32) if pointwise else {}),
        )  # fmt: skip
    has_proj = any(len(branch.layers) > branch.main for branch in block.branches)
    forward_kernels.output_kernel.launch(
        lambda meta: (blocks(block.pixels, meta["BLOCK_P"]) + track, blocks(block.out_channels, meta["BLOCK_C"])),
        table, choice, x, y, kept, statistics, block.pixels, block.batch, block.x_pixel, block.out_channels,
        block.beside, momentum, eps, HAS_PROJ=has_proj, TRACK=track, **kind,
    )  # fmt: skip


def _run_backward(
    block: Block, table: Tensor, choice: Tensor, dy: Tensor, x: Tensor, kept: Tensor, statistics: Tensor | None,
    dx: Tensor | None, workspace: Tensor, counters: Tensor, training: bool, eps: float, tf32: bool,
) -> None:  # fmt: skip
    plan, element = _backward_plan(block), x.element_size()
    ends = [2 * plan.map * element]
    for size in (plan.sums, plan.parts, plan.weight_parts):
        ends.append(ends[-1] + 4 * size)
    maps = workspace[: ends[0]].view(x.dtype)
    sums, parts, weight_parts = (workspace[a:b].view(torch.float32) for a, b in pairwise(ends))
    given = statistics is not None
    statistics = sums if statistics is None else statistics
    dy_pixel, to_x = _pixel(dy), x if dx is None else dx
    has_proj = any(len(branch.layers) > branch.main for branch in block.branches)
    for proj in (False, True)[: 1 + has_proj]:
        end = max(branch.layers[-1 if proj else branch.main - 1].outputs for branch in block.branches)
        grid: tuple[int, ...] = (min(blocks(block.pixels, END_PIXELS), MOST_PARTS), blocks(end, CHANNELS))
        end_sums_kernel.launch(
            grid,
            table, choice, dy, kept, statistics, sums, parts, counters, block.pixels, dy_pixel,
            0 if proj else block.beside, MOST_PARTS, eps, PROJ=proj, GIVEN=given,
        )  # fmt: skip
    for slot, proj, used in block.slots(True):
        pointwise, beside = slot % 2 == 1, 0 if proj else block.beside
        kind = {"PROJ": proj, "PASSES": block.passes, "TRAINING": training, "GIVEN": given}
        if pointwise:
            kind |= _math(x, tf32)
            grid = (
                max(min(blocks(block.pixels_of(layer), POINTWISE_TILE), MOST_PARTS) for _, layer in used),
                max(blocks(layer.inputs, POINTWISE_TILE) for _, layer in used),
            )
            weight_grid: tuple[int, ...] = (
                max(_tiles(layer) * _splits(block.pixels_of(layer), _tiles(layer)) for _, layer in used),
            )
            dgrad, wgrad = pointwise_backward.pointwise_dgrad_kernel, pointwise_backward.pointwise_wgrad_kernel
        else:
            before = [block.batch * layer.in_height * layer.in_width for _, layer in used]
            across = max(blocks(layer.outputs, CHANNELS) for _, layer in used)
            grid = (max(min(blocks(pixels, PIXELS), MOST_PARTS) for pixels in before), across)
            splits = [
                _splits(block.pixels_of(layer), layer.kernel * blocks(layer.outputs, CHANNELS)) for _, layer in used
            ]
            weight_grid = (across, max(layer.kernel for _, layer in used), max(splits))
            dgrad, wgrad = depthwise_backward.depthwise_dgrad_kernel, depthwise_backward.depthwise_wgrad_kernel
        wgrad.launch(
            weight_grid,
            table, choice, slot, x, dy, kept, maps, statistics, sums, weight_parts if len(weight_parts) else sums,
            counters, block.batch, block.x_pixel, dy_pixel, beside, plan.map, MOST_SPLITS, eps, **kind,
        )  # fmt: skip
        if dx is None and all(index == 0 for index, _ in used):
            continue
        dgrad.launch(
            grid,
            table, choice, slot, dy, to_x, kept, maps, statistics, sums, parts, counters, block.batch, dy_pixel, beside,
            plan.map, MOST_PARTS, eps, HAS_DX=dx is not None, **kind,
        )  # fmt: skip


def _one(x: Tensor, layers: Layers, main: int, stride: int, whole: bool, gradients: Gradients | None) -> Block:
    return _block(x, [(layers, main, gradients)], stride, whole)


def choice_block_sizes(x: Tensor, layers: Layers, main: int, stride: int, whole: bool) -> tuple[int, int, int, int]:
    """Return the elements of `kept` and `statistics`, and the bytes of the workspaces of forward and backward."""
    return _sizes(_one(x, layers, main, stride, whole, None), x)


def _sizes(block: Block, x: Tensor) -> tuple[int, int, int, int]:
    backward = _backward_bytes(_backward_plan(block), x.element_size())
    return block.kept, block.statistics, 4 * _forward_floats(block), backward


def choice_block_forward(
    x: Tensor, layers: Layers, main: int, stride: int, whole: bool, y: Tensor, kept: Tensor, statistics: Tensor | None,
    workspace: Tensor, counters: Tensor, training: bool, keep: bool, track: bool, momentum: float, eps: float,
    tf32: bool, stream: int,
) -> None:  # fmt: skip
    block = _one(x, layers, main, stride, whole, None)
    table, choice = _table(tuple(block.branches[0].row()), x.device)
    _run_forward(block, table, choice, x, y, kept, statistics, workspace, counters, training, track and training,
                 momentum, eps, tf32)  # fmt: skip


def choice_block_backward(
    dy: Tensor, x: Tensor, layers: Layers, main: int, stride: int, whole: bool, kept: Tensor,
    statistics: Tensor | None, dx: Tensor | None, gradients: Gradients, workspace: Tensor, counters: Tensor,
    training: bool, eps: float, tf32: bool, stream: int,
) -> None:  # fmt: skip
    block = _one(x, layers, main, stride, whole, gradients)
    table, choice = _table(tuple(block.branches[0].row()), x.device)
    _run_backward(block, table, choice, dy, x, kept, statistics, dx, workspace, counters, training, eps, tf32)


class ChoiceTable:
    """All branches of a block, with the choice in device memory: as the class of that name in the compiled modules.

    branches: of each choice (layers, how many of them are main's, gradients of the layers). x: of the shape and the
    type that the table is for.
    """

    def __init__(self, x: Tensor, branches: Sequence[tuple[Layers, int, Gradients]], stride: int, whole: bool) -> None:
        if not branches:
            raise ValueError("branches: expected at least one")
        self._given = branches  # keeps the tensors
        self._block = _block(x, branches, stride, whole)
        self._element = x.element_size()
        self._stays = all(tensor is not None for layers, *_ in branches for layer in layers for tensor in layer[3:5])

    def rows(self) -> bytes:
        return b"".join(number.to_bytes(8, "little") for branch in self._block.branches for number in branch.row())

    def sizes(self) -> tuple[int, int, int, int]:
        backward = _backward_bytes(_backward_plan(self._block), self._element)
        return self._block.kept, self._block.statistics, 4 * _forward_floats(self._block), backward

    def _checked(self, x: Tensor, rows: Tensor, choice: Tensor) -> tuple[Block, Tensor]:
        if tuple(choice.shape) != (1,):
            raise ValueError(f"choice: has shape {list(choice.shape)}, expected [1]")
        return self._block._replace(x_pixel=_pixel(x)), rows.view(torch.int64)

    def forward(
        self, x: Tensor, rows: Tensor, choice: Tensor, y: Tensor, kept: Tensor, statistics: Tensor, workspace: Tensor,
        counters: Tensor, momentum: float, eps: float, tf32: bool, stream: int,
    ) -> None:  # fmt: skip
        block, table = self._checked(x, rows, choice)
        _run_forward(block, table, choice, x, y, kept, statistics, workspace, counters, True, True, momentum, eps, tf32)

    def evaluate(
        self, x: Tensor, rows: Tensor, choice: Tensor, y: Tensor, kept: Tensor, workspace: Tensor, counters: Tensor,
        eps: float, tf32: bool, stream: int,
    ) -> None:  # fmt: skip
        if not self._stays:
            raise ValueError("branches: expected running statistics of all layers")
        block, table = self._checked(x, rows, choice)
        _run_forward(block, table, choice, x, y, kept, None, workspace, counters, False, False, 0.0, eps, tf32)

    def backward(
        self, dy: Tensor, x: Tensor, rows: Tensor, choice: Tensor, kept: Tensor, statistics: Tensor, dx: Tensor | None,
        workspace: Tensor, counters: Tensor, eps: float, tf32: bool, stream: int,
    ) -> None:  # fmt: skip
        block, table = self._checked(x, rows, choice)
        _run_backward(block, table, choice, dy, x, kept, statistics, dx, workspace, counters, True, eps, tf32)
