"""Convolution, batch normalisation and ReLU as one operation: a stem, or the last 1×1 of a network.

A 1×1 convolution runs as a choice block without anything beside it. A larger one becomes a 1×1 of its windows first,
which is the cheaper way for the few channels of an image and needs no gradient of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spos_kernels import _C
from spos_kernels.backends import GPU, is_autocast, is_plain, resolve_backend, threads_for
from spos_kernels.choice_block import run_block, run_links
from spos_kernels.choice_block_reference import (
    Block,
    Branch,
    ConvBN,
    Layer,
    Link,
    check_dtype,
    check_norm,
    check_options,
    check_tensor,
    run_norm,
    widened,
    widened_layer,
)
from spos_kernels.layout import as_nhwc, empty_nhwc

__all__ = ["conv_norm_relu", "conv_norm_relu_reference"]


def conv_norm_relu(
    x: Tensor,
    layer: ConvBN,
    *,
    stride: int = 1,
    padding: int = 0,
    training: bool = True,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return relu(norm(conv(x))), the convolution without bias. Differentiable once.

    x: [N, I, H, W] float32 or float64; channels_last is read in place, other layouts are copied.
    layer: weight [O, I, k, k] with the tensors of its normalisation, see `ConvBN`.
    stride, padding: of the convolution; 1 and 0 for a 1×1, padding below k.
    training, momentum, eps: as in `choice_block`.

    Returns [N, O, H', W'] in channels_last memory. A k above 1 with an x that requires a gradient runs on torch's
    operations, as does everything on backend "reference".

    Raises TypeError or ValueError, naming the argument.
    """
    if type(stride) is int and type(padding) is int and (stride, padding) == (1, 0):
        y = run_links(x, (Link(Branch((layer,)), whole=True),), training, momentum, eps)
        if y is not None:
            return y
    x, layer = check_arguments(x, layer, stride, padding, training, momentum, eps)
    backend = resolve_backend(x, ("cpu", *GPU))
    kernel = layer.weight.shape[-1]
    native = (backend == "cpu" or (backend in GPU and kernel == 1)) and x.shape[0] > 0 and is_plain(x)
    if not native or (kernel > 1 and x.requires_grad and torch.is_grad_enabled()):
        return _reference(x, layer, stride, padding, training, momentum, eps)
    if kernel > 1:
        x, layer = as_pointwise(x, layer, stride, padding)
        y = run_links(x, (Link(Branch((layer,)), whole=True),), training, momentum, eps)
        if y is not None:
            return y
    weight = layer.weight
    only = Layer(layer, False, 1, 1, x.shape[1], weight.shape[0], x.shape[2], x.shape[3])
    block = Block(x, (only,), (), (x.shape[0], weight.shape[0], *x.shape[2:]))
    return run_block(block, 1, True, training, momentum, eps, backend)


def conv_norm_relu_reference(
    x: Tensor,
    layer: ConvBN,
    *,
    stride: int = 1,
    padding: int = 0,
    training: bool = True,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`conv_norm_relu` in plain PyTorch: same arguments, result and errors, on every device."""
    x, layer = check_arguments(x, layer, stride, padding, training, momentum, eps)
    return _reference(x, layer, stride, padding, training, momentum, eps)


def check_arguments(
    x: Tensor, layer: ConvBN, stride: int, padding: int, training: bool, momentum: float | None, eps: float
) -> tuple[Tensor, ConvBN]:
    """Check the arguments of a call and return x and layer, under autocast in float32."""
    check_tensor(x, "x")
    if not isinstance(layer, ConvBN):
        raise TypeError(f"layer is a {type(layer).__name__}: expected a ConvBN")
    check_options(1, training, momentum, eps)
    for name, value in ("stride", stride), ("padding", padding):
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} = {value!r}: expected an integer")
    if is_autocast(x):
        x, layer = widened(x), widened_layer(layer)
    check_dtype(x)
    weight = layer.weight
    check_tensor(weight, "layer.weight", x)
    square = weight.ndim == 4 and weight.shape[2] == weight.shape[3] and min(weight.shape) > 0
    if x.ndim != 4 or not square or weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"layer.weight has shape {list(weight.shape)} and x {list(x.shape)}: expected [O, I, k, k] and [N, I, H, W]"
        )
    kernel = weight.shape[-1]
    if (stride, padding) != (1, 0) and kernel == 1:
        raise ValueError(f"stride = {stride}, padding = {padding}: a 1×1 convolution accepts 1 and 0")
    if not 1 <= stride <= 64 or not 0 <= padding < kernel or kernel > 64:
        raise ValueError(
            f"kernel {kernel}, stride = {stride}, padding = {padding}: accepted are kernels and strides from 1 to 64 "
            "and a padding below the kernel"
        )
    if min(x.shape[2:]) + 2 * padding < kernel:
        raise ValueError(f"x has shape {list(x.shape)}: expected maps that a kernel of {kernel} fits in once padded")
    check_norm(x, layer, "layer", training, momentum)
    height, width = ((n + 2 * padding - kernel) // stride + 1 for n in x.shape[2:])
    if training and x.shape[0] * height * width < 2:
        raise ValueError(f"x has shape {list(x.shape)}: expected at least 2 values a channel in training")
    return x, layer


def _reference(
    x: Tensor,
    layer: ConvBN,
    stride: int,
    padding: int,
    training: bool,
    momentum: float | None,
    eps: float,
) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        z = F.conv2d(x, layer.weight, stride=stride, padding=padding)
        return as_nhwc(F.relu(run_norm(z, layer, training, momentum, eps)))


def as_pointwise(x: Tensor, layer: ConvBN, stride: int, padding: int) -> tuple[Tensor, ConvBN]:
    """Return a k×k convolution as a 1×1 of the windows of x, [N, k·k·C, H', W'], which carry no gradient.

    Their channels come in the order kernel row, kernel column, channel.
    """
    weight = layer.weight
    outputs, channels, kernel, _ = weight.shape
    height, width = ((n + 2 * padding - kernel) // stride + 1 for n in x.shape[2:])
    windows = empty_nhwc((x.shape[0], kernel * kernel * channels, height, width), like=x)
    _C.im2row(as_nhwc(x.detach()), windows, kernel, stride, padding, threads_for(8 * windows.numel()))
    return windows, layer._replace(weight=weight.permute(0, 2, 3, 1).reshape(outputs, -1, 1, 1))
