"""Convolution of float32 images in float64: the first layer of a network of few bits, with what follows it.

    s = Σ x · w, from 0 on, added up in the order (kernel row, kernel column, channel)        x is 0 outside of the map
    y = s · scale[n] + bias[n], then relu, then the maximum over 3×3 windows, 2 apart, with a margin of 1, if wanted

A product of two float32 numbers is exact in float64; each sum, the product with the scale and the sum with the bias
are rounded by themselves. Codes that are made of y are then those of a float64 run, where after a float32 convolution
one in millions is not, and few bits forget no difference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spos_kernels import _C
from spos_kernels.backends import ISA, is_plain, resolve_backend, threads_for
from spos_kernels.library import register

__all__ = ["StemConv2d", "stem_conv2d", "stem_conv2d_reference"]


def stem_conv2d(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    padding: int = 0,
    relu: bool = False,
    max_pool: bool = False,
) -> Tensor:
    """Convolve images in float64. Not differentiable.

    x: float32 [N, C, H, W] of any strides. weight: float32 [O, C, kh, kw], likewise. scale, bias: float64
    [O], a batch normalisation. stride from 1, padding from 0, in both directions. relu, max_pool: what follows, see the
    module.

    Returns float64 [N, O, H', W'] in channels_last memory. The result has the same bits for every instruction set and
    number of threads, and as the reference.

    Raises TypeError or ValueError, naming the argument.
    """
    x, weight, scale, bias = _check(x, weight, scale, bias, stride, padding, relu, max_pool)
    if resolve_backend(x) == "reference":
        return _reference(x, weight, scale, bias, stride, padding, relu, max_pool)
    kernel = _kernel if is_plain(x, weight, scale, bias) else torch.ops.spos_kernels.stem_conv2d
    y: Tensor = kernel(x, weight, scale, bias, stride, padding, relu, max_pool)
    return y.permute(0, 3, 1, 2)


def stem_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    padding: int = 0,
    relu: bool = False,
    max_pool: bool = False,
) -> Tensor:
    """`stem_conv2d` in plain PyTorch: same arguments, result to the bit, and errors."""
    checked = _check(x, weight, scale, bias, stride, padding, relu, max_pool)
    return _reference(*checked, stride, padding, relu, max_pool)


class StemConv2d(nn.Module):
    """`stem_conv2d` as a layer with a fixed weight, scale and bias. Inference only.

    Raises TypeError or ValueError, naming the argument.
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor,
        *,
        stride: int = 1,
        padding: int = 0,
        relu: bool = False,
        max_pool: bool = False,
    ) -> None:
        super().__init__()
        _check_layer(weight, scale, bias, stride, padding, relu, max_pool)
        for name, value in (("weight", weight), ("scale", scale), ("bias", bias)):
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} has a value that is not finite")
            self.register_buffer(name, value.detach().clone())
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor
        self.stride, self.padding, self.relu, self.max_pool = stride, padding, relu, max_pool

    def forward(self, x: Tensor) -> Tensor:
        return stem_conv2d(x, self.weight, self.scale, self.bias, stride=self.stride, padding=self.padding,
                           relu=self.relu, max_pool=self.max_pool)  # fmt: skip

    def extra_repr(self) -> str:
        outputs, inputs, *kernel = self.weight.shape
        return (
            f"{inputs}, {outputs}, kernel_size={tuple(kernel)}, stride={self.stride}, padding={self.padding}, "
            f"relu={self.relu}, max_pool={self.max_pool}"
        )


def _reference(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, stride: int, padding: int, relu: bool, max_pool: bool
) -> Tensor:
    rows, columns = _convolved(x.shape, weight.shape, stride, padding)
    image, w = F.pad(x.double(), (padding,) * 4), weight.double()
    y = x.new_zeros((x.shape[0], weight.shape[0], rows, columns), dtype=torch.float64)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            taken = image[:, :, i : i + rows * stride : stride, j : j + columns * stride : stride]
            for c in range(weight.shape[1]):
                y = y + taken[:, c : c + 1] * w[:, c, i, j][:, None, None]
    y = y * scale[:, None, None] + bias[:, None, None]
    y = y.clamp(min=0) if relu else y
    y = F.max_pool2d(y, 3, 2, 1) if max_pool else y
    return y.contiguous(memory_format=torch.channels_last)


def _kernel(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, stride: int, padding: int, relu: bool, max_pool: bool
) -> Tensor:
    y = _fake(x, weight, scale, bias, stride, padding, relu, max_pool)
    if y.numel():
        work = y.numel() * (4 if max_pool else 1) * weight[0].numel()
        _C.stem_conv2d(x, weight, scale, bias, y.view(-1, y.shape[-1]), stride, padding, relu, max_pool, ISA,
                       threads_for(work))  # fmt: skip
    return y


def _fake(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, stride: int, padding: int, relu: bool, max_pool: bool
) -> Tensor:
    rows, columns = _convolved(x.shape, weight.shape, stride, padding)
    if max_pool:
        rows, columns = (rows - 1) // 2 + 1, (columns - 1) // 2 + 1
    return x.new_empty((x.shape[0], rows, columns, weight.shape[0]), dtype=torch.float64)


register(
    "stem_conv2d",
    "(Tensor x, Tensor weight, Tensor scale, Tensor bias, int stride, int padding, bool relu, bool max_pool)",
    _kernel,
    _fake,
)


def _convolved(x: torch.Size, weight: torch.Size, stride: int, padding: int) -> tuple[int, int]:
    rows, columns = ((x[i] + 2 * padding - weight[i]) // stride + 1 for i in (2, 3))
    return rows, columns


def _check(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, stride: int, padding: int, relu: bool, max_pool: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_layer(weight, scale, bias, stride, padding, relu, max_pool)
    if not isinstance(x, Tensor) or x.dtype != torch.float32:
        raise TypeError(f"x is {_kind(x)}: expected a torch.float32 tensor")
    channels, height, width = weight.shape[1:]
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"x has shape {list(x.shape)}: expected [N, {channels}, H, W]")
    if min(x.shape[2:]) < 1 or x.shape[2] + 2 * padding < height or x.shape[3] + 2 * padding < width:
        raise ValueError(f"x has shape {list(x.shape)}: expected a map that the kernel {[height, width]} fits in")
    return x.detach(), weight.detach(), scale.detach().contiguous(), bias.detach().contiguous()


def _check_layer(
    weight: Tensor, scale: Tensor, bias: Tensor, stride: int, padding: int, relu: bool, max_pool: bool
) -> None:
    if not isinstance(weight, Tensor) or weight.dtype != torch.float32:
        raise TypeError(f"weight is {_kind(weight)}: expected a torch.float32 tensor")
    if weight.ndim != 4 or weight.numel() == 0:
        raise ValueError(f"weight has shape {list(weight.shape)}: expected [O, C, kh, kw], none of them 0")
    for name, value in (("scale", scale), ("bias", bias)):
        if not isinstance(value, Tensor) or value.dtype != torch.float64:
            raise TypeError(f"{name} is {_kind(value)}: expected a torch.float64 tensor")
        if tuple(value.shape) != (weight.shape[0],):
            raise ValueError(f"{name} has shape {list(value.shape)}: expected [{weight.shape[0]}]")
    for name, number, least in (("stride", stride, 1), ("padding", padding, 0)):
        if type(number) is not int or not least <= number <= 1024:
            raise ValueError(f"{name} = {number!r}: expected an integer from {least} to 1024")
    for name, flag in (("relu", relu), ("max_pool", max_pool)):
        if type(flag) is not bool:
            raise TypeError(f"{name} = {flag!r}: expected True or False")


def _kind(value: object) -> str:
    return f"of dtype {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
