"""Depthwise 2-d convolution: one k×k filter a channel, no bias.

    y[n, c, i, j] = Σ_{a, b} weight[c, 0, a, b] · x[n, c, i·stride − padding + a, j·stride − padding + b]

An eager call on plain tensors goes through an autograd.Function straight to the extension. Everything else that torch
may do with a call (compile, export, fake tensors, torch.func, dispatch modes, subclasses) goes through the same three
functions as operators of torch.library.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spos_kernels import _C
from spos_kernels.backends import (
    GPU,
    ISA,
    float_dtypes,
    is_autocast,
    is_plain,
    names_of,
    resolve_backend,
    threads_for,
)
from spos_kernels.cuda import depthwise_conv2d as cuda
from spos_kernels.layout import as_nhwc, empty_nhwc
from spos_kernels.library import register

__all__ = ["DepthwiseConv2d", "depthwise_conv2d", "depthwise_conv2d_reference"]


def depthwise_conv2d(x: Tensor, weight: Tensor, *, stride: int = 1, padding: int | None = None) -> Tensor:
    """Convolve every channel of `x` with its own filter. Differentiable once, in both tensors.

    x: [N, C, H, W] float32 or float64; on the CUDA backends float32, float16 or bfloat16, sums in float32.
        channels_last tensors and slices of their channels are read in place, other layouts are copied to channels_last
        first. N may be 0.
    weight: [C, 1, k, k], k = 3, 5 or 7, dtype and device of x.
    stride: 1 or 2. padding: 0 to k − 1 zeros on each side, None for k // 2.

    Returns [N, C, H', W'] in channels_last memory, H' = (H + 2·padding − k) // stride + 1. Under CPU autocast, bfloat16
    and float16 arguments are cast to float32, and the result is float32. The same bits come out for every number of
    threads, and of every run on a GPU. float64 runs in the portable kernels, which exist to check gradients. For double
    backward use the backend "reference".

    Raises TypeError (not a tensor, dtype) or ValueError (shape, stride, padding, device), naming the argument.
    """
    x, weight, padding = _arguments(x, weight, padding)
    backend = resolve_backend(x, compiled=("cpu", *GPU))
    if backend == "reference":
        return _reference(x, weight, stride, padding)
    if is_plain(x, weight):
        return _Eager.apply(x, weight, stride, padding, backend)
    return torch.ops.spos_kernels.depthwise_conv2d(x, weight, stride, padding, backend)


def depthwise_conv2d_reference(x: Tensor, weight: Tensor, *, stride: int = 1, padding: int | None = None) -> Tensor:
    """`depthwise_conv2d` in plain PyTorch: same arguments, result and errors, on every device, differentiable twice."""
    x, weight, padding = _arguments(x, weight, padding)
    return _reference(x, weight, stride, padding)


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d(channels, channels, kernel_size, stride, padding, groups=channels, bias=False)` on `depthwise_conv2d`.

    It has the same parameter, key and initialisation. kernel_size: 3, 5 or 7; stride: 1 or 2; padding: None for
    kernel_size // 2. Input [N, channels, H, W].
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if kernel_size not in (3, 5, 7):
            raise ValueError(f"kernel_size = {kernel_size!r}: accepted are 3, 5 and 7")
        self._options: dict[str, Any] = {
            "kernel_size": kernel_size,
            "stride": stride,
            "padding": kernel_size // 2 if padding is None else padding,
        }
        super().__init__(channels, channels, **self._options, groups=channels, bias=False, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        return depthwise_conv2d(input, self.weight, stride=self._options["stride"], padding=self._options["padding"])

    def plain(self) -> nn.Conv2d:
        """Return an nn.Conv2d that computes the same and shares this module's weight Parameter."""
        with torch.device("meta"):
            conv = nn.Conv2d(self.in_channels, self.out_channels, **self._options, groups=self.groups, bias=False)
        conv.weight = self.weight
        return conv.train(self.training)


def _arguments(x: Tensor, weight: Tensor, padding: int | None) -> tuple[Tensor, Tensor, int]:
    """Resolve the default padding and autocast, which come before any choice of backend."""
    for name, tensor in (("x", x), ("weight", weight)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
        if tensor.ndim != 4:
            raise ValueError(f"{name} has shape {list(tensor.shape)}: expected 4 dimensions")
        if tensor.layout is not torch.strided:
            raise ValueError(f"{name} has layout {tensor.layout}: accepted is torch.strided")
    if is_autocast(x):
        x, weight = (t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in (x, weight))
    return x, weight, weight.shape[-1] // 2 if padding is None else padding


def _output_shape(
    x: Tensor, weight: Tensor, stride: int, padding: int, backend: str = "reference"
) -> tuple[int, int, int, int]:
    """Check the arguments of a call and return the shape of its result."""
    batch, channels, height, width = x.shape
    kernel = weight.shape[-1]
    if kernel not in (3, 5, 7) or channels < 1 or tuple(weight.shape) != (channels, 1, kernel, kernel):
        raise ValueError(
            f"weight has shape {list(weight.shape)}: expected [C, 1, k, k] with C = {channels}, the channels of x, "
            "at least 1, and k = 3, 5 or 7"
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
    if x.dtype not in (accepted := float_dtypes(backend)):
        raise TypeError(f"x has dtype {x.dtype}: accepted are {names_of(accepted)}")
    if weight.dtype != x.dtype:
        raise TypeError(f"weight has dtype {weight.dtype}: expected that of x, {x.dtype}")
    if weight.device != x.device:
        raise ValueError(f"weight is on {weight.device}: expected the device of x, {x.device}")
    return batch, channels, (height + 2 * padding - kernel) // stride + 1, (width + 2 * padding - kernel) // stride + 1


def _reference(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    _output_shape(x, weight, stride, padding)
    # Under autocast the casts are made by now; the convolution itself stays in float32.
    with torch.autocast(x.device.type, enabled=False) if is_autocast(x) else nullcontext():
        return as_nhwc(F.conv2d(x, weight, stride=stride, padding=padding, groups=x.shape[1]))


# The three kernels, as functions of plain tensors. `backend` makes a backward pass run where its forward pass ran.


def _forward(x: Tensor, weight: Tensor, stride: int, padding: int, backend: str) -> Tensor:
    y = _forward_fake(x, weight, stride, padding, backend)
    if backend in GPU:
        cuda.forward(as_nhwc(x), weight, y, stride, padding, backend)
        return y
    threads = threads_for(y.numel() * weight.shape[-1] ** 2)
    _C.depthwise_conv2d_forward(as_nhwc(x), weight.contiguous(), y, stride, padding, ISA, threads)
    return y


def _dgrad(dy: Tensor, weight: Tensor, height: int, width: int, stride: int, padding: int, backend: str) -> Tensor:
    dx = _dgrad_fake(dy, weight, height, width, stride, padding, backend)
    if backend in GPU:
        cuda.dgrad(as_nhwc(dy), weight, dx, stride, padding, backend)
        return dx
    threads = threads_for(dy.numel() * weight.shape[-1] ** 2)
    _C.depthwise_conv2d_dgrad(as_nhwc(dy), weight.contiguous(), dx, stride, padding, ISA, threads)
    return dx


def _wgrad(x: Tensor, dy: Tensor, kernel: int, stride: int, padding: int, backend: str) -> Tensor:
    dweight = _wgrad_fake(x, dy, kernel, stride, padding, backend)
    if backend in GPU:
        cuda.wgrad(as_nhwc(x), as_nhwc(dy), dweight, stride, padding, False, backend)
        return dweight
    threads = threads_for(dy.numel() * kernel**2)
    _C.depthwise_conv2d_wgrad(as_nhwc(x), as_nhwc(dy), dweight, stride, padding, ISA, threads)
    return dweight


def _forward_fake(x: Tensor, weight: Tensor, stride: int, padding: int, backend: str) -> Tensor:
    return empty_nhwc(_output_shape(x, weight, stride, padding, backend), like=x)


def _dgrad_fake(dy: Tensor, weight: Tensor, height: int, width: int, stride: int, padding: int, backend: str) -> Tensor:
    return empty_nhwc((dy.shape[0], dy.shape[1], height, width), like=dy)


def _wgrad_fake(x: Tensor, dy: Tensor, kernel: int, stride: int, padding: int, backend: str) -> Tensor:
    return x.new_empty((x.shape[1], 1, kernel, kernel))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep what the gradients asked for need, and nothing else: x for wgrad, weight for dgrad."""
    x, weight, ctx.stride, ctx.padding, ctx.backend = inputs
    ctx.size, ctx.kernel = x.shape[2:], weight.shape[-1]
    needs_dx, needs_dweight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(x if needs_dweight else None, weight if needs_dx else None)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"depthwise_conv2d: backend {ctx.backend!r} has no double backward (create_graph=True): use backend "
            "'reference'"
        )
    x, weight = ctx.saved_tensors
    needs_dx, needs_dweight = ctx.needs_input_grad[:2]
    options = (ctx.stride, ctx.padding, ctx.backend)
    plain = is_plain(*(t for t in (dy, x, weight) if t is not None))
    dgrad = _dgrad if plain else torch.ops.spos_kernels.depthwise_conv2d_dgrad
    wgrad = _wgrad if plain else torch.ops.spos_kernels.depthwise_conv2d_wgrad
    dy = as_nhwc(dy)  # once for both
    height, width = ctx.size
    dx = dgrad(dy, weight, height, width, *options) if needs_dx else None
    dweight = wgrad(x, dy, ctx.kernel, *options) if needs_dweight else None
    return dx, dweight, None, None, None


class _Eager(torch.autograd.Function):
    # forward takes ctx: with a separate setup_context, apply() binds the signature anew at every call.
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int, backend: str) -> Tensor:
        x = as_nhwc(x)
        y = _forward(x, weight, stride, padding, backend)
        _save(ctx, (x, weight, stride, padding, backend), y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        return _gradients(ctx, dy)


register("depthwise_conv2d", "(Tensor x, Tensor weight, int stride, int padding, str backend)", _forward, _forward_fake)
register(
    "depthwise_conv2d_dgrad",
    "(Tensor dy, Tensor weight, SymInt height, SymInt width, int stride, int padding, str backend)",
    _dgrad,
    _dgrad_fake,
)
register(
    "depthwise_conv2d_wgrad",
    "(Tensor x, Tensor dy, int kernel, int stride, int padding, str backend)",
    _wgrad,
    _wgrad_fake,
)
torch.library.register_autograd("spos_kernels::depthwise_conv2d", _gradients, setup_context=_save)
