"""Product of quantized rows by packed weights, computed on integers: what a linear layer does.

    y[m, n] = (Σ over k of (x_code[m, k] − x_zero) · (w_code[n, k] − w_zero[n])) · (x_scale · scale[n]) + bias[n]

With scales of groups of inputs, y is the sum over the groups of such terms, in their order.
"""

from __future__ import annotations

from torch import Tensor

from spos_kernels.lowbit_geometry import geometry_of_rows, rows_of_matrix
from spos_kernels.lowbit_products import (
    PLAIN,
    Call,
    Quantizer,
    backend_of,
    check_call,
    check_input,
    run,
    run_reference,
)
from spos_kernels.lowbit_shortcuts import remember, run_shortcut, shortcut_key
from spos_kernels.packing import PackedWeight, check_weight
from spos_kernels.weight_only import WeightOnly, check_weight_only, refuse, run_weight_only, run_weight_only_reference

__all__ = ["lowbit_matmul", "lowbit_matmul_reference"]


def lowbit_matmul(
    x: Tensor,
    weight: PackedWeight,
    *,
    x_quantizer: Quantizer | None = PLAIN,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    residual_quantizer: Quantizer | None = None,
    relu: bool = False,
    out_quantizer: Quantizer | None = None,
    keep_float: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Multiply rows of codes by packed codes. Not differentiable.

    x: uint8 codes [..., K] of x_quantizer.bits bits, or floats, which are quantized on the way; with x_quantizer None
        floats of any dtype that stay floats, as in `lowbit_conv2d`.
    weight: of shape (N, K), from `pack_weight`, with a scale a row or a scale a group of inputs.
    bias: floats [N]. residual: what is added, [..., N], floats, or uint8 codes with `residual_quantizer`.
    out_quantizer, keep_float, what floats are, the result [..., N], its exactness and the limit on K: as in
        `lowbit_conv2d`.

    Raises TypeError or ValueError, naming the argument.
    """
    if x_quantizer is None:
        refuse(
            residual=residual,
            residual_quantizer=residual_quantizer,
            out_quantizer=out_quantizer,
            keep_float=keep_float or None,
        )
        return _weight_only(x, weight, bias, relu, run_weight_only)
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
    x_quantizer: Quantizer | None = PLAIN,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    residual_quantizer: Quantizer | None = None,
    relu: bool = False,
    out_quantizer: Quantizer | None = None,
    keep_float: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`lowbit_matmul` in plain PyTorch: same arguments, result to the bit, and errors."""
    if x_quantizer is None:
        refuse(
            residual=residual,
            residual_quantizer=residual_quantizer,
            out_quantizer=out_quantizer,
            keep_float=keep_float or None,
        )
        return _weight_only(x, weight, bias, relu, run_weight_only_reference)
    call = _check(x, weight, x_quantizer, bias, residual, residual_quantizer, relu, out_quantizer, keep_float)
    return _shaped(run_reference(call), x)


def _weight_only(x: Tensor, weight: PackedWeight, bias: Tensor | None, relu: bool, run: WeightOnly) -> Tensor:
    check_weight(weight, 2)
    check_weight_only(x, weight, bias, relu)
    geometry = geometry_of_rows(x, weight)
    y = _shaped([run(rows_of_matrix(x), weight, geometry, bias, relu)], x)
    assert isinstance(y, Tensor)
    return y


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
    geometry = geometry_of_rows(x, weight)
    return check_call(x, weight, geometry, x_quantizer, bias, residual, residual_quantizer, relu, out, keep,
                      rows_of_matrix, (*x.shape[:-1], weight.shape[0]))  # fmt: skip


def _shaped(results: list[Tensor], x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    shaped = [rows.view(*x.shape[:-1], rows.shape[-1]) for rows in results]
    return shaped[0] if len(shaped) == 1 else (shaped[0], shaped[1])
