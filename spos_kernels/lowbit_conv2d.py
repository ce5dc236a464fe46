"""Convolution of quantized activations by packed weights, computed on integers; `lowbit_products` has the formulas."""

from __future__ import annotations

from torch import Tensor

from spos_kernels.lowbit_geometry import Geometry, Pair, geometry_of_map, rows_of_map
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

__all__ = ["lowbit_conv2d", "lowbit_conv2d_reference"]


def lowbit_conv2d(
    x: Tensor,
    weight: PackedWeight,
    *,
    x_quantizer: Quantizer | None = PLAIN,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    residual_quantizer: Quantizer | None = None,
    relu: bool = False,
    out_quantizer: Quantizer | None = None,
    keep_float: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve codes by packed codes, and make of the sums what the next layer needs. Not differentiable.

    x: uint8 codes [N, C, H, W] of x_quantizer.bits bits, or floats, which are quantized on the way; with x_quantizer
        None floats of any dtype that stay floats, see below. channels_last tensors, and slices of their channels, are
        read in place.
    weight: of shape (O, C / groups, kh, kw), from `pack_weight`; a batch normalisation goes into its scale and `bias`.
        Floats are float32, or, where its scale is float64, float64: other float32 ones are converted first.
    bias: floats [O]. residual: what is added, [N, O, H', W'], floats, or uint8 codes with `residual_quantizer`, whose
        bits are not asked for.
    out_quantizer: return the result as codes instead. keep_float: return (floats, codes).

    Returns floats [N, O, H', W'] in channels_last memory, or uint8 codes, or both. Where the weight has no scale, the
    sums S themselves, int64 (twice the sums if a zero is an odd multiple of ½), and no other option is accepted.

    The sums are exact, and the float steps have the same bits for every instruction set, method and number of threads.
    The method is chosen by measurement at the first call of a shape (`lowbit_plans`). C / groups · kh · kw is limited
    to what a sum of 32 bits holds: 65,793 at 8 by 8 bits.

    x_quantizer None: the weights alone are quantized, and made floats of x's dtype on the way: the Triton kernels do
    that with tensor cores, elsewhere it is done in plain PyTorch. The result is of x's dtype; there are no options but
    bias and relu.

    Raises TypeError or ValueError, naming the argument.
    """
    if x_quantizer is None:
        refuse(
            residual=residual,
            residual_quantizer=residual_quantizer,
            out_quantizer=out_quantizer,
            keep_float=keep_float or None,
        )
        return _weight_only(x, weight, stride, padding, dilation, groups, bias, relu, run_weight_only)
    options = (x_quantizer, stride, padding, dilation, groups, residual_quantizer, relu, out_quantizer, keep_float)
    key = shortcut_key(x, weight, bias, residual, *options)
    if key is not None and (found := weight.shortcuts.get(key)) is not None:
        return run_shortcut(found, x, weight, bias, residual)
    call = _check(x, weight, x_quantizer, stride, padding, dilation, groups, bias, residual, residual_quantizer, relu,
                  out_quantizer, keep_float)  # fmt: skip
    backend = backend_of(call)
    if backend == "reference":
        return _shaped(run_reference(call), call.geometry)
    results = _shaped(run(call, backend), call.geometry)
    if backend == "cpu":
        remember(key, call, (x, bias, residual), results)
    return results


def lowbit_conv2d_reference(
    x: Tensor,
    weight: PackedWeight,
    *,
    x_quantizer: Quantizer | None = PLAIN,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    residual_quantizer: Quantizer | None = None,
    relu: bool = False,
    out_quantizer: Quantizer | None = None,
    keep_float: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """`lowbit_conv2d` in plain PyTorch: same arguments, result to the bit, and errors."""
    if x_quantizer is None:
        refuse(
            residual=residual,
            residual_quantizer=residual_quantizer,
            out_quantizer=out_quantizer,
            keep_float=keep_float or None,
        )
        return _weight_only(x, weight, stride, padding, dilation, groups, bias, relu, run_weight_only_reference)
    call = _check(x, weight, x_quantizer, stride, padding, dilation, groups, bias, residual, residual_quantizer, relu,
                  out_quantizer, keep_float)  # fmt: skip
    return _shaped(run_reference(call), call.geometry)


def _weight_only(
    x: Tensor,
    weight: PackedWeight,
    stride: int | Pair,
    padding: int | Pair,
    dilation: int | Pair,
    groups: int,
    bias: Tensor | None,
    relu: bool,
    run: WeightOnly,
) -> Tensor:
    check_weight(weight, 4)
    check_weight_only(x, weight, bias, relu)
    geometry = geometry_of_map(x, weight, stride, padding, dilation, groups)
    y = _shaped([run(rows_of_map(x), weight, geometry, bias, relu)], geometry)
    assert isinstance(y, Tensor)
    return y


def _shaped(results: list[Tensor], geometry: Geometry) -> Tensor | tuple[Tensor, Tensor]:
    shape = (geometry.batch, geometry.out_height, geometry.out_width, geometry.groups * geometry.outputs)
    maps = [rows.view(shape).permute(0, 3, 1, 2) for rows in results]
    return maps[0] if len(maps) == 1 else (maps[0], maps[1])


def _check(
    x: Tensor,
    weight: PackedWeight,
    x_quantizer: Quantizer,
    stride: int | Pair,
    padding: int | Pair,
    dilation: int | Pair,
    groups: int,
    bias: Tensor | None,
    residual: Tensor | None,
    residual_quantizer: Quantizer | None,
    relu: bool,
    out: Quantizer | None,
    keep: bool,
) -> Call:
    check_weight(weight, 4)
    check_input(x, weight)
    geometry = geometry_of_map(x, weight, stride, padding, dilation, groups)
    shape = (geometry.batch, weight.shape[0], geometry.out_height, geometry.out_width)
    return check_call(x, weight, geometry, x_quantizer, bias, residual, residual_quantizer, relu, out, keep,
                      rows_of_map, shape)  # fmt: skip
