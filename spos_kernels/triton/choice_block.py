"""The choice block: both passes as sequences of launches, of one branch or with the choice in device memory.

Launches: one for each convolution and one for y forward; backward one or two for the sums over y's gradient and two for
each convolution. With the choice in device memory there are as many as the longest branch needs, whatever the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from spos_kernels.triton import choice_block_depthwise_backward as depthwise_backward
from spos_kernels.triton import choice_block_forward as forward_kernels
from spos_kernels.triton import choice_block_pointwise_backward as pointwise_backward
from spos_kernels.triton.choice_block_gradients import end_sums_kernel
from spos_kernels.triton.choice_block_memory import (
    CHANNELS,
    END_PIXELS,
    MOST_PARTS,
    MOST_SPLITS,
    PIXELS,
    POINTWISE_TILE,
    Block,
    Gradients,
    Layers,
    backward_bytes,
    backward_plan,
    block_of,
    forward_floats,
    pixel_of,
    splits_of,
    tiles_of,
)
from spos_kernels.triton.launch import INTERPRETED, blocks

CHOICE_BLOCK_COUNTERS = 1024


@lru_cache(maxsize=1024)
def _table(row: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """A table of one branch, and the choice of it: copied from the host, which waits until they are there."""
    table = torch.tensor(row, dtype=torch.int64, device=device)
    return table, torch.tensor([0], dtype=torch.int32, device=device)


def _table_of(block: Block, device: torch.device) -> tuple[Tensor, Tensor]:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("choice_block: a captured graph takes the choice from device memory, as ChoiceTable does")
    return _table(tuple(block.branches[0].row()), device)


def _math(x: Tensor, tf32: bool) -> dict[str, Any]:
    return {"PRECISION": "tf32" if tf32 else "ieee", "UPCAST": INTERPRETED and x.dtype is torch.bfloat16}


def _run_forward(
    block: Block, table: Tensor, choice: Tensor, x: Tensor, y: Tensor, kept: Tensor, statistics: Tensor | None,
    workspace: Tensor, counters: Tensor, training: bool, track: bool, momentum: float, eps: float, tf32: bool,
) -> None:  # fmt: skip
    given = statistics is not None
    floats = workspace[: 4 * forward_floats(block)].view(torch.float32)
    statistics = floats if statistics is None else statistics
    kind = {"PASSES": block.passes, "GIVEN": given}
    for slot, proj, used in block.slots(False):
        common = (
            table,
            choice,
            slot,
            int(proj),
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
            TRAINING=training, **kind, **(_math(x, tf32) if pointwise else {}),
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
    plan, element = backward_plan(block), x.element_size()
    ends = [2 * plan.map * element]
    for size in (plan.sums, plan.parts, plan.weight_parts):
        ends.append(ends[-1] + 4 * size)
    maps = workspace[: ends[0]].view(x.dtype)
    sums, parts, weight_parts = (workspace[a:b].view(torch.float32) for a, b in pairwise(ends))
    given = statistics is not None
    statistics = sums if statistics is None else statistics
    dy_pixel, to_x = pixel_of(dy), x if dx is None else dx
    has_proj = any(len(branch.layers) > branch.main for branch in block.branches)
    for proj in (False, True)[: 1 + has_proj]:
        end = max(branch.layers[-1 if proj else branch.main - 1].outputs for branch in block.branches)
        grid: tuple[int, ...] = (min(blocks(block.pixels, END_PIXELS), MOST_PARTS), blocks(end, CHANNELS))
        end_sums_kernel.launch(
            grid,
            table, choice, int(proj), dy, kept, statistics, sums, parts, counters, block.pixels, dy_pixel,
            0 if proj else block.beside, MOST_PARTS, eps, GIVEN=given,
        )  # fmt: skip
    for slot, proj, used in block.slots(True):
        pointwise, beside = slot % 2 == 1, 0 if proj else block.beside
        kind = {"PASSES": block.passes, "TRAINING": training, "GIVEN": given}
        if pointwise:
            kind |= _math(x, tf32)
            grid = (
                max(min(blocks(block.pixels_of(layer), POINTWISE_TILE), MOST_PARTS) for _, layer in used),
                max(blocks(layer.inputs, POINTWISE_TILE) for _, layer in used),
            )
            weight_grid: tuple[int, ...] = (
                max(tiles_of(layer) * splits_of(block.pixels_of(layer), tiles_of(layer)) for _, layer in used),
            )
            dgrad, wgrad = pointwise_backward.pointwise_dgrad_kernel, pointwise_backward.pointwise_wgrad_kernel
        else:
            before = [block.batch * layer.in_height * layer.in_width for _, layer in used]
            across = max(blocks(layer.outputs, CHANNELS) for _, layer in used)
            grid = (max(min(blocks(pixels, PIXELS), MOST_PARTS) for pixels in before), across)
            splits = [
                splits_of(block.pixels_of(layer), layer.kernel * blocks(layer.outputs, CHANNELS)) for _, layer in used
            ]
            weight_grid = (across, max(layer.kernel for _, layer in used), max(splits))
            dgrad, wgrad = depthwise_backward.depthwise_dgrad_kernel, depthwise_backward.depthwise_wgrad_kernel
        wgrad.launch(
            weight_grid,
            table, choice, slot, int(proj), x, dy, kept, maps, statistics, sums,
            weight_parts if len(weight_parts) else sums, counters, block.batch, block.x_pixel, dy_pixel, beside,
            plan.map, MOST_SPLITS, eps, **kind,
        )  # fmt: skip
        if dx is None and all(index == 0 for index, _ in used):
            continue
        dgrad.launch(
            grid,
            table, choice, slot, int(proj), dy, to_x, int(dx is not None), kept, maps, statistics, sums, parts,
            counters, block.batch, dy_pixel, beside, plan.map, MOST_PARTS, eps, **kind,
        )  # fmt: skip


def _one(x: Tensor, layers: Layers, main: int, stride: int, whole: bool, gradients: Gradients | None) -> Block:
    return block_of(x, [(layers, main, gradients)], stride, whole)


def choice_block_sizes(x: Tensor, layers: Layers, main: int, stride: int, whole: bool) -> tuple[int, int, int, int]:
    """Return the elements of `kept` and `statistics`, and the bytes of the workspaces of forward and backward."""
    return _sizes(_one(x, layers, main, stride, whole, None), x)


def _sizes(block: Block, x: Tensor) -> tuple[int, int, int, int]:
    backward = backward_bytes(backward_plan(block), x.element_size())
    return block.kept, block.statistics, 4 * forward_floats(block), backward


def choice_block_forward(
    x: Tensor, layers: Layers, main: int, stride: int, whole: bool, y: Tensor, kept: Tensor, statistics: Tensor | None,
    workspace: Tensor, counters: Tensor, training: bool, keep: bool, track: bool, momentum: float, eps: float,
    tf32: bool, stream: int,
) -> None:  # fmt: skip
    block = _one(x, layers, main, stride, whole, None)
    table, choice = _table_of(block, x.device)
    _run_forward(block, table, choice, x, y, kept, statistics, workspace, counters, training, track and training,
                 momentum, eps, tf32)  # fmt: skip


def choice_block_backward(
    dy: Tensor, x: Tensor, layers: Layers, main: int, stride: int, whole: bool, kept: Tensor,
    statistics: Tensor | None, dx: Tensor | None, gradients: Gradients, workspace: Tensor, counters: Tensor,
    training: bool, eps: float, tf32: bool, stream: int,
) -> None:  # fmt: skip
    block = _one(x, layers, main, stride, whole, gradients)
    table, choice = _table_of(block, x.device)
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
        self._block = block_of(x, branches, stride, whole)
        self._element = x.element_size()
        self._stays = all(tensor is not None for layers, *_ in branches for layer in layers for tensor in layer[3:5])

    def rows(self) -> bytes:
        return b"".join(number.to_bytes(8, "little") for branch in self._block.branches for number in branch.row())

    def sizes(self) -> tuple[int, int, int, int]:
        backward = backward_bytes(backward_plan(self._block), self._element)
        return self._block.kept, self._block.statistics, 4 * forward_floats(self._block), backward

    def _checked(self, x: Tensor, rows: Tensor, choice: Tensor) -> tuple[Block, Tensor]:
        if tuple(choice.shape) != (1,):
            raise ValueError(f"choice: has shape {list(choice.shape)}, expected [1]")
        return self._block._replace(x_pixel=pixel_of(x)), rows.view(torch.int64)

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
