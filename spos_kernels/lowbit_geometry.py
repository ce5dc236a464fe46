"""Sizes of convolutions by packed weights, of which matrix products are those of one image, one row high."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from spos_kernels.layout import as_nhwc
from spos_kernels.packing import PackedWeight

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """Sizes of a convolution: of the batch, the maps, one group's channels, and its pairs."""

    batch: int
    height: int
    width: int
    out_height: int
    out_width: int
    groups: int
    inputs: int
    outputs: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    def flat(self) -> tuple[int, ...]:
        """Return the sizes as the kernels take them."""
        return (*self[:8], *self.kernel, *self.stride, *self.padding, *self.dilation)


def geometry_of_map(
    x: Tensor,
    weight: PackedWeight,
    stride: int | Pair,
    padding: int | Pair,
    dilation: int | Pair,
    groups: int,
) -> Geometry:
    """Return the sizes of a convolution. Raises ValueError, naming the argument."""
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
    return Geometry(batch, height, width, out_size[0], out_size[1], groups, weight.shape[1], weight.shape[0] // groups,
                    kernel, pairs[0], pairs[1], pairs[2])  # fmt: skip


def geometry_of_rows(x: Tensor, weight: PackedWeight) -> Geometry:
    """Return the sizes of a matrix product. Raises ValueError, naming the argument."""
    outputs, inputs = weight.shape
    if x.ndim < 1 or x.shape[-1] != inputs:
        raise ValueError(f"x has shape {list(x.shape)}: expected [..., {inputs}]")
    rows = math.prod(x.shape[:-1])
    return Geometry(1, 1, rows, 1, rows, 1, inputs, outputs, (1, 1), (1, 1), (0, 0), (1, 1))


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


def rows_of_matrix(x: Tensor) -> Tensor:
    """Return [..., K] as rows with adjacent elements: a view where the strides allow it."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.shape[1] == 1 or rows.stride(1) == 1 else rows.contiguous()
