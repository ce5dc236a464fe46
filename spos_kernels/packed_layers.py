"""Layers of packed integers: a convolution, and residual blocks whose convolutions hand each other codes.

    conv1:     codes of x       → codes of conv2's input                      (batch norm and ReLU in its epilogue)
    shortcut:  x                → floats                                      (or x itself is the identity)
    conv2:     codes, identity  → floats, x of the next block, and the codes of its conv1

A PACT quantizer takes what is below 0 to code 0, so conv1 needs no ReLU of its own. Between the convolutions of a chain
of blocks nothing is done in floating point but the sum with the identity; only the first block, and shortcuts, which
have a quantizer of their own, quantize a map of floats, on the way into their products.

Floats are float32 or float64, as the layers' scales are. Few bits forget no difference: one code that rounding brings
to the other side of a boundary changes others behind it, over much of its image. In float64 there was none in 10⁸.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from spos_kernels.fake_quantize import quantize
from spos_kernels.lowbit_conv2d import lowbit_conv2d
from spos_kernels.lowbit_products import Quantizer, check_quantizer
from spos_kernels.packing import PackedWeight, check_weight

__all__ = ["PackedBlock", "PackedBlocks", "PackedConv2d"]


class PackedConv2d(nn.Module):
    """A convolution of codes by packed codes, which `spos_kernels.lowbit_conv2d` runs. Inference only.

    weight: (O, C / groups, kh, kw) with a scale and one zero point, from `pack_weight`. bias: floats [O], float32 or,
    as the scale may be, float64: results have the scale's dtype.
    x_quantizer: of the input. layer: the name of the layer that it was made of.

    Raises TypeError or ValueError, naming the argument.
    """

    def __init__(
        self,
        weight: PackedWeight,
        *,
        x_quantizer: Quantizer,
        bias: Tensor | None = None,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        layer: str = "",
    ) -> None:
        super().__init__()
        check_weight(weight, 4)
        if weight.scale is None or not bool(torch.isfinite(weight.scale).all()):
            raise ValueError("weight has no scale, or one that is not finite: expected a finite one for each output")
        if not bool((weight.twice_zero == weight.twice_zero[0, 0]).all()):
            raise ValueError("weight has zero points that differ: expected the same for all outputs")
        for name, value, least in (("stride", stride, 1), ("padding", padding, 0), ("groups", groups, 1)):
            if type(value) is not int or value < least:
                raise ValueError(f"{name} = {value!r}: expected an integer from {least}")
        if weight.shape[0] % groups:
            raise ValueError(f"groups = {groups}: expected a divisor of the weight's {weight.shape[0]} outputs")
        if bias is not None and (
            bias.dtype not in (torch.float32, weight.dtype) or tuple(bias.shape) != weight.shape[:1]
        ):
            raise ValueError(f"bias is {bias.dtype} {list(bias.shape)}: expected {weight.dtype} [{weight.shape[0]}]")
        if bias is not None and not bool(torch.isfinite(bias).all()):
            raise ValueError("bias has a value that is not finite")
        if not isinstance(layer, str):
            raise TypeError(f"layer = {layer!r}: expected a name")
        self.weight, self.layer = weight, layer
        self.bias = None if bias is None else bias.to(weight.dtype)
        self.x_quantizer = check_quantizer(x_quantizer, "x_quantizer", weight.dtype)
        self.stride, self.padding, self.groups = stride, padding, groups

    @property
    def w_bits(self) -> int:
        """Bits of the weight."""
        return self.weight.bits

    @property
    def a_bits(self) -> int:
        """Bits of the input."""
        return self.x_quantizer.bits

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the scales, and of results that are no codes."""
        return self.weight.dtype

    @property
    def zero_point(self) -> float:
        """The weight's code of 0, a multiple of ½."""
        return float(self.weight.twice_zero[0, 0]) / 2

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.weight.shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        """Channels of the result."""
        return self.weight.shape[0]

    def quantize(self, x: Tensor) -> Tensor:
        """Return the codes of a map of floats, uint8 in its shape; codes as they are."""
        if x.dtype == torch.uint8:
            return x
        x, scale = x.to(self.dtype), torch.tensor(self.x_quantizer.scale, dtype=self.dtype)
        zero_point = self.x_quantizer.zero_point or None
        return quantize(x, self.a_bits, "lsq", scale, zero_point=zero_point)  # the same formula as x_quantizer's

    def forward(
        self,
        x: Tensor,
        *,
        residual: Tensor | None = None,
        relu: bool = False,
        out_quantizer: Quantizer | None = None,
        keep_float: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Convolve codes, or floats, which are quantized on the way; the options are `lowbit_conv2d`'s."""
        return lowbit_conv2d(
            x,
            self.weight,
            x_quantizer=self.x_quantizer,
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
            bias=self.bias,
            residual=residual,
            relu=relu,
            out_quantizer=out_quantizer,
            keep_float=keep_float,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.weight.shape[2:]}, stride={self.stride}, "
            f"padding={self.padding}, groups={self.groups}, w_bits={self.w_bits}, a_bits={self.a_bits}"
        )


class PackedBlock(nn.Module):
    """A residual block, relu(conv2(conv1(x)) + shortcut(x)), the batch normalisations in the convolutions' scales.

    Without a `shortcut`, x itself is added. ValueError where the channels or the dtypes of the three do not fit each
    other.
    """

    def __init__(self, conv1: PackedConv2d, conv2: PackedConv2d, shortcut: PackedConv2d | None = None) -> None:
        super().__init__()
        if conv2.in_channels != conv1.out_channels:
            raise ValueError(f"conv2 has {conv2.in_channels} input channels: expected {conv1.out_channels}, of conv1")
        beside = (conv1.in_channels, conv2.out_channels)
        added = (conv1.in_channels,) * 2 if shortcut is None else (shortcut.in_channels, shortcut.out_channels)
        if added != beside:
            what = "the identity" if shortcut is None else "shortcut"
            raise ValueError(f"{what} maps {added[0]} channels to {added[1]}: expected {beside[0]} to {beside[1]}")
        layers = [conv1, conv2] if shortcut is None else [conv1, conv2, shortcut]
        if len({layer.dtype for layer in layers}) > 1:
            raise ValueError(f"the layers have scales of {conv1.dtype} and others: expected the same dtype")
        self.conv1, self.conv2, self.shortcut = conv1, conv2, shortcut

    def forward(
        self, x: Tensor, codes: Tensor | None = None, out_quantizer: Quantizer | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the block's result in floats and, where `out_quantizer` is given, its codes.

        x: of the layers' dtype. codes: those of x by conv1's quantizer, where the block before has made them.
        """
        inner = self.conv1(x if codes is None else codes, out_quantizer=self.conv2.x_quantizer)
        beside = x if self.shortcut is None else self.shortcut(x)
        y = self.conv2(inner, residual=beside, relu=True, out_quantizer=out_quantizer,
                       keep_float=out_quantizer is not None)  # fmt: skip
        return (y, None) if out_quantizer is None else y


class PackedBlocks(nn.Module):
    """Residual blocks one after another, each making the codes of the next. Float32 map in, float32 map out.

    Where the layers' scales are float64, so is the map between two blocks, and the one given may be, as
    `StemConv2d` makes it.
    """

    def __init__(self, blocks: Sequence[PackedBlock]) -> None:
        super().__init__()
        if not blocks:
            raise ValueError("blocks is empty: expected at least one PackedBlock")
        for before, block in pairwise(blocks):
            if block.conv1.in_channels != before.conv2.out_channels:
                raise ValueError(
                    f"blocks: one of {before.conv2.out_channels} output channels is before one of "
                    f"{block.conv1.in_channels} input channels"
                )
            if block.conv1.dtype != before.conv1.dtype:
                raise ValueError(f"blocks: scales of {before.conv1.dtype} and others: expected the same dtype")
        self.dtype = blocks[0].conv1.dtype
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        blocks = [block for block in self.blocks if isinstance(block, PackedBlock)]
        x, codes = x.to(self.dtype), None
        for block, after in zip(blocks, [*blocks[1:], None], strict=True):
            x, codes = block(x, codes, None if after is None else after.conv1.x_quantizer)
        return x.float()
