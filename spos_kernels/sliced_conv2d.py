"""Convolution with a slice of a larger weight, which is used in place through its strides.

    y = conv2d(x, weight[out_offset : out_offset + out_channels, in_offset : in_offset + I]),   I = x.shape[1] // groups

Supernets whose channel numbers are searched keep each weight at its largest size and train a part of it at a time. The
kernels read that part in its place, packing it block by block as any matrix product does; there is no sliced tensor.
Inside a `GradientSink`, its gradient is written where it belongs and nowhere else.

The paths of a call are those of depthwise_conv2d.py: an autograd.Function for eager calls, operators of torch.library
for everything else. Depthwise slices of 3×3, 5×5 and 7×7 run in the depthwise kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spos_kernels import _C
from spos_kernels.backends import GPU, ISA, is_autocast, is_plain, resolve_backend, threads_for
from spos_kernels.cuda import depthwise_conv2d as depthwise_cuda
from spos_kernels.cuda import sliced_conv2d as cuda
from spos_kernels.gradient_sink import Extent, GradientSink, active_sink, slice_of
from spos_kernels.layout import as_nhwc, empty_nhwc, nhwc_strides
from spos_kernels.library import register
from spos_kernels.sliced_arguments import check_single_backward, check_tensors, conv2d_arguments, output_shape

__all__ = ["sliced_conv2d", "sliced_conv2d_reference"]


def sliced_conv2d(
    x: Tensor,
    weight: Tensor,
    *,
    out_channels: int | None = None,
    out_offset: int = 0,
    in_offset: int = 0,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Tensor:
    """Convolve `x` with weight[out_offset : out_offset + out_channels, in_offset : in_offset + C // groups], no bias.

    x: [N, C, H, W] float32 or float64; on the CUDA backends float32, float16 or bfloat16, sums in float32.
        channels_last tensors and slices of their channels are read in place, other layouts are copied to channels_last
        first. N may be 0.
    weight: [O, I, k, k], k = 1 to 7, dtype and device of x, of any strides, read in place.
    out_channels: a multiple of groups; None for all from out_offset. With groups == C and I == 1 (depthwise, and one
        channel that is its own group) None is C.
    stride: 1 or 2. padding: 0 to k − 1 zeros on each side.

    Returns [N, out_channels, H', W'] in channels_last memory, H' = (H + 2·padding − k) // stride + 1. Differentiable
    once, in both tensors; the gradient of weight is zero outside the slice, or goes to the `GradientSink` in force if
    that has weight. Under CPU autocast, bfloat16 and float16 arguments are cast to float32, and the result is float32.
    The same bits come out for every number of threads, and of every run on a GPU, where float32 operands are rounded to
    TF32 only if torch.backends.cuda.matmul.allow_tf32 is set. float64 runs in the portable kernels, which exist to
    check gradients. For double backward use the backend "reference".

    Raises TypeError (not a tensor, dtype) or ValueError (shape, slice, stride, padding, groups, device), naming the
    argument.
    """
    x, weight, outputs = conv2d_arguments(x, weight, out_channels, out_offset, groups)
    options = (outputs, out_offset, in_offset, stride, padding, groups)
    backend = resolve_backend(x, compiled=("cpu", *GPU))
    sink = active_sink(weight)
    if backend != "reference" and is_plain(x, weight):
        check_tensors(x, weight, backend)
        return _Eager.apply(x, weight, _plan(x.shape, weight.shape, *options), backend, sink)
    if sink is not None:
        output_shape(x.shape, weight.shape, *options)
        weight = slice_of(weight, _extent(x.shape, *options))
        options = (outputs, 0, 0, stride, padding, groups)
    if backend == "reference":
        return _reference(x, weight, *options)
    return torch.ops.spos_kernels.sliced_conv2d(x, weight, *options, backend)


def sliced_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    *,
    out_channels: int | None = None,
    out_offset: int = 0,
    in_offset: int = 0,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
) -> Tensor:
    """`sliced_conv2d` in plain PyTorch: same arguments, result and errors, on every device, differentiable twice."""
    x, weight, outputs = conv2d_arguments(x, weight, out_channels, out_offset, groups)
    return _reference(x, weight, outputs, out_offset, in_offset, stride, padding, groups)


def _extent(
    x_shape: Sequence[int], outputs: int, out_offset: int, in_offset: int, stride: int, padding: int, groups: int
) -> Extent:
    return Extent(out_offset, out_offset + outputs, in_offset, in_offset + x_shape[1] // groups)


def _reference(x: Tensor, weight: Tensor, *options: int) -> Tensor:
    check_tensors(x, weight, "reference")
    output_shape(x.shape, weight.shape, *options)
    weight = _extent(x.shape, *options).of(weight)
    *_, stride, padding, groups = options
    # Under autocast the casts are made by now; the convolution itself stays in float32.
    with torch.autocast(x.device.type, enabled=False) if is_autocast(x) else nullcontext():
        return as_nhwc(F.conv2d(x, weight, stride=stride, padding=padding, groups=groups))


class _Plan:
    """What follows from the sizes of a call. Looked up, since checking them takes longer than small kernels do."""

    def __init__(self, x_shape: torch.Size, weight_shape: torch.Size, *options: int) -> None:
        self.x_shape, self.weight_shape, self.options = x_shape, weight_shape, options
        self.y_shape = output_shape(x_shape, weight_shape, *options)
        self.x_strides, self.y_strides = nhwc_strides(x_shape), nhwc_strides(self.y_shape)
        self.extent = _extent(x_shape, *options)
        self.outputs, self.out_offset, in_offset, self.stride, self.padding, groups = options
        self.slice = (self.out_offset, in_offset, self.stride, self.padding, groups)  # in the extension's order
        inputs, kernel = x_shape[1], weight_shape[3]
        self.multiply_adds = torch.Size(self.y_shape).numel() * (inputs // groups) * kernel**2
        self.depthwise = groups == inputs == self.outputs and kernel in (3, 5, 7)
        self.depthwise_on_cpu = self.depthwise and weight_shape[1] == 1  # those kernels take contiguous weights

    def forward(self, x: Tensor, weight: Tensor, backend: str) -> Tensor:
        """x, and dy below, has adjacent channels."""
        y = x.new_empty_strided(self.y_shape, self.y_strides)
        if backend in GPU and self.depthwise:
            depthwise_cuda.forward(x, self.extent.of(weight), y, self.stride, self.padding, backend)
        elif backend in GPU:
            cuda.forward(x, weight, None, y, self.slice, backend)
        elif self.depthwise_on_cpu:
            rows = self.extent.of(weight).contiguous()  # itself, but for strange layouts
            _C.depthwise_conv2d_forward(x, rows, y, self.stride, self.padding, ISA, threads_for(self.multiply_adds))
        else:
            _C.sliced_conv2d_forward(x, weight, None, y, *self.slice, ISA, threads_for(self.multiply_adds))
        return y

    def dgrad(self, dy: Tensor, weight: Tensor, backend: str) -> Tensor:
        dx = dy.new_empty_strided(self.x_shape, self.x_strides)
        if backend in GPU and self.depthwise:
            depthwise_cuda.dgrad(dy, self.extent.of(weight), dx, self.stride, self.padding, backend)
        elif backend in GPU:
            cuda.dgrad(dy, weight, dx, self.slice, backend)
        elif self.depthwise_on_cpu:
            rows = self.extent.of(weight).contiguous()
            _C.depthwise_conv2d_dgrad(dy, rows, dx, self.stride, self.padding, ISA, threads_for(self.multiply_adds))
        else:
            _C.sliced_conv2d_dgrad(dy, weight, dx, *self.slice, ISA, threads_for(self.multiply_adds))
        return dx

    def wgrad(self, x: Tensor, dy: Tensor, dweight: Tensor, accumulate: bool, backend: str) -> None:
        """Write the slice's gradient into its place in `dweight`, or add it there; touch nothing else."""
        if backend in GPU and self.depthwise:
            rows = self.extent.of(dweight)
            depthwise_cuda.wgrad(x, dy, rows, self.stride, self.padding, accumulate, backend)
        elif backend in GPU:
            cuda.wgrad(x, dy, dweight, self.slice, accumulate, backend)
        elif self.depthwise_on_cpu:
            self._depthwise_wgrad(x, dy, self.extent.of(dweight), accumulate)
        else:
            threads = threads_for(self.multiply_adds)
            _C.sliced_conv2d_wgrad(x, dy, dweight, *self.slice, accumulate, ISA, threads)

    def _depthwise_wgrad(self, x: Tensor, dy: Tensor, rows: Tensor, accumulate: bool) -> None:
        """On the CPU the depthwise kernel overwrites a contiguous gradient."""
        direct = not accumulate and rows.is_contiguous()
        gradient = rows if direct else torch.empty_like(rows, memory_format=torch.contiguous_format)
        threads = threads_for(self.multiply_adds)
        _C.depthwise_conv2d_wgrad(x, dy, gradient, self.stride, self.padding, ISA, threads)
        if not direct:
            _ = rows.add_(gradient) if accumulate else rows.copy_(gradient)


_plan = lru_cache(maxsize=4096, typed=True)(_Plan)


# The three kernels as functions of plain tensors, for torch.library. `backend` makes a backward pass run where its
# forward pass ran. options: those of sliced_conv2d.


def _forward(x: Tensor, weight: Tensor, *options_and_backend: Any) -> Tensor:
    *options, backend = options_and_backend
    check_tensors(x, weight, backend)
    return _plan(x.shape, weight.shape, *options).forward(as_nhwc(x), weight, backend)


def _dgrad(dy: Tensor, weight: Tensor, x_shape: Sequence[int], *options_and_backend: Any) -> Tensor:
    *options, backend = options_and_backend
    return _plan(torch.Size(x_shape), weight.shape, *options).dgrad(as_nhwc(dy), weight, backend)


def _wgrad(
    x: Tensor, dy: Tensor, weight_shape: Sequence[int], channels_last: bool, *options_and_backend: Any
) -> Tensor:
    dweight = _wgrad_fake(x, dy, weight_shape, channels_last).zero_()
    *options, backend = options_and_backend
    _plan(x.shape, torch.Size(weight_shape), *options).wgrad(as_nhwc(x), as_nhwc(dy), dweight, False, backend)
    return dweight


def _forward_fake(x: Tensor, weight: Tensor, *options_and_backend: Any) -> Tensor:
    *options, backend = options_and_backend
    check_tensors(x, weight, backend)
    return empty_nhwc(output_shape(x.shape, weight.shape, *options), like=x)


def _dgrad_fake(dy: Tensor, weight: Tensor, x_shape: Sequence[int], *_: Any) -> Tensor:
    return empty_nhwc(x_shape, like=dy)


def _wgrad_fake(x: Tensor, dy: Tensor, weight_shape: Sequence[int], channels_last: bool, *_: Any) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(weight_shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep what the gradients asked for need, and nothing else: x for wgrad, weight for dgrad."""
    x, weight, *ctx.options_and_backend = inputs
    ctx.x_shape, ctx.weight_shape = x.shape, weight.shape
    ctx.channels_last = _is_channels_last(weight)
    needs_dx, needs_dweight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if needs_dweight else None, weight if needs_dx else None)


def _is_channels_last(weight: Tensor) -> bool:
    """Whether autograd wants this layout of the gradient: that of its tensor."""
    return not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    check_single_backward("sliced_conv2d", ctx.options_and_backend[-1])
    x, weight = ctx.saved_tensors
    dx, dweight = _gradients_by_operators(
        x, weight, dy, ctx.needs_input_grad, ctx.x_shape, ctx.weight_shape, ctx.channels_last, ctx.options_and_backend
    )
    return dx, dweight, *[None] * len(ctx.options_and_backend)


def _gradients_by_operators(
    x: Tensor,
    weight: Tensor,
    dy: Tensor,
    needed: Sequence[bool],
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    channels_last: bool,
    options_and_backend: Sequence[Any],
) -> tuple[Tensor | None, Tensor | None]:
    operators = torch.ops.spos_kernels
    dy = as_nhwc(dy)  # once for both
    dx = operators.sliced_conv2d_dgrad(dy, weight, x_shape, *options_and_backend) if needed[0] else None
    dweight = (
        operators.sliced_conv2d_wgrad(x, dy, weight_shape, channels_last, *options_and_backend) if needed[1] else None
    )
    return dx, dweight


class _Eager(torch.autograd.Function):
    # forward takes ctx: with a separate setup_context, apply() binds the signature anew at every call. Few arguments:
    # every one costs time.
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, plan: _Plan, backend: str, sink: GradientSink | None) -> Tensor:
        x = as_nhwc(x)
        ctx.plan, ctx.backend, ctx.sink = plan, backend, sink
        needs_dx, needs_dweight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if needs_dweight else None, weight if needs_dx else None)
        if sink is not None:
            ctx.parameter = weight
        ctx.channels_last = _is_channels_last(weight)
        return plan.forward(x, weight, backend)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        check_single_backward("sliced_conv2d", ctx.backend)
        x, weight = ctx.saved_tensors
        needs_dx, needs_dweight = ctx.needs_input_grad[:2]
        plan, sink = ctx.plan, ctx.sink
        if not is_plain(dy):  # the others were
            dx, dweight = _gradients_by_operators(
                x,
                weight,
                dy,
                ctx.needs_input_grad,
                plan.x_shape,
                plan.weight_shape,
                ctx.channels_last,
                (*plan.options, ctx.backend),
            )
            if sink is not None and dweight is not None:
                sink.accumulate(ctx.parameter, plan.extent, plan.extent.of(dweight))
                dweight = None
            return dx, dweight, None, None, None
        dy = as_nhwc(dy)
        dx = plan.dgrad(dy, weight, ctx.backend) if needs_dx else None
        dweight = None
        if needs_dweight and sink is not None:
            buffer, add = sink.reserve(ctx.parameter, plan.extent)
            plan.wgrad(x, dy, buffer, add, ctx.backend)
        elif needs_dweight:
            dweight = _wgrad_fake(x, dy, plan.weight_shape, ctx.channels_last).zero_()
            plan.wgrad(x, dy, dweight, False, ctx.backend)
        return dx, dweight, None, None, None


_OPTIONS = "SymInt outputs, SymInt out_offset, SymInt in_offset, int stride, int padding, SymInt groups, str backend"
register("sliced_conv2d", f"(Tensor x, Tensor weight, {_OPTIONS})", _forward, _forward_fake)
register("sliced_conv2d_dgrad", f"(Tensor dy, Tensor weight, SymInt[] x_shape, {_OPTIONS})", _dgrad, _dgrad_fake)
register(
    "sliced_conv2d_wgrad",
    f"(Tensor x, Tensor dy, SymInt[] weight_shape, bool channels_last, {_OPTIONS})",
    _wgrad,
    _wgrad_fake,
)
torch.library.register_autograd("spos_kernels::sliced_conv2d", _gradients, setup_context=_save)
