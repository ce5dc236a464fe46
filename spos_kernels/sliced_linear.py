"""Linear layer with a slice of a larger weight, which is used in place through its strides.

    y = x · weight[out_offset : out_offset + O, in_offset : in_offset + I]ᵀ + bias[out_offset : out_offset + O]

The kernels are those of sliced_conv2d.py, which take matrices for maps of one pixel.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spos_kernels import _C
from spos_kernels.backends import GPU, ISA, is_autocast, is_plain, resolve_backend, threads_for
from spos_kernels.cuda import sliced_conv2d as cuda
from spos_kernels.gradient_sink import Extent, GradientSink, active_sink, slice_of
from spos_kernels.library import register
from spos_kernels.sliced_arguments import check_integer, check_single_backward, check_tensors

__all__ = ["sliced_linear", "sliced_linear_reference"]


def sliced_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int | None = None,
    out_offset: int = 0,
    in_offset: int = 0,
) -> Tensor:
    """Apply weight[out_offset : out_offset + out_features, in_offset : in_offset + I] and the same rows of bias to `x`.

    x: [..., I] float32 or float64, on the CUDA backends float32, float16 or bfloat16; I at least 1. weight: [O, J] of
    any strides, read in place. bias: [O] or None. All of the dtype and device of x. out_features: None for all rows
    from out_offset.

    Returns [..., out_features]. Differentiable once, in all tensors; gradients of weight and bias are zero outside the
    slice, or go to the `GradientSink` in force if that has them. Autocast, TF32, threads, float64 and double backward
    are as in `sliced_conv2d`.

    Raises TypeError (not a tensor, dtype) or ValueError (shape, slice, device), naming the argument.
    """
    x, weight, bias, outputs = _arguments(x, weight, bias, out_features, out_offset)
    _check(x, weight, bias, outputs, out_offset, in_offset)
    backend = resolve_backend(x, compiled=("cpu", *GPU))
    _check_tensors(x, weight, bias, backend)
    plain = is_plain(x, weight, *(() if bias is None else (bias,)))
    weight_sink, bias_sink = active_sink(weight), None if bias is None else active_sink(bias)
    if (weight_sink or bias_sink) and (not plain or backend == "reference"):
        weight = slice_of(weight, _extent(x, outputs, out_offset, in_offset))
        bias = None if bias is None else slice_of(bias, Extent(out_offset, out_offset + outputs, 0, 1))
        out_offset = in_offset = 0
    if backend == "reference":
        return _reference(x, weight, bias, outputs, out_offset, in_offset)
    rows = x.reshape(-1, x.shape[-1])
    if plain:
        y = _Eager.apply(rows, weight, bias, outputs, out_offset, in_offset, backend, weight_sink, bias_sink)
    else:
        y = torch.ops.spos_kernels.sliced_linear(rows, weight, bias, outputs, out_offset, in_offset, backend)
    return y.view(*x.shape[:-1], outputs)


def sliced_linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out_features: int | None = None,
    out_offset: int = 0,
    in_offset: int = 0,
) -> Tensor:
    """`sliced_linear` in plain PyTorch: same arguments, result and errors, on every device, differentiable twice."""
    x, weight, bias, outputs = _arguments(x, weight, bias, out_features, out_offset)
    _check(x, weight, bias, outputs, out_offset, in_offset)
    _check_tensors(x, weight, bias, "reference")
    return _reference(x, weight, bias, outputs, out_offset, in_offset)


def _arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int | None, out_offset: int
) -> tuple[Tensor, Tensor, Tensor | None, int]:
    """Resolve the default number of features and autocast, which come before any choice of backend."""
    for name, tensor, dimensions in (("x", x, 0), ("weight", weight, 2), ("bias", bias, 1)):
        if name == "bias" and tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
        if tensor.ndim < 1 or (dimensions and tensor.ndim != dimensions):
            expected = (
                f"{dimensions} dimension{'s' if dimensions > 1 else ''}" if dimensions else "at least 1 dimension"
            )
            raise ValueError(f"{name} has shape {list(tensor.shape)}: expected {expected}")
        if tensor.layout is not torch.strided:
            raise ValueError(f"{name} has layout {tensor.layout}: accepted is torch.strided")
    check_integer("out_offset", out_offset)
    if is_autocast(x):
        x, weight = _float(x), _float(weight)
        bias = None if bias is None else _float(bias)
    if out_features is None:
        return x, weight, bias, weight.shape[0] - out_offset
    check_integer("out_features", out_features)
    return x, weight, bias, out_features


def _float(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, outputs: int, out_offset: int, in_offset: int) -> None:
    check_integer("in_offset", in_offset)
    rows, columns = weight.shape
    features = x.shape[-1]
    if features < 1:
        raise ValueError(f"x has shape {list(x.shape)}: expected at least 1 feature")
    if outputs < 1 or out_offset < 0 or out_offset + outputs > rows:
        raise ValueError(
            f"out_offset = {out_offset} and out_features = {outputs}: expected at least 1 of the {rows} rows of weight"
        )
    if in_offset < 0 or in_offset + features > columns:
        raise ValueError(
            f"in_offset = {in_offset}: expected {features} columns from there (the features of x) within the {columns} "
            f"of weight, whose shape is {list(weight.shape)}"
        )
    if bias is not None and bias.shape[0] != rows:
        raise ValueError(f"bias has shape {list(bias.shape)}: expected [{rows}], one for each row of weight")


def _check_tensors(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> None:
    check_tensors(x, weight, backend)
    if bias is not None:
        check_tensors(x, bias, backend, "bias")


def _extent(x: Tensor, outputs: int, out_offset: int, in_offset: int) -> Extent:
    return Extent(out_offset, out_offset + outputs, in_offset, in_offset + x.shape[-1])


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None, outputs: int, out_offset: int, in_offset: int) -> Tensor:
    weight = _extent(x, outputs, out_offset, in_offset).of(weight)
    bias = None if bias is None else bias.narrow(0, out_offset, outputs)
    # Under autocast the casts are made by now; the product itself stays in float32.
    with torch.autocast(x.device.type, enabled=False) if is_autocast(x) else nullcontext():
        return F.linear(x, weight, bias)


def _as_rows(x: Tensor) -> Tensor:
    """Return `x` itself if the elements of its rows are adjacent in memory, else a contiguous copy."""
    return x if x.stride(1) == 1 or x.shape[1] == 1 else x.contiguous()


# The three kernels, as functions of plain matrices; see sliced_conv2d.py for `backend`.


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, outputs: int, out_offset: int, in_offset: int, backend: str
) -> Tensor:
    x, bias = _as_rows(x), None if bias is None else bias.contiguous()
    y, options = x.new_empty((x.shape[0], outputs)), _options(out_offset, in_offset)
    if backend in GPU:
        cuda.forward(x, weight, bias, y, options, backend)
    else:
        _C.sliced_conv2d_forward(x, weight, bias, y, *options, ISA, threads_for(y.numel() * x.shape[1]))
    return y


def _dgrad(dy: Tensor, weight: Tensor, inputs: int, out_offset: int, in_offset: int, backend: str) -> Tensor:
    dy = _as_rows(dy)
    dx, options = dy.new_empty((dy.shape[0], inputs)), _options(out_offset, in_offset)
    if backend in GPU:
        cuda.dgrad(dy, weight, dx, options, backend)
    else:
        _C.sliced_conv2d_dgrad(dy, weight, dx, *options, ISA, threads_for(dy.numel() * inputs))
    return dx


def _wgrad(x: Tensor, dy: Tensor, rows: int, columns: int, out_offset: int, in_offset: int, backend: str) -> Tensor:
    dweight = x.new_zeros((rows, columns))
    _wgrad_into(dweight, False, x, dy, out_offset, in_offset, backend)
    return dweight


def _wgrad_into(
    dweight: Tensor, accumulate: bool, x: Tensor, dy: Tensor, out_offset: int, in_offset: int, backend: str
) -> None:
    x, dy, options = _as_rows(x), _as_rows(dy), _options(out_offset, in_offset)
    if backend in GPU:
        cuda.wgrad(x, dy, dweight, options, accumulate, backend)
    else:
        threads = threads_for(dy.numel() * x.shape[1])
        _C.sliced_conv2d_wgrad(x, dy, dweight, *options, accumulate, ISA, threads)


def _options(out_offset: int, in_offset: int) -> tuple[int, int, int, int, int]:
    """Those of a 1×1 convolution."""
    return out_offset, in_offset, 1, 0, 1


def _forward_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, outputs: int, out_offset: int, in_offset: int, backend: str
) -> Tensor:
    return x.new_empty((x.shape[0], outputs))


def _dgrad_fake(dy: Tensor, weight: Tensor, inputs: int, out_offset: int, in_offset: int, backend: str) -> Tensor:
    return dy.new_empty((dy.shape[0], inputs))


def _wgrad_fake(
    x: Tensor, dy: Tensor, rows: int, columns: int, out_offset: int, in_offset: int, backend: str
) -> Tensor:
    return x.new_empty((rows, columns))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep what the gradients asked for need, and nothing else: x for wgrad, weight for dgrad."""
    x, weight, _, ctx.outputs, ctx.out_offset, ctx.in_offset, ctx.backend = inputs
    ctx.features, ctx.weight_shape = x.shape[1], weight.shape
    needs_dx, needs_dweight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if needs_dweight else None, weight if needs_dx else None)


def _dx(ctx: Any, dy: Tensor, weight: Tensor) -> Tensor:
    dgrad: Any = _dgrad if is_plain(dy, weight) else torch.ops.spos_kernels.sliced_linear_dgrad
    return dgrad(dy, weight, ctx.features, ctx.out_offset, ctx.in_offset, ctx.backend)


def _dweight(ctx: Any, x: Tensor, dy: Tensor) -> Tensor:
    wgrad: Any = _wgrad if is_plain(x, dy) else torch.ops.spos_kernels.sliced_linear_wgrad
    return wgrad(x, dy, *ctx.weight_shape, ctx.out_offset, ctx.in_offset, ctx.backend)


def _dbias(ctx: Any, dy: Tensor) -> Tensor:
    behind = ctx.weight_shape[0] - ctx.out_offset - ctx.outputs
    return F.pad(dy.sum(0), (ctx.out_offset, behind))


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    check_single_backward("sliced_linear", ctx.backend)
    x, weight = ctx.saved_tensors
    needs_dx, needs_dweight, needs_dbias = ctx.needs_input_grad[:3]
    dx = _dx(ctx, dy, weight) if needs_dx else None
    dweight = _dweight(ctx, x, dy) if needs_dweight else None
    dbias = _dbias(ctx, dy) if needs_dbias else None
    return dx, dweight, dbias, None, None, None, None


class _Eager(torch.autograd.Function):
    # forward takes ctx: with a separate setup_context, apply() binds the signature anew at every call.
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        outputs: int,
        out_offset: int,
        in_offset: int,
        backend: str,
        weight_sink: GradientSink | None,
        bias_sink: GradientSink | None,
    ) -> Tensor:
        y = _forward(x, weight, bias, outputs, out_offset, in_offset, backend)
        _save(ctx, (x, weight, bias, outputs, out_offset, in_offset, backend), y)
        ctx.weight_sink, ctx.bias_sink = weight_sink, bias_sink
        ctx.weight, ctx.bias = weight if weight_sink else None, bias if bias_sink else None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        check_single_backward("sliced_linear", ctx.backend)
        x, weight = ctx.saved_tensors
        needs_dx, needs_dweight, needs_dbias = ctx.needs_input_grad[:3]
        dy = _as_rows(dy)
        dx = _dx(ctx, dy, weight) if needs_dx else None
        dweight = dbias = None
        if needs_dweight and ctx.weight_sink is None:
            dweight = _dweight(ctx, x, dy)
        elif needs_dweight:
            buffer, add = ctx.weight_sink.reserve(ctx.weight, _extent(x, ctx.outputs, ctx.out_offset, ctx.in_offset))
            _wgrad_into(buffer, add, x, dy, ctx.out_offset, ctx.in_offset, ctx.backend)
        if needs_dbias and ctx.bias_sink is None:
            dbias = _dbias(ctx, dy)
        elif needs_dbias:
            extent = Extent(ctx.out_offset, ctx.out_offset + ctx.outputs, 0, 1)
            ctx.bias_sink.accumulate(ctx.bias, extent, dy.sum(0))
        return dx, dweight, dbias, *[None] * 6


_OPTIONS = "SymInt out_offset, SymInt in_offset, str backend"
register(
    "sliced_linear", f"(Tensor x, Tensor weight, Tensor? bias, SymInt outputs, {_OPTIONS})", _forward, _forward_fake
)
register("sliced_linear_dgrad", f"(Tensor dy, Tensor weight, SymInt inputs, {_OPTIONS})", _dgrad, _dgrad_fake)
register("sliced_linear_wgrad", f"(Tensor x, Tensor dy, SymInt rows, SymInt columns, {_OPTIONS})", _wgrad, _wgrad_fake)
torch.library.register_autograd("spos_kernels::sliced_linear", _gradients, setup_context=_save)
