"""Product of quantized rows by packed weights, computed on integers: what a linear layer does.

    y[m, n] = (Σ over k of (x_code[m, k] − x_zero) · (w_code[n, k] − w_zero[n])) · (x_scale · scale[n]) + bias[n]

With scales of groups of inputs, y is the sum over the groups of such terms, in their order.
"""

from __future__ import annotations

import math

from torch import Tensor

from spos_kernels.lowbit_products import (
    PLAIN,
    Call,
    Geometry,
    Quantizer,
    backend_of,
    check_call,
    check_input,
    run,
    run_reference,
)
from spos_kernels.lowbit_shortcuts import remember, run_shortcut, shortcut_key
from spos_kernels.packing import PackedWeight, check_weight

__all__ = ["lowbit_matmul", "lowbit_matmul_reference"]


def lowbit_matmul(
    x: Tensor,
    weight: PackedWeight,
    *,
    x_quantizer: Quantizer = PLAIN,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    residual_quantizer: Quantizer | None = None,
    relu: bool = False,
    out_quantizer: Quantizer | None = None,
    keep_float: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Multiply rows of codes by packed codes. Not differentiable.

    x: uint8 codes [..., K] of x_quantizer.bits bits, or floats, which are quantized on the way.
    weight: of shape (N, K), from `pack_weight`, with a scale a row or a scale a group of inputs.
    bias: floats [N]. residual: what is added, [..., N], floats, or uint8 codes with `residual_quantizer`.
    out_quantizer, keep_float, what floats are, the result [..., N], its exactness and the limit on K: as in
        `lowbit_conv2d`.

    Raises TypeError or ValueError, naming the argument.
    """
    options = (x_quantizer, residual_quantizer, relu, out_quantizer, keep_float)
    key = shortcut_key(x, weight, bias, residual, *options)
    if key is not None and (found := weight.shortcuts.get(key)) is not None:
        return run_shortcut(found, x, weight, bias, residual)
    call = _check(x, weight, x_quantizer, bias, residual, residual_quantizer, relu, out_quantizer, keep_float)
    backend = backend_of(call)
    if backend == "reference":
        return _shaped(run_reference(call), x)
    results = _shaped(run(call, backend), x)
    if backend == "cpu":
        remember(key, call, (x, bias, residual), results)
    return results


def lowbit_matmul_reference(
    x: Tensor,
    weight: PackedWeight,
    *,
    x_quantizer: Quantizer = PLAIN,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    residual_quantizer: Quantizer | None = None,
    relu: bool = False,
    out_quantizer: Quantizer | None = None,
    keep_float: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`lowbit_matmul` in plain PyTorch: same arguments, result to the bit, and errors."""
    call = _check(x, weight, x_quantizer, bias, residual, residual_quantizer, relu, out_quantizer, keep_float)
    return _shaped(run_reference(call), x)


def _check(
    x: Tensor,
    weight: PackedWeight,
    x_quantizer: Quantizer,
    bias: Tensor | None,
    residual: Tensor | None,
    residual_quantizer: Quantizer | None,
    relu: bool,
    out: Quantizer | None,
    keep: bool,
) -> Call:
    check_weight(weight, 2)
    check_input(x, weight)
    outputs, inputs = weight.shape
    if x.ndim < 1 or x.shape[-1] != inputs:
        raise ValueError(f"x has shape {list(x.shape)}: expected [..., {inputs}]")
    rows = math.prod(x.shape[:-1])
    geometry = Geometry(1, 1, rows, 1, rows, 1, inputs, outputs, (1, 1), (1, 1), (0, 0), (1, 1))
    return check_call(x, weight, geometry, x_quantizer, bias, residual, residual_quantizer, relu, out, keep,
                      _rows, (*x.shape[:-1], outputs))  # fmt: skip


def _rows(x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.shape[1] == 1 or rows.stride(1) == 1 else rows.contiguous()


def _shaped(results: list[Tensor], x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    shaped = [rows.view(*x.shape[:-1], rows.shape[-1]) for rows in results]
    return shaped[0] if len(shaped) == 1 else (shaped[0], shaped[1])
