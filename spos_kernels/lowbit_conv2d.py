"""Convolution of quantized activations by packed weights, computed on integers; `lowbit_products` has the formulas."""

from __future__ import annotations

from torch import Tensor

from spos_kernels.layout import as_nhwc
from spos_kernels.lowbit_products import (
    PLAIN,
    Call,
    Geometry,
    Pair,
    Quantizer,
    backend_of,
    check_call,
    check_input,
    run,
    run_reference,
)
from spos_kernels.lowbit_shortcuts import remember, run_shortcut, shortcut_key
from spos_kernels.packing import PackedWeight, check_weight

__all__ = ["lowbit_conv2d", "lowbit_conv2d_reference"]


def lowbit_conv2d(
    x: Tensor,
    weight: PackedWeight,
    *,
    x_quantizer: Quantizer = PLAIN,
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

    x: uint8 codes [N, C, H, W] of x_quantizer.bits bits, or floats, which are quantized on the way. channels_last
        tensors, and slices of their channels, are read in place.
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

    Raises TypeError or ValueError, naming the argument.
    """
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
    x_quantizer: Quantizer = PLAIN,
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
    call = _check(x, weight, x_quantizer, stride, padding, dilation, groups, bias, residual, residual_quantizer, relu,
                  out_quantizer, keep_float)  # fmt: skip
    return _shaped(run_reference(call), call.geometry)


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
    if x.ndim != 4:
        raise ValueError(f"x has shape {list(x.shape)}: expected [N, C, H, W]")
    pairs = [
        _pair(value, name, least)
        for value, name, least in ((stride, "stride", 1), (padding, "padding", 0), (dilation, "dilation", 1))
    ]
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"groups = {groups!r}: expected a divisor of the weight's {weight.shape[0]} outputs")
    batch, channels, height, width = x.shape
    if channels != groups * weight.shape[1]:
        raise ValueError(f"x has {channels} channels: expected {groups * weight.shape[1]} for weight and groups")
    if height < 1 or width < 1:
        raise ValueError(f"x has shape {list(x.shape)}: expected H and W of at least 1")
    kernel = (weight.shape[2], weight.shape[3])
    out_size = [
        (size + 2 * pairs[1][i] - pairs[2][i] * (kernel[i] - 1) - 1) // pairs[0][i] + 1
        for i, size in enumerate((height, width))
    ]
    if min(out_size) < 1:
        raise ValueError(f"x has shape {list(x.shape)}: expected a map that the kernel {list(kernel)} fits in")
    geometry = Geometry(batch, height, width, out_size[0], out_size[1], groups, weight.shape[1],
                        weight.shape[0] // groups, kernel, pairs[0], pairs[1], pairs[2])  # fmt: skip
    shape = (batch, weight.shape[0], *out_size)
    return check_call(x, weight, geometry, x_quantizer, bias, residual, residual_quantizer, relu, out, keep,
                      rows_of_map, shape)  # fmt: skip


def rows_of_map(x: Tensor) -> Tensor:
    """Return a map as rows of pixels, [N·H·W, C] with adjacent channels: a view where the strides allow it."""
    pixels = as_nhwc(x).permute(0, 2, 3, 1)
    batch, height, width, channels = pixels.shape
    try:
        rows = pixels.view(batch * height * width, channels)
    except RuntimeError:
        rows = pixels.reshape(batch * height * width, channels)
    return rows if channels == 1 or rows.stride(1) == 1 else rows.contiguous()


def _pair(value: int | Pair, name: str, least: int) -> Pair:
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or not least <= n < 2**31 for n in pair):
        raise ValueError(f"{name} = {value!r}: expected an integer from {least}, or a pair of them")
    return pair
