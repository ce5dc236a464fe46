"""Convolutions of few bits: DoReFa weights and PACT activations, in training simulated in floating point.

The input is clipped at a learned value and rounded to the levels of `a_bits` (PACT, arXiv 1805.06085); the weight is
rounded to those of `w_bits` between −m and m, m the maximum over the slice in use, and divided by m (DoReFa-Net, arXiv
1606.06160), so a batch normalisation has to follow. In a supernet
(Single Path One-Shot NAS, arXiv 1904.00420, section 4.3) all bit widths share one latent weight, quantized anew by each
path; the value to clip at is learned for each number of bits by itself, because few levels have to reach less far.

PACT puts weight decay on that value, which otherwise only grows: it has one dimension, so it is named in `decayed`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spos.bits import LARGEST, Bits, check_bits
from spos.choices import BitsChoice
from spos.sliced import SlicedConv2d, Width, with_slices
from spos_kernels import fake_quantize, fake_quantize_reference, sliced_conv2d, sliced_parameter
from spos_kernels.gradient_sink import Extent, slice_of

CLIP = 10.0  # where PACT starts to clip
LOWEST_CLIP = 1e-3


class QuantizedConv2d(nn.Conv2d):
    """`nn.Conv2d` of a fixed number of bits: `w_bits` of its weight, `a_bits` of its non-negative input, 1 to 8 each.

    `kernel_size` is 1 to 7, `stride` 1 or 2, `padding` less than `kernel_size`. `clip`, of one element, is the value
    from which inputs count as the largest code; it starts at `initial_clip` and is trained.
    """

    decayed: ClassVar[tuple[str, ...]] = ("clip",)  # parameters of one dimension that weight decay applies to

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = True,
        *,
        w_bits: int,
        a_bits: int,
        initial_clip: float = CLIP,
    ) -> None:
        self.w_bits, self.a_bits = check_bits("w_bits", w_bits), check_bits("a_bits", a_bits)
        self.initial_clip = _check_clip(initial_clip)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)
        self._stride, self._padding = stride, padding
        self.clip = nn.Parameter(torch.full((1,), initial_clip))

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_exporting():  # into operations that every runtime knows
            x = fake_quantize_reference(input, self.a_bits, "pact", positive_clip(self.clip))
            weight = fake_quantize_reference(self.weight, self.w_bits, "dorefa")
            return self._conv_forward(x, weight, self.bias)
        x = fake_quantize(input, self.a_bits, "pact", positive_clip(self.clip))
        weight = fake_quantize(self.weight, self.w_bits, "dorefa")
        y = sliced_conv2d(x, weight, stride=self._stride, padding=self._padding, groups=self.groups)
        return y if self.bias is None else y + self.bias[:, None, None]

    def reset_parameters(self) -> None:
        super().reset_parameters()
        _reset_clip(self)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, w_bits={self.w_bits}, a_bits={self.a_bits}"


class SlicedQuantizedConv2d(SlicedConv2d):
    """`spos.SlicedConv2d` whose bits are a choice: `bits` says those of its weight and of its non-negative input.

    Each number of bits of the input has a `clip` of its own, in the order 1 to 8, unless `share_clip`. All start at
    `initial_clip`. The other arguments are those of SlicedConv2d; channel numbers may be a WidthChoice or fixed.
    """

    decayed: ClassVar[tuple[str, ...]] = ("clip",)

    def __init__(
        self,
        in_channels: Width,
        out_channels: Width,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        groups: Width = 1,
        bias: bool = True,
        *,
        bits: BitsChoice,
        share_clip: bool = False,
        initial_clip: float = CLIP,
    ) -> None:
        if not isinstance(bits, BitsChoice):
            raise TypeError(f"bits is a {type(bits).__name__}: expected a spos.BitsChoice")
        self.initial_clip = _check_clip(initial_clip)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups, bias)
        self.bits = bits
        self.clip = nn.Parameter(torch.full((1 if share_clip else LARGEST,), initial_clip))

    def forward(self, input: Tensor) -> Tensor:
        inputs, outputs, groups = self.sizes_in_force(input)
        w_bits, a_bits = self.bits()
        clip = sliced_parameter(self.clip, 1, self._clip_index(a_bits))
        x = fake_quantize(input, a_bits, "pact", positive_clip(clip))
        weight = fake_quantize(slice_of(self.weight, Extent(0, outputs, 0, inputs // groups)), w_bits, "dorefa")
        y = sliced_conv2d(x, weight, stride=self._stride, padding=self._padding, groups=groups)
        return y if self.bias is None else y + sliced_parameter(self.bias, outputs)[:, None, None]

    def slices(self, arch: Sequence[int]) -> dict[str, tuple[int, ...]]:
        # One clip is used, which is the leading one only for 1 bit: a size to count, and `extract` takes the right one.
        return super().slices(arch) | {"clip": (1,)}

    def extract(self, arch: Sequence[int]) -> QuantizedConv2d:
        sizes = super().slices(arch)["weight"]
        w_bits, a_bits = self.bits.bits(arch)
        options: dict[str, Any] = {"bias": self.bias is not None, "w_bits": w_bits, "a_bits": a_bits}
        groups = sizes[0] if self.depthwise else self.groups
        channels = sizes[1] * groups, sizes[0]
        with torch.device("meta"):
            conv = QuantizedConv2d(*channels, self.kernel_size[0], self._stride, self._padding, groups, **options)
        conv.initial_clip = self.initial_clip
        with_slices(conv, self, arch)
        used = self.clip.detach().narrow(0, self._clip_index(a_bits), 1)
        conv.clip = nn.Parameter(used.clone(), self.clip.requires_grad)
        return conv

    def reset_parameters(self) -> None:
        super().reset_parameters()
        _reset_clip(self)

    def _clip_index(self, a_bits: int) -> int:
        return a_bits - 1 if len(self.clip) > 1 else 0


def bits_of(layer: nn.Module, arch: Sequence[int]) -> Bits | None:
    """Return the bits of a layer on `arch`; None for one that is not quantized."""
    if isinstance(layer, SlicedQuantizedConv2d):
        return layer.bits.bits(arch)
    return Bits(layer.w_bits, layer.a_bits) if isinstance(layer, QuantizedConv2d) else None


def has_bits(module: nn.Module) -> bool:
    """Whether any layer of a network has a number of bits."""
    return any(isinstance(layer, SlicedQuantizedConv2d | QuantizedConv2d) for layer in module.modules())


def positive_clip(clip: Tensor) -> Tensor:
    """Return the value to clip at, which a step of training may have brought below 0, from where it can return."""
    return clip + (clip.clamp(min=LOWEST_CLIP) - clip).detach()


def _check_clip(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"initial_clip = {value!r}: expected a positive number")
    return float(value)


def _reset_clip(layer: QuantizedConv2d | SlicedQuantizedConv2d) -> None:
    if "clip" in layer._parameters:  # torch's constructor resets before there is one
        nn.init.constant_(layer.clip, layer.initial_clip)
