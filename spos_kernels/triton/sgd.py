"""Stochastic gradient descent with momentum on parts of parameters: one launch updates all of them.

What a launch does is a table in device memory, a row for each piece: rows and columns of elements of a parameter, of
its gradient and of its momentum, which lie alike. Whether a piece is updated, how much of it, and the learning rate are
read from device memory as well, so that a captured graph trains whatever path was sampled.

Bytes: 20 an element (w and m read and written, gradient read; 12 without m), and a row of the table a piece. Clipping
is one more pass over the gradients, whose squares are added in float64, piece by piece in a fixed order.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spos_kernels.triton.launch import fixed, kernel

PIECE = 4096  # elements
FIELDS = (
    "w", "gradient", "m", "choice", "row_count", "column_count", "chosen", "first_row", "first_column", "row_unit",
    "column_unit", "stride", "rows", "columns", "rate", "nesterov", "momentum", "weight_decay",
)  # fmt: skip
W, GRADIENT, M, CHOICE, ROW_COUNT, COLUMN_COUNT, CHOSEN, FIRST_ROW, FIRST_COLUMN = (tl.constexpr(i) for i in range(9))
ROW_UNIT, COLUMN_UNIT, STRIDE, ROWS, COLUMNS, RATE, NESTEROV, MOMENTUM, WEIGHT_DECAY = (
    tl.constexpr(i) for i in range(9, 18)
)
SIZE = tl.constexpr(len(FIELDS))


@triton.jit
def number_at(address, default):
    """An int32 in device memory, `default` where there is none."""
    return tl.load(address.to(tl.pointer_type(tl.int32)), mask=address != 0, other=default)


@triton.jit
def float_in(piece, NAME: tl.constexpr):
    return tl.load(piece + NAME).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def elements_of(piece, BLOCK: tl.constexpr):
    """Where a piece's elements are, from its first, and which of them are updated now."""
    rows = tl.load(piece + ROWS)
    columns = tl.load(piece + COLUMNS)
    address = tl.load(piece + ROW_COUNT)
    wanted = number_at(address, 0).to(tl.int64) * tl.load(piece + ROW_UNIT) - tl.load(piece + FIRST_ROW)
    used_rows = tl.where(address != 0, tl.minimum(wanted, rows), rows)
    address = tl.load(piece + COLUMN_COUNT)
    wanted = number_at(address, 0).to(tl.int64) * tl.load(piece + COLUMN_UNIT) - tl.load(piece + FIRST_COLUMN)
    used_columns = tl.where(address != 0, tl.minimum(wanted, columns), columns)
    number = tl.arange(0, BLOCK)
    row = number // columns
    column = number % columns
    return row * tl.load(piece + STRIDE) + column, (row < used_rows) & (column < used_columns)


@triton.jit
def is_chosen(piece):
    address = tl.load(piece + CHOICE)
    return (address == 0) | (number_at(address, 0).to(tl.int64) == tl.load(piece + CHOSEN))


@kernel(fixed(num_warps=8, BLOCK=PIECE), fused=False)
def sgd_kernel(table, rates, scale, SCALED: tl.constexpr, BLOCK: tl.constexpr):
    """A piece a program. Multiply-adds are fused where they are written so: the bits do not depend on the pieces."""
    piece = table + tl.program_id(0).to(tl.int64) * SIZE
    if is_chosen(piece) == 0:
        return
    at, mask = elements_of(piece, BLOCK)
    w = tl.load(piece + W).to(tl.pointer_type(tl.float32)) + at
    gradient = tl.load(tl.load(piece + GRADIENT).to(tl.pointer_type(tl.float32)) + at, mask=mask, other=0.0)
    if SCALED:
        gradient *= tl.load(scale)
    weight = tl.load(w, mask=mask, other=0.0)
    decay = float_in(piece, WEIGHT_DECAY)
    zeros = tl.zeros((BLOCK,), tl.float32)
    if decay != 0:
        gradient = tl.fma(zeros + decay, weight, gradient)
    address = tl.load(piece + M)
    step = gradient
    if address != 0:
        m = address.to(tl.pointer_type(tl.float32)) + at
        momentum = zeros + float_in(piece, MOMENTUM)
        velocity = tl.fma(momentum, tl.load(m, mask=mask, other=0.0), gradient)
        tl.store(m, velocity, mask=mask)
        if tl.load(piece + NESTEROV) != 0:
            step = tl.fma(momentum, velocity, gradient)
        else:
            step = velocity
    rate = tl.load(rates + tl.load(piece + RATE))
    tl.store(w, tl.fma(zeros - rate, step, weight), mask=mask)


@kernel(fixed(num_warps=8, BLOCK=PIECE, PARTS=1024), fused=False)
def clip_kernel(table, parts, counter, scale, most, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    """The squares of a piece's gradient; the last program adds all up, and writes what to scale by."""
    piece = table + tl.program_id(0).to(tl.int64) * SIZE
    total = tl.zeros((), tl.float64)
    if is_chosen(piece):
        at, mask = elements_of(piece, BLOCK)
        gradient = tl.load(tl.load(piece + GRADIENT).to(tl.pointer_type(tl.float32)) + at, mask=mask, other=0.0)
        wide = gradient.to(tl.float64)
        total = tl.sum(wide * wide, 0)
    tl.store(parts + tl.program_id(0), total)
    tl.debug_barrier()
    programs = tl.num_programs(0)
    if tl.atomic_add(counter, 1) == programs - 1:
        tl.store(counter, 0)
        sums = tl.zeros((PARTS,), tl.float64)
        for first in range(0, programs, PARTS):
            number = first + tl.arange(0, PARTS)
            sums += tl.load(parts + number, mask=number < programs, other=0.0, cache_modifier=".cg")
        factor = most / (tl.sqrt(tl.sum(sums, 0)) + 1e-6)
        tl.store(scale, tl.where(factor > 1, 1.0, factor).to(tl.float32))


def _bits(value: float) -> int:
    return int(struct.unpack("i", struct.pack("f", value))[0])


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class SgdTable:
    """`updates`, as `spos_kernels.cuda.sgd.Update` has them, as pieces. What it was built of has to outlive it."""

    def __init__(self, updates: Sequence[Any], rates: int) -> None:
        self._pieces = [piece for update in updates for piece in _pieces(update, rates)]

    def data(self) -> bytes:
        return b"".join(struct.pack(f"{len(FIELDS)}q", *piece) for piece in self._pieces)

    def size(self) -> int:
        return len(self._pieces)

    def run(self, table: Tensor, rates: Tensor, scale: Tensor | None, stream: int) -> None:
        if self._pieces:
            sgd_kernel.launch(
                lambda _: (self.size(),), table.view(torch.int64), rates, rates if scale is None else scale,
                SCALED=scale is not None,
            )  # fmt: skip

    def clip(self, table: Tensor, most: float, parts: Tensor, counter: Tensor, scale: Tensor, stream: int) -> None:
        if self._pieces:
            clip_kernel.launch(lambda _: (self.size(),), table.view(torch.int64), parts, counter, scale, most)


def _pieces(update: Any, rates: int) -> Iterator[tuple[int, ...]]:
    """Cut rows of `length` elements into pieces: several whole rows, or a part of one."""
    parameter, gradient, buffer, offset, rows, length, stride = update[:7]
    momentum, weight_decay, nesterov, rate, choice, chosen, row_count, row_unit, column_count, column_unit = update[7:]
    if not 0 <= rate < rates:
        raise ValueError(f"rate = {rate}: expected an integer from 0 to {rates - 1}")
    if rows == 0 or length == 0:
        return
    at_once = max(1, PIECE // length) if rows > 1 else 1
    for row in range(0, rows, at_once):
        for column in range(0, length, PIECE):
            at = 4 * (offset + row * stride + column)
            yield (
                parameter.data_ptr() + at,
                gradient.data_ptr() + at,
                0 if buffer is None else buffer.data_ptr() + at,
                _address(choice),
                _address(row_count),
                _address(column_count),
                chosen,
                row,
                column,
                row_unit,
                column_unit,
                stride,
                min(at_once, rows - row),
                min(PIECE, length - column),
                rate,
                int(nesterov),
                _bits(momentum),
                _bits(weight_decay),
            )
