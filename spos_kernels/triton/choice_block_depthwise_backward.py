"""The choice block's depthwise convolutions, backward: the gradients of the input (dgrad) and the weight (wgrad)."""

from __future__ import annotations

import triton.language as tl

from spos_kernels.triton.choice_block_gradients import (
    COUNTERS_OF_WEIGHTS,
    GENERAL_OF_DGRAD,
    gradient_of,
    layer_gradient,
    leaving,
    splits_of,
    taken,
)
from spos_kernels.triton.choice_block_memory import CHANNELS, PIXELS
from spos_kernels.triton.choice_block_parts import (
    DWEIGHT,
    HEIGHT,
    IN_HEIGHT,
    IN_WIDTH,
    KERNEL,
    OUTPUTS,
    SIZE,
    STRIDE,
    WEIGHT,
    WIDTH,
    arriving,
    field,
    finish_sums,
    is_last,
    layer_input,
    layer_of,
    source_of,
)
from spos_kernels.triton.elements import stored
from spos_kernels.triton.launch import fixed, kernel


@kernel(fixed(num_warps=8, registers=128, BLOCK_P=PIXELS, BLOCK_C=CHANNELS), general=GENERAL_OF_DGRAD)
def depthwise_dgrad_kernel(
    table,
    choice,
    slot,
    proj,
    dy,
    dx,
    has_dx,
    kept,
    maps,
    statistics,
    sums,
    parts,
    counters,
    batch,
    dy_pixel,
    beside,
    map_size,
    most_parts,
    eps,
    PASSES: tl.constexpr,
    TRAINING: tl.constexpr,
    GIVEN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    layer, index, chain, used = layer_of(table, choice, slot, proj)
    if used == 0:
        return
    if (has_dx == 0) & (index == 0):
        return
    channels = field(layer, OUTPUTS)
    height = field(layer, IN_HEIGHT)
    width = field(layer, IN_WIDTH)
    pixels = batch * height * width
    tiles = tl.cdiv(pixels, BLOCK_P)
    programs = tl.minimum(tiles, most_parts)
    part = tl.program_id(0)
    if (part >= programs) | (tl.program_id(1) * BLOCK_C >= channels):
        return
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    taps = field(layer, KERNEL)
    out_height = field(layer, HEIGHT)
    out_width = field(layer, WIDTH)
    shift = field(layer, STRIDE) - 1  # strides are 1 and 2
    exists = channel < channels
    kind: tl.constexpr = kept.dtype.element_ty
    of_channel = tl.load(layer + WEIGHT).to(tl.pointer_type(kind)) + channel * (taps * taps)
    values = (batch * out_height * out_width).to(tl.float32)
    source = gradient_of(dy, kept, maps, layer, index, chain, dy_pixel, beside, map_size)
    departure = leaving(statistics, sums, layer, channel[None, :], exists[None, :], values, eps, TRAINING, GIVEN)
    first = tl.zeros((BLOCK_C,), tl.float32)
    second = tl.zeros((BLOCK_C,), tl.float32)
    for tile in range(part, tiles, programs):
        pixel = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        image_row = pixel // (height * width) * out_height
        last_row = pixel // width % height + taps // 2
        last_column = pixel % width + taps // 2
        there = (pixel < pixels)[:, None] & exists[None, :]
        value = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        for tap in range(taps * taps):
            row = last_row - tap // taps
            column = last_column - tap % taps
            inside = (row >= 0) & (row >> shift < out_height) & (column >= 0) & (column >> shift < out_width)
            inside &= (row | column) & shift == 0
            place = (image_row + (row >> shift)).to(tl.int64) * out_width + (column >> shift)
            mask = there & inside[:, None]
            gradient = layer_gradient(source, departure, place[:, None], channel[None, :], mask, TRAINING)
            factor = tl.load(of_channel + tap, mask=exists, other=0.0)
            value += gradient * factor.to(tl.float32)[None, :]
        more_first, more_second = taken(value, proj, dy, dx, kept, maps, statistics, layer, index,
                                        pixel.to(tl.int64)[:, None], channel[None, :], there, dy_pixel, map_size, eps,
                                        channels, PASSES, GIVEN)  # fmt: skip
        first += more_first
        second += more_second
    if index > 0:
        finish_sums(parts, counters + tl.program_id(1), part, programs, layer - SIZE, sums, channel, first, second,
                    BLOCK_C)  # fmt: skip


@kernel(fixed(BLOCK_P=8, BLOCK_C=CHANNELS, TAPS=8), general=["slot", "proj"])
def depthwise_wgrad_kernel(
    table,
    choice,
    slot,
    proj,
    x,
    dy,
    kept,
    maps,
    statistics,
    sums,
    parts,
    counters,
    batch,
    x_pixel,
    dy_pixel,
    beside,
    map_size,
    most_splits,
    eps,
    PASSES: tl.constexpr,
    TRAINING: tl.constexpr,
    GIVEN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TAPS: tl.constexpr,
):
    """A row of the filters over a part of the pixels, its taps side by side: [pixels, TAPS, channels]."""
    layer, index, chain, used = layer_of(table, choice, slot, proj)
    if used == 0:
        return
    address = tl.load(layer + DWEIGHT)
    channels = field(layer, OUTPUTS)
    taps = field(layer, KERNEL)
    a = tl.program_id(1)
    if (address == 0) | (a >= taps) | (tl.program_id(0) * BLOCK_C >= channels):
        return
    height = field(layer, HEIGHT)
    width = field(layer, WIDTH)
    in_height = field(layer, IN_HEIGHT)
    in_width = field(layer, IN_WIDTH)
    stride = field(layer, STRIDE)
    pixels = batch * height * width
    values = pixels.to(tl.float32)
    splits = splits_of(pixels, taps * tl.cdiv(channels, BLOCK_C), most_splits)
    split = tl.program_id(2)
    if split >= splits:
        return
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    tap = tl.arange(0, TAPS)
    exists = channel[None, :] < channels
    source = source_of(x, kept, layer, index, x_pixel, PASSES)
    arrival = arriving(statistics, layer, index, channel[None, None, :], exists[None, :, :], eps, GIVEN)
    of_gradient = gradient_of(dy, kept, maps, layer, index, chain, dy_pixel, beside, map_size)
    departure = leaving(statistics, sums, layer, channel[None, :], exists, values, eps, TRAINING, GIVEN)
    steps = tl.cdiv(pixels, BLOCK_P)
    result = tl.zeros((TAPS, BLOCK_C), tl.float32)
    for step in range(steps * split // splits, steps * (split + 1) // splits):
        pixel = step * BLOCK_P + tl.arange(0, BLOCK_P)
        there = (pixel < pixels)[:, None] & exists
        gradient = layer_gradient(of_gradient, departure, pixel.to(tl.int64)[:, None], channel[None, :], there,
                                  TRAINING)  # fmt: skip
        in_row = (pixel // width % height) * stride - taps // 2 + a
        in_column = (pixel % width * stride - taps // 2)[:, None] + tap[None, :]
        inside = (in_column >= 0) & (in_column < in_width) & (tap < taps)[None, :]
        inside &= ((in_row >= 0) & (in_row < in_height))[:, None]
        place = (pixel // (height * width) * in_height + in_row).to(tl.int64)[:, None] * in_width + in_column
        value = layer_input(source, arrival, place[:, :, None], channel[None, None, :],
                            inside[:, :, None] & there[:, None, :])  # fmt: skip
        result += tl.sum(value * gradient[:, None, :], 0)
    kind: tl.constexpr = kept.dtype.element_ty
    dweight = address.to(tl.pointer_type(kind))
    mask = (tap < taps)[:, None] & (channel < channels)[None, :]
    at = channel[None, :] * (taps * taps) + (a * taps + tap)[:, None]
    if splits == 1:
        tl.store(dweight + at, stored(result, kept), mask=mask)
    else:
        size = channels.to(tl.int64) * taps * taps
        tl.store(parts + split * size + at, result, mask=mask)
        if is_last(counters + COUNTERS_OF_WEIGHTS + tl.program_id(0) * taps + a, splits):
            total = tl.zeros((TAPS, BLOCK_C), tl.float32)
            for other in range(splits):
                total += tl.load(parts + other * size + at, mask=mask, other=0.0, cache_modifier=".cg")
            tl.store(dweight + at, stored(total, kept), mask=mask)
