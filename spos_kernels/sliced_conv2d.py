"""Convolution with a slice of a larger weight, which is used in place through its strides.

    y = conv2d(x, weight[out_offset : out_offset + out_channels, in_offset : in_offset + I]),   I = x.shape[1] // groups

Supernets whose channel numbers are searched keep each weight at its largest size and train a part of it at a time. No
part is ever copied out; inside a `GradientSink`, its gradient is written where it belongs and nowhere else.

The paths of a call are those of depthwise_conv2d.py: an autograd.Function for eager calls, operators of torch.library
for everything else. Depthwise slices of 3×3 and larger run in the depthwise kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spos_kernels import _C
from spos_kernels.backends import ISA, is_autocast, is_plain, resolve_backend, threads_for
from spos_kernels.gradient_sink import Extent, GradientSink, active_sink, slice_of
from spos_kernels.layout import as_nhwc, empty_nhwc
from spos_kernels.library import register

__all__ = ["sliced_conv2d", "sliced_conv2d_reference"]

Kernel = Callable[..., Tensor]


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

    x: [N, C, H, W] float32 or float64. channels_last tensors and slices of their channels are read in place, other
        layouts are copied to channels_last first. N may be 0.
    weight: [O, I, k, k], k = 1 to 7, dtype and device of x, of any strides, read in place.
    out_channels: a multiple of groups; None for all from out_offset. With groups == C and I == 1 (depthwise, and one
        channel that is its own group) None is C.
    stride: 1 or 2. padding: 0 to k − 1 zeros on each side.

    Returns [N, out_channels, H', W'] in channels_last memory, H' = (H + 2·padding − k) // stride + 1. Differentiable
    once, in both tensors; the gradient of weight is zero outside the slice, or goes to the `GradientSink` in force if
    that has weight. Under CPU autocast, bfloat16 and float16 arguments are cast to float32, and the result is float32.
    The same bits come out for every number of threads. float64 runs in the portable kernels, which exist to check
    gradients. For double backward use the backend "reference".

    Raises TypeError (not a tensor, dtype) or ValueError (shape, slice, stride, padding, groups, device), naming the
    argument.
    """
    x, weight, outputs = _arguments(x, weight, out_channels, out_offset, groups)
    options = (outputs, out_offset, in_offset, stride, padding, groups)
    backend = resolve_backend(x)
    plain = is_plain(x, weight)
    sink = active_sink(weight)
    if sink is not None and not (plain and backend == "cpu"):
        _output_shape(x, weight, *options)
        weight = slice_of(weight, _extent(x, outputs, out_offset, in_offset, groups))
        options = (outputs, 0, 0, stride, padding, groups)
        sink = None
    if backend == "reference":
        return _reference(x, weight, *options)
    if plain:
        return _Eager.apply(x, weight, *options, backend, sink)
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
    x, weight, outputs = _arguments(x, weight, out_channels, out_offset, groups)
    return _reference(x, weight, outputs, out_offset, in_offset, stride, padding, groups)


def _arguments(
    x: Tensor, weight: Tensor, out_channels: int | None, out_offset: int, groups: int
) -> tuple[Tensor, Tensor, int]:
    """Resolve the default number of channels and autocast, which come before any choice of backend."""
    for name, tensor in (("x", x), ("weight", weight)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
        if tensor.ndim != 4:
            raise ValueError(f"{name} has shape {list(tensor.shape)}: expected 4 dimensions")
        if tensor.layout is not torch.strided:
            raise ValueError(f"{name} has layout {tensor.layout}: accepted is torch.strided")
    check_integer("groups", groups)
    check_integer("out_offset", out_offset)
    if is_autocast(x):
        x, weight = (t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in (x, weight))
    if out_channels is not None:
        check_integer("out_channels", out_channels)
        return x, weight, out_channels
    depthwise = groups == x.shape[1] and weight.shape[1] == 1
    return x, weight, x.shape[1] if depthwise else weight.shape[0] - out_offset


def check_integer(name: str, value: object) -> None:
    if not isinstance(value, int | torch.SymInt) or isinstance(value, bool):
        raise ValueError(f"{name} = {value!r}: expected an integer")


def _output_shape(
    x: Tensor, weight: Tensor, outputs: int, out_offset: int, in_offset: int, stride: int, padding: int, groups: int
) -> tuple[int, int, int, int]:
    """Check the arguments of a call and return the shape of its result."""
    batch, channels, height, width = x.shape
    rows, columns, kernel = weight.shape[:3]
    check_integer("in_offset", in_offset)
    if kernel not in range(1, 8) or weight.shape[3] != kernel:
        raise ValueError(f"weight has shape {list(weight.shape)}: expected [O, I, k, k] with k from 1 to 7")
    if channels < 1 or groups < 1 or channels % groups:
        raise ValueError(
            f"groups = {groups}: expected a divisor of {channels}, the channels of x, which are at least 1"
        )
    if outputs < 1 or outputs % groups:
        raise ValueError(f"out_channels = {outputs}: expected a positive multiple of groups, {groups}")
    if out_offset < 0 or out_offset + outputs > rows:
        raise ValueError(
            f"out_offset = {out_offset} and out_channels = {outputs}: expected a range within the {rows} rows of "
            f"weight, whose shape is {list(weight.shape)}"
        )
    if in_offset < 0 or in_offset + channels // groups > columns:
        raise ValueError(
            f"in_offset = {in_offset}: expected {channels // groups} columns from there (channels of x, {channels}, "
            f"over groups, {groups}) within the {columns} of weight"
        )
    if stride not in (1, 2) or isinstance(stride, float | bool):
        raise ValueError(f"stride = {stride!r}: accepted are 1 and 2")
    if padding not in range(kernel) or isinstance(padding, float | bool):
        raise ValueError(
            f"padding = {padding!r}: accepted are integers from 0 to {kernel - 1} for a kernel of {kernel}"
        )
    smallest = max(1, kernel - 2 * padding)
    if height < smallest or width < smallest:
        raise ValueError(
            f"x has shape {list(x.shape)}: expected H and W of at least {smallest} for kernel {kernel} and padding "
            f"{padding}"
        )
    check_tensors(x, weight)
    return batch, outputs, (height + 2 * padding - kernel) // stride + 1, (width + 2 * padding - kernel) // stride + 1


def check_tensors(x: Tensor, other: Tensor, name: str = "weight") -> None:
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x has dtype {x.dtype}: accepted are torch.float32 and torch.float64")
    if other.dtype != x.dtype:
        raise TypeError(f"{name} has dtype {other.dtype}: expected that of x, {x.dtype}")
    if other.device != x.device:
        raise ValueError(f"{name} is on {other.device}: expected the device of x, {x.device}")


def _extent(x: Tensor, outputs: int, out_offset: int, in_offset: int, groups: int) -> Extent:
    return Extent(out_offset, out_offset + outputs, in_offset, in_offset + x.shape[1] // groups)


def _reference(
    x: Tensor, weight: Tensor, outputs: int, out_offset: int, in_offset: int, stride: int, padding: int, groups: int
) -> Tensor:
    _output_shape(x, weight, outputs, out_offset, in_offset, stride, padding, groups)
    weight = _extent(x, outputs, out_offset, in_offset, groups).of(weight)
    # Under autocast the casts are made by now; the convolution itself stays in float32.
    with torch.autocast(x.device.type, enabled=False) if is_autocast(x) else nullcontext():
        return as_nhwc(F.conv2d(x, weight, stride=stride, padding=padding, groups=groups))


def _is_depthwise(inputs: int, outputs: int, kernel: int, groups: int) -> bool:
    """Whether the depthwise kernels have this shape."""
    return groups == inputs == outputs and kernel in (3, 5, 7)


# The three kernels, as functions of plain tensors. `backend` has one value so far: the argument is what makes a
# backward pass run where its forward pass ran.


def _forward(
    x: Tensor,
    weight: Tensor,
    outputs: int,
    out_offset: int,
    in_offset: int,
    stride: int,
    padding: int,
    groups: int,
    backend: str,
) -> Tensor:
    y = _forward_fake(x, weight, outputs, out_offset, in_offset, stride, padding, groups, backend)
    x, kernel = as_nhwc(x), weight.shape[-1]
    threads = threads_for(y.numel() * (x.shape[1] // groups) * kernel**2)
    if _is_depthwise(x.shape[1], outputs, kernel, groups):
        rows = weight.narrow(0, out_offset, outputs).contiguous()  # itself, if weight is contiguous
        _C.depthwise_conv2d_forward(x, rows, y, stride, padding, ISA, threads)
    else:
        _C.sliced_conv2d_forward(x, weight, None, y, out_offset, in_offset, stride, padding, groups, ISA, threads)
    return y


def _dgrad(
    dy: Tensor,
    weight: Tensor,
    inputs: int,
    height: int,
    width: int,
    out_offset: int,
    in_offset: int,
    stride: int,
    padding: int,
    groups: int,
    backend: str,
) -> Tensor:
    dx = _dgrad_fake(dy, weight, inputs, height, width, out_offset, in_offset, stride, padding, groups, backend)
    dy, kernel = as_nhwc(dy), weight.shape[-1]
    threads = threads_for(dy.numel() * (inputs // groups) * kernel**2)
    if _is_depthwise(inputs, dy.shape[1], kernel, groups):
        rows = weight.narrow(0, out_offset, inputs).contiguous()
        _C.depthwise_conv2d_dgrad(dy, rows, dx, stride, padding, ISA, threads)
    else:
        _C.sliced_conv2d_dgrad(dy, weight, dx, out_offset, in_offset, stride, padding, groups, ISA, threads)
    return dx


def _wgrad(
    x: Tensor,
    dy: Tensor,
    weight_shape: list[int],
    channels_last: bool,
    out_offset: int,
    in_offset: int,
    stride: int,
    padding: int,
    groups: int,
    backend: str,
) -> Tensor:
    dweight = _wgrad_fake(
        x, dy, weight_shape, channels_last, out_offset, in_offset, stride, padding, groups, backend
    ).zero_()
    _wgrad_into(dweight, False, x, dy, out_offset, in_offset, stride, padding, groups)
    return dweight


def _wgrad_into(
    dweight: Tensor,
    accumulate: bool,
    x: Tensor,
    dy: Tensor,
    out_offset: int,
    in_offset: int,
    stride: int,
    padding: int,
    groups: int,
) -> None:
    """Write the slice's gradient into its place in `dweight`, or add it there; touch nothing else."""
    x, dy, kernel = as_nhwc(x), as_nhwc(dy), dweight.shape[-1]
    threads = threads_for(dy.numel() * (x.shape[1] // groups) * kernel**2)
    if not _is_depthwise(x.shape[1], dy.shape[1], kernel, groups):
        _C.sliced_conv2d_wgrad(x, dy, dweight, out_offset, in_offset, stride, padding, groups, accumulate, ISA, threads)
        return
    rows = dweight.narrow(0, out_offset, dy.shape[1])
    direct = not accumulate and rows.is_contiguous()
    gradient = rows if direct else torch.empty_like(rows, memory_format=torch.contiguous_format)
    _C.depthwise_conv2d_wgrad(x, dy, gradient, stride, padding, ISA, threads)
    if not direct:
        _ = rows.add_(gradient) if accumulate else rows.copy_(gradient)


def _forward_fake(
    x: Tensor,
    weight: Tensor,
    outputs: int,
    out_offset: int,
    in_offset: int,
    stride: int,
    padding: int,
    groups: int,
    backend: str,
) -> Tensor:
    return empty_nhwc(_output_shape(x, weight, outputs, out_offset, in_offset, stride, padding, groups), like=x)


def _dgrad_fake(
    dy: Tensor,
    weight: Tensor,
    inputs: int,
    height: int,
    width: int,
    out_offset: int,
    in_offset: int,
    stride: int,
    padding: int,
    groups: int,
    backend: str,
) -> Tensor:
    return empty_nhwc((dy.shape[0], inputs, height, width), like=dy)


def _wgrad_fake(
    x: Tensor,
    dy: Tensor,
    weight_shape: list[int],
    channels_last: bool,
    out_offset: int,
    in_offset: int,
    stride: int,
    padding: int,
    groups: int,
    backend: str,
) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(weight_shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep what the gradients asked for need, and nothing else: x for wgrad, weight for dgrad."""
    x, weight, _, ctx.out_offset, ctx.in_offset, *rest, ctx.backend = inputs
    ctx.window = tuple(rest)  # stride, padding, groups
    ctx.x_shape, ctx.weight_shape = x.shape, weight.shape
    # Autograd wants a gradient in the layout of its tensor.
    ctx.channels_last = not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
    needs_dx, needs_dweight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if needs_dweight else None, weight if needs_dx else None)


def _dx(ctx: Any, dy: Tensor, weight: Tensor) -> Tensor:
    dgrad: Kernel = _dgrad if is_plain(dy, weight) else torch.ops.spos_kernels.sliced_conv2d_dgrad
    _, inputs, height, width = ctx.x_shape
    return dgrad(dy, weight, inputs, height, width, ctx.out_offset, ctx.in_offset, *ctx.window, ctx.backend)


def _dweight(ctx: Any, x: Tensor, dy: Tensor) -> Tensor:
    wgrad: Kernel = _wgrad if is_plain(x, dy) else torch.ops.spos_kernels.sliced_conv2d_wgrad
    shape = list(ctx.weight_shape)
    return wgrad(x, dy, shape, ctx.channels_last, ctx.out_offset, ctx.in_offset, *ctx.window, ctx.backend)


def check_single_backward(name: str) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(f"{name}: backend 'cpu' has no double backward (create_graph=True): use backend 'reference'")


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    check_single_backward("sliced_conv2d")
    x, weight = ctx.saved_tensors
    needs_dx, needs_dweight = ctx.needs_input_grad[:2]
    dy = as_nhwc(dy)  # once for both
    dx = _dx(ctx, dy, weight) if needs_dx else None
    dweight = _dweight(ctx, x, dy) if needs_dweight else None
    return dx, dweight, None, None, None, None, None, None, None


class _Eager(torch.autograd.Function):
    # forward takes ctx: with a separate setup_context, apply() binds the signature anew at every call.
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        outputs: int,
        out_offset: int,
        in_offset: int,
        stride: int,
        padding: int,
        groups: int,
        backend: str,
        sink: GradientSink | None,
    ) -> Tensor:
        x = as_nhwc(x)
        options = (outputs, out_offset, in_offset, stride, padding, groups)
        y = _forward(x, weight, *options, backend)
        _save(ctx, (x, weight, *options, backend), y)
        ctx.sink = sink
        if sink is not None:
            ctx.parameter, ctx.extent = weight, _extent(x, outputs, out_offset, in_offset, groups)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.sink is None:
            return *_gradients(ctx, dy), None
        check_single_backward("sliced_conv2d")
        x, weight = ctx.saved_tensors
        needs_dx, needs_dweight = ctx.needs_input_grad[:2]
        dy = as_nhwc(dy)
        dx = _dx(ctx, dy, weight) if needs_dx else None
        if needs_dweight:
            buffer, add = ctx.sink.reserve(ctx.parameter, ctx.extent)
            _wgrad_into(buffer, add, x, dy, ctx.out_offset, ctx.in_offset, *ctx.window)
        return dx, *[None] * 9


_OPTIONS = "SymInt out_offset, SymInt in_offset, int stride, int padding, SymInt groups, str backend"
register("sliced_conv2d", f"(Tensor x, Tensor weight, SymInt outputs, {_OPTIONS})", _forward, _forward_fake)
register(
    "sliced_conv2d_dgrad",
    f"(Tensor dy, Tensor weight, SymInt inputs, SymInt height, SymInt width, {_OPTIONS})",
    _dgrad,
    _dgrad_fake,
)
register(
    "sliced_conv2d_wgrad",
    f"(Tensor x, Tensor dy, SymInt[] weight_shape, bool channels_last, {_OPTIONS})",
    _wgrad,
    _wgrad_fake,
)
torch.library.register_autograd("spos_kernels::sliced_conv2d", _gradients, setup_context=_save)
