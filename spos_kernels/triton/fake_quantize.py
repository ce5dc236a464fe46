"""Fake quantization, forward, codes and backward, as launches of `fake_quantize_kernels.py`."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from spos_kernels.triton.fake_quantize_kernels import columns_kernel, finish_kernel, quantize_kernel, runs_kernel
from spos_kernels.triton.launch import blocks


class Pass(NamedTuple):
    """How a pass with sums shares out its tensor."""

    by_columns: bool
    outer: int
    channels: int
    inner: int
    rows_of_program: int

    @property
    def programs(self) -> int:
        return blocks(self.outer, self.rows_of_program) if self.by_columns else blocks(self.inner, 1024)

    @property
    def parts(self) -> int:
        return self.programs * self.channels * (self.inner if self.by_columns else 1)


def _pass(x: Tensor, channels: int, inner: int) -> Pass:
    shortest_run, enough_programs, most_rows = 128, 1024, 512
    outer = x.numel() // (channels * inner)
    by_columns = channels > 1 and inner < shortest_run
    wanted = blocks(outer, max(1, enough_programs // blocks(channels * inner, 64)))
    return Pass(by_columns, outer, channels, inner, min(max(wanted, 16), most_rows))


def _bounds(method: str, bits: int, signed: bool) -> tuple[int, int]:
    if method == "dorefa" or not signed:
        return 0, (1 << bits) - 1
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def _quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, result: Tensor, codes: bool, method: str, bits: int,
    signed: bool, channels: int, inner: int,
) -> None:  # fmt: skip
    quantize_kernel.launch(
        lambda meta: (blocks(x.numel(), meta["BLOCK"]),),
        x, scale, scale if zero_point is None else zero_point, result, x.numel(), channels, inner,
        *_bounds(method, bits, signed), METHOD=method, HAS_ZERO=zero_point is not None, CODES=codes,
    )  # fmt: skip


def fake_quantize_forward(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, y: Tensor, method: str, bits: int, signed: bool,
    channels: int, inner: int, stream: int,
) -> None:  # fmt: skip
    _quantize(x, scale, zero_point, y, False, method, bits, signed, channels, inner)


def fake_quantize_codes(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, codes: Tensor, method: str, bits: int, signed: bool,
    channels: int, inner: int, stream: int,
) -> None:  # fmt: skip
    _quantize(x, scale, zero_point, codes, True, method, bits, signed, channels, inner)


def _with_sums(
    x: Tensor, dy: Tensor, scale: Tensor, zero_point: Tensor | None, dx: Tensor | None, parts: Tensor, shape: Pass,
    bounds: tuple[int, int], method: str, maximum: bool,
) -> None:  # fmt: skip
    tensors = (x, dy, scale, scale if zero_point is None else zero_point, x if dx is None else dx, parts)
    constants = {"METHOD": method, "HAS_ZERO": zero_point is not None, "MAXIMUM": maximum, "HAS_DX": dx is not None}
    period = shape.channels * shape.inner
    if shape.by_columns:
        columns_kernel.launch(
            lambda meta: (blocks(period, meta["BLOCK"]), shape.programs),
            *tensors, shape.outer, period, shape.inner, shape.rows_of_program, *bounds, **constants,
        )  # fmt: skip
    else:
        runs_kernel.launch(
            lambda meta: (shape.channels, shape.programs),
            *tensors, shape.outer, shape.channels, shape.inner, *bounds, **constants,
        )  # fmt: skip


def _finish(parts: Tensor, result: Tensor, shape: Pass, factor: float, maximum: bool) -> None:
    by_columns = shape.by_columns
    finish_kernel.launch(
        lambda meta: (shape.channels,),
        parts, result, shape.programs if by_columns else 1, shape.channels * shape.inner,
        shape.inner if by_columns else shape.programs, factor,
        MAXIMUM=maximum,
    )  # fmt: skip


def fake_quantize_backward(
    dy: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor | None, dx: Tensor | None, dscale: Tensor | None,
    workspace: Tensor | None, method: str, bits: int, signed: bool, channels: int, inner: int, stream: int,
) -> None:  # fmt: skip
    low, high = _bounds(method, bits, signed)
    shape = _pass(x, channels, inner)
    parts = x.new_empty(shape.parts, dtype=scale.dtype) if workspace is None else workspace
    _with_sums(x, dy, scale, zero_point, dx, parts, shape, (low, high), method, maximum=False)
    if dscale is not None:
        factor = 1 / math.sqrt(x.numel() // channels * max(high, 1)) if method == "lsq" else 1.0
        _finish(parts, dscale, shape, factor, maximum=False)


def fake_quantize_maximum(
    x: Tensor, maximum: Tensor, workspace: Tensor, method: str, bits: int, signed: bool, channels: int, inner: int,
    stream: int,
) -> None:  # fmt: skip
    shape = _pass(x, channels, inner)
    _with_sums(x, x, maximum, None, None, workspace, shape, (0, 1), method, maximum=True)
    _finish(workspace, maximum, shape, 1.0, maximum=True)


def fake_quantize_workspace(
    x: Tensor, method: str, bits: int, signed: bool, channels: int, inner: int, stream: int
) -> int:
    return _pass(x, channels, inner).parts
