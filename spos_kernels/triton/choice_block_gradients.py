"""What the choice block's backward kernels share: gradients on load, through batch normalisation, and on the way out,
through the ReLU of the layer before and with the sums that its own normalisation asks for.

Batch normalisation y = (z − mean) · scale + beta of n values has, with ẑ = (z − mean) / deviation,

    dz = scale · (dy − Σdy / n − ẑ · Σ(dy · ẑ) / n)

in training, and scale · dy otherwise. Whoever writes a dy takes both sums: they are there when dz is asked for, which
happens on load. The first sums, over y's gradient, have a kernel.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spos_kernels.triton.choice_block_forward import end_of_chain
from spos_kernels.triton.choice_block_memory import CHANNELS, END_PIXELS
from spos_kernels.triton.choice_block_parts import (
    KEPT,
    KERNEL,
    OUTPUTS,
    STATISTICS,
    branch_of,
    field,
    finish_sums,
    layer_before,
    normalisation,
)
from spos_kernels.triton.elements import stored
from spos_kernels.triton.launch import fixed, kernel

# Behind those of sums; of weights at most 256 are used: more tiles are not split.
COUNTERS_OF_WEIGHTS = tl.constexpr(512)
# Not to be compiled for. Of dy_pixel: were the pixels of y's gradient known to lie whole vectors apart, Triton would
# give a thread adjacent channels of every map, of which the others can only be loaded one by one.
GENERAL_OF_DGRAD = ("slot", "proj", "has_dx", "dy_pixel")


@triton.jit
def gradient_of(dy, kept, maps, layer, index, count, dy_pixel, beside, map_size):
    """Where a layer's sums z and the gradient of what they were normalised to are, how far it is to the next pixel of
    each, and whether the gradient is that of y, at the end of the chain, and passes the block's ReLU.
    """
    outputs = field(layer, OUTPUTS)
    is_end = index == count - 1
    base = tl.where(is_end, dy + beside, maps + index % 2 * map_size)
    return kept + tl.load(layer + KEPT), outputs, base, tl.where(is_end, dy_pixel, outputs), is_end


@triton.jit
def leaving(statistics, sums, layer, channel, mask, values, eps, TRAINING: tl.constexpr, GIVEN: tl.constexpr):
    """What becomes of a layer's gradient on load: mean, factor and addend of channels, the mean gradient, and what to
    take away for a distance from the mean. values: how many each channel has.
    """
    mean, inverse, scale, beta = normalisation(layer, statistics, channel, mask, eps, GIVEN)
    first = tl.zeros_like(mean)
    second = first
    if TRAINING:
        at = sums + tl.load(layer + STATISTICS) + channel
        first = tl.load(at, mask=mask, other=0.0) / values
        second = inverse * (tl.load(at + field(layer, OUTPUTS), mask=mask, other=0.0) / values)
    return mean, scale, beta, first, second


@triton.jit
def layer_gradient(source, departure, pixel, channel, mask, TRAINING: tl.constexpr):
    """dz of a layer, float32, zero where `mask` is false. source, departure: of `gradient_of` and `leaving`. pixel
    (int64), channel and departure's vectors broadcast.
    """
    z_base, z_pixel, base, pixel_stride, is_end = source
    mean, scale, beta, first, second = departure
    centred = tl.load(z_base + pixel * z_pixel + channel, mask=mask, other=0.0).to(tl.float32) - mean
    gradient = tl.load(base + pixel * pixel_stride + channel, mask=mask, other=0.0).to(tl.float32)
    gradient = tl.where(is_end & ~(centred * scale + beta > 0), 0.0, gradient)
    if TRAINING:
        gradient = gradient - first - centred * second
    return tl.where(mask, scale * gradient, 0.0)


@triton.jit
def taken(
    value, proj, dy, dx, kept, maps, statistics, layer, index, pixel, channel, mask, dy_pixel, map_size, eps, inputs,
    PASSES: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """Put the gradient of a layer's input where it belongs: into dx, which proj adds to, or behind the layer before,
    through its ReLU. Return the two sums of the latter over these pixels; of dx they mean nothing.
    """
    before = layer_before(layer, index)
    is_first = index == 0
    follows = mask & (index > 0)
    there = (channel < inputs) & (index > 0)
    mean, inverse, scale, beta = normalisation(before, statistics, channel, there, eps, GIVEN)
    z = tl.load(kept + tl.load(before + KEPT) + pixel * inputs + channel, mask=follows, other=0.0).to(tl.float32)
    centred = z - mean
    is_clipped = (index > 0) & (field(before, KERNEL) == 1)
    value = tl.where(is_clipped & ~(centred * scale + beta > 0), 0.0, value)
    to_map = maps + (index + 1) % 2 * map_size
    if PASSES:
        to = tl.where(is_first, dx + 1, to_map) + (pixel * inputs + channel) * tl.where(is_first, 2, 1)
        even = tl.load(dy + pixel * dy_pixel + channel, mask=mask & is_first, other=0.0)
        tl.store(to - 1, even, mask=mask & is_first)
    else:
        to = tl.where(is_first, dx, to_map) + pixel * inputs + channel
        value += tl.load(to, mask=mask & is_first & (proj != 0), other=0.0).to(tl.float32)
    left = stored(value, maps)
    tl.store(to, left, mask=mask)
    read = tl.where(follows, left.to(tl.float32), 0.0)
    return tl.sum(read, 0), tl.sum(tl.where(follows, read * centred * inverse, 0.0), 0)


@triton.jit
def splits_of(pixels, tiles, most_splits):
    """How many parts of the pixels: at least 256 each, and no more than keep a GPU busy."""
    return tl.maximum(1, tl.minimum(tl.minimum(most_splits, 512 // tiles), tl.cdiv(pixels, 256)))


@kernel(fixed(BLOCK_P=END_PIXELS, BLOCK_C=CHANNELS), general=["proj"])
def end_sums_kernel(
    table,
    choice,
    proj,
    dy,
    kept,
    statistics,
    sums,
    parts,
    counters,
    pixels,
    dy_pixel,
    beside,
    most_parts,
    eps,
    GIVEN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The sums over the gradient of the last layer's normalisation, through the block's ReLU."""
    layer = end_of_chain(branch_of(table, choice), proj)
    outputs = field(layer, OUTPUTS)
    tiles = tl.cdiv(pixels, BLOCK_P)
    programs = tl.minimum(tiles, most_parts)
    part = tl.program_id(0)
    if (part >= programs) | (tl.program_id(1) * BLOCK_C >= outputs):
        return
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = channel < outputs
    mean, inverse, scale, beta = normalisation(layer, statistics, channel, exists, eps, GIVEN)
    first = tl.zeros((BLOCK_C,), tl.float32)
    second = tl.zeros((BLOCK_C,), tl.float32)
    for tile in range(part, tiles, programs):
        pixel = (tile * BLOCK_P + tl.arange(0, BLOCK_P)).to(tl.int64)[:, None]
        mask = (pixel < pixels) & exists[None, :]
        z = tl.load(kept + tl.load(layer + KEPT) + pixel * outputs + channel[None, :], mask=mask, other=0.0)
        gradient = tl.load(dy + pixel * dy_pixel + beside + channel[None, :], mask=mask, other=0.0).to(tl.float32)
        centred = z.to(tl.float32) - mean[None, :]
        gradient = tl.where(mask & (centred * scale[None, :] + beta[None, :] > 0), gradient, 0.0)
        first += tl.sum(gradient, 0)
        second += tl.sum(tl.where(gradient != 0, gradient * (centred * inverse[None, :]), 0.0), 0)
    finish_sums(parts, counters + tl.program_id(1), part, programs, layer, sums, channel, first, second, BLOCK_C)
