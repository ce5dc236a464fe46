"""The choice block, backward: the sums over y's gradient, then for each convolution, last to first, the gradient of its
input (dgrad) and that of its weight (wgrad).

Batch normalisation y = (z − mean) · scale + beta of n values has, with ẑ = (z − mean) / deviation,

    dz = scale · (dy − Σdy / n − ẑ · Σ(dy · ẑ) / n)

in training, and scale · dy otherwise. Whoever writes a dy takes both sums: they are there when dz is asked for, which
happens on load.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spos_kernels.triton.choice_block_forward import end_of_chain
from spos_kernels.triton.choice_block_parts import (
    DWEIGHT,
    HEIGHT,
    IN_HEIGHT,
    IN_WIDTH,
    INPUTS,
    KEPT,
    KERNEL,
    OUTPUTS,
    SIZE,
    STATISTICS,
    STRIDE,
    WEIGHT,
    WEIGHT_STRIDE,
    WIDTH,
    branch_of,
    field,
    finish_sums,
    is_last,
    layer_input,
    layer_of,
    normalisation,
)
from spos_kernels.triton.elements import product, stored
from spos_kernels.triton.launch import fixed, kernel

COUNTERS_OF_WEIGHTS = tl.constexpr(512)  # behind those of sums


@triton.jit
def layer_gradient(
    dy, kept, maps, statistics, sums, layer, index, count, pixel, channel, mask, dy_pixel, beside, map_size, values,
    eps, TRAINING: tl.constexpr, GIVEN: tl.constexpr,
):  # fmt: skip
    """dz of a layer, float32, zero where `mask` is false. values: how many each channel has."""
    outputs = field(layer, OUTPUTS)
    exists = channel < outputs
    z = tl.load(kept + tl.load(layer + KEPT) + pixel * outputs + channel, mask=mask, other=0.0).to(tl.float32)
    mean, inverse, scale, beta = normalisation(layer, statistics, channel, exists, eps, GIVEN)
    centred = z - mean
    if index == count - 1:
        gradient = tl.load(dy + pixel * dy_pixel + beside + channel, mask=mask, other=0.0).to(tl.float32)
        gradient = tl.where(centred * scale + beta > 0, gradient, 0.0)
    else:
        at = index % 2 * map_size + pixel * outputs + channel
        gradient = tl.load(maps + at, mask=mask, other=0.0).to(tl.float32)
    if TRAINING:
        at_sums = sums + tl.load(layer + STATISTICS) + channel
        first = tl.load(at_sums, mask=exists, other=0.0)
        second = tl.load(at_sums + outputs, mask=exists, other=0.0)
        gradient = gradient - first / values - centred * (inverse * (second / values))
    return tl.where(mask, scale * gradient, 0.0)


@triton.jit
def taken(
    value, dy, dx, kept, maps, statistics, layer, index, pixel, channel, mask, dy_pixel, map_size, eps,
    PROJ: tl.constexpr, PASSES: tl.constexpr, GIVEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Put the gradient of a layer's input where it belongs: into dx, which proj adds to, or behind the layer before,
    through its ReLU. Return the two sums of the latter over these pixels.
    """
    first = tl.zeros((BLOCK,), tl.float32)
    second = tl.zeros((BLOCK,), tl.float32)
    inputs = field(layer, INPUTS)
    if index == 0:
        if PASSES:
            even = tl.load(dy + pixel * dy_pixel + channel, mask=mask, other=0.0)
            to = dx + pixel * (2 * inputs) + 2 * channel
            tl.store(to, even, mask=mask)
            tl.store(to + 1, stored(value, dx), mask=mask)
        else:
            to = dx + pixel * inputs + channel
            if PROJ:
                value += tl.load(to, mask=mask, other=0.0).to(tl.float32)
            tl.store(to, stored(value, dx), mask=mask)
    else:
        before = layer - SIZE
        z = tl.load(kept + tl.load(before + KEPT) + pixel * inputs + channel, mask=mask, other=0.0).to(tl.float32)
        mean, inverse, scale, beta = normalisation(before, statistics, channel, channel < inputs, eps, GIVEN)
        centred = z - mean
        if field(before, KERNEL) == 1:
            value = tl.where(centred * scale + beta > 0, value, 0.0)
        kept_value = stored(value, maps)
        tl.store(maps + (index - 1) % 2 * map_size + pixel * inputs + channel, kept_value, mask=mask)
        read = tl.where(mask, kept_value.to(tl.float32), 0.0)
        first = tl.sum(read, 0)
        second = tl.sum(tl.where(mask, read * centred * inverse, 0.0), 0)
    return first, second


@kernel(fixed(BLOCK_P=64, BLOCK_C=32))
def end_sums_kernel(
    table,
    choice,
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
    PROJ: tl.constexpr,
    GIVEN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The sums over the gradient of the last layer's normalisation, through the block's ReLU."""
    layer = end_of_chain(branch_of(table, choice), PROJ)
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


@kernel(fixed(num_warps=8, BLOCK_M=64, BLOCK_N=64, BLOCK_K=16), general=["slot"])
def pointwise_dgrad_kernel(
    table,
    choice,
    slot,
    dy,
    dx,
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
    PROJ: tl.constexpr,
    PASSES: tl.constexpr,
    HAS_DX: tl.constexpr,
    TRAINING: tl.constexpr,
    GIVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Tiles of pixels by inputs."""
    layer, index, chain, used = layer_of(table, choice, slot, PROJ)
    if used == 0:
        return
    if not HAS_DX and index == 0:
        return
    inputs = field(layer, INPUTS)
    outputs = field(layer, OUTPUTS)
    pixels = batch * field(layer, HEIGHT) * field(layer, WIDTH)
    tiles = tl.cdiv(pixels, BLOCK_M)
    programs = tl.minimum(tiles, most_parts)
    part = tl.program_id(0)
    if (part >= programs) | (tl.program_id(1) * BLOCK_N >= inputs):
        return
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    kind: tl.constexpr = kept.dtype.element_ty
    weight = tl.load(layer + WEIGHT).to(tl.pointer_type(kind))
    row_stride = tl.load(layer + WEIGHT_STRIDE)
    values = pixels.to(tl.float32)
    first = tl.zeros((BLOCK_N,), tl.float32)
    second = tl.zeros((BLOCK_N,), tl.float32)
    for tile in range(part, tiles, programs):
        pixel = (tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None]
        there = pixel < pixels
        product_sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for begin in range(0, outputs, BLOCK_K):
            output = begin + tl.arange(0, BLOCK_K)
            a = layer_gradient(dy, kept, maps, statistics, sums, layer, index, chain, pixel, output[None, :],
                               there & (output < outputs)[None, :], dy_pixel, beside, map_size, values, eps,
                               TRAINING, GIVEN)  # fmt: skip
            mask = (output < outputs)[:, None] & (column < inputs)[None, :]
            b = tl.load(weight + output.to(tl.int64)[:, None] * row_stride + column[None, :], mask=mask, other=0.0)
            product_sums = product(stored(a, kept), b, product_sums, PRECISION, UPCAST)
        more_first, more_second = taken(product_sums, dy, dx, kept, maps, statistics, layer, index, pixel,
                                        column[None, :], there & (column < inputs)[None, :], dy_pixel, map_size, eps,
                                        PROJ, PASSES, GIVEN, BLOCK_N)  # fmt: skip
        first += more_first
        second += more_second
    if index > 0:
        finish_sums(parts, counters + tl.program_id(1), part, programs, layer - SIZE, sums, column, first, second,
                    BLOCK_N)  # fmt: skip


@kernel(fixed(num_warps=8, BLOCK_M=64, BLOCK_N=64, BLOCK_K=16), general=["slot"])
def pointwise_wgrad_kernel(
    table,
    choice,
    slot,
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
    PROJ: tl.constexpr,
    PASSES: tl.constexpr,
    TRAINING: tl.constexpr,
    GIVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Tiles of outputs by inputs over a part of the pixels; the last program of a tile adds its parts up."""
    layer, index, chain, used = layer_of(table, choice, slot, PROJ)
    if used == 0:
        return
    address = tl.load(layer + DWEIGHT)
    if address == 0:
        return
    inputs = field(layer, INPUTS)
    outputs = field(layer, OUTPUTS)
    pixels = batch * field(layer, HEIGHT) * field(layer, WIDTH)
    column_tiles = tl.cdiv(inputs, BLOCK_N)
    tiles = tl.cdiv(outputs, BLOCK_M) * column_tiles
    splits = splits_of(pixels, tiles, most_splits)
    tile = tl.program_id(0) % tiles
    split = tl.program_id(0) // tiles
    if split >= splits:
        return
    output = tile // column_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tile % column_tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    values = pixels.to(tl.float32)
    steps = tl.cdiv(pixels, BLOCK_K)
    gradient_sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(steps * split // splits, steps * (split + 1) // splits):
        pixel = (step * BLOCK_K + tl.arange(0, BLOCK_K)).to(tl.int64)[:, None]
        there = pixel < pixels
        a = layer_gradient(dy, kept, maps, statistics, sums, layer, index, chain, pixel, output[None, :],
                           there & (output < outputs)[None, :], dy_pixel, beside, map_size, values, eps,
                           TRAINING, GIVEN)  # fmt: skip
        b = layer_input(x, kept, statistics, layer, index, pixel, column[None, :],
                        there & (column < inputs)[None, :], x_pixel, eps, PASSES, GIVEN)  # fmt: skip
        gradient_sums = product(tl.trans(stored(a, kept)), stored(b, kept), gradient_sums, PRECISION, UPCAST)
    kind: tl.constexpr = kept.dtype.element_ty
    dweight = address.to(tl.pointer_type(kind))
    mask = (output < outputs)[:, None] & (column < inputs)[None, :]
    at = output.to(tl.int64)[:, None] * inputs + column[None, :]
    if splits == 1:
        tl.store(dweight + at, stored(gradient_sums, kept), mask=mask)
    else:
        size = outputs.to(tl.int64) * inputs
        tl.store(parts + split * size + at, gradient_sums, mask=mask)
        if is_last(counters + COUNTERS_OF_WEIGHTS + tile, splits):
            total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
            for other in range(splits):
                total += tl.load(parts + other * size + at, mask=mask, other=0.0, cache_modifier=".cg")
            tl.store(dweight + at, stored(total, kept), mask=mask)


@triton.jit
def splits_of(pixels, tiles, most_splits):
    """How many parts of the pixels: at least 256 each, and no more than keep a GPU busy."""
    return tl.maximum(1, tl.minimum(tl.minimum(most_splits, 512 // tiles), tl.cdiv(pixels, 256)))


@triton.jit
def spread(
    dy, kept, maps, statistics, sums, layer, index, chain, image, row, column, channel, there, dy_pixel, beside,
    map_size, values, eps, TAPS: tl.constexpr, TRAINING: tl.constexpr, GIVEN: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The gradient of a depthwise convolution's input at some pixels."""
    kind: tl.constexpr = kept.dtype.element_ty
    weight = tl.load(layer + WEIGHT).to(tl.pointer_type(kind))
    height = field(layer, HEIGHT)
    width = field(layer, WIDTH)
    stride = field(layer, STRIDE)
    exists = channel < field(layer, OUTPUTS)
    result = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for tap in range(TAPS * TAPS):
        scaled_row = row + TAPS // 2 - tap // TAPS
        scaled_column = column + TAPS // 2 - tap % TAPS
        out_row = scaled_row // stride
        out_column = scaled_column // stride
        inside = (scaled_row >= 0) & (scaled_row % stride == 0) & (out_row < height)
        inside &= (scaled_column >= 0) & (scaled_column % stride == 0) & (out_column < width)
        pixel = ((image * height + out_row).to(tl.int64) * width + out_column)[:, None]
        gradient = layer_gradient(dy, kept, maps, statistics, sums, layer, index, chain, pixel, channel[None, :],
                                  there & inside[:, None], dy_pixel, beside, map_size, values, eps,
                                  TRAINING, GIVEN)  # fmt: skip
        factor = tl.load(weight + channel * (TAPS * TAPS) + tap, mask=exists, other=0.0)
        result += gradient * factor.to(tl.float32)[None, :]
    return result


@kernel(fixed(num_warps=8, BLOCK_P=32, BLOCK_C=32), general=["slot"])
def depthwise_dgrad_kernel(
    table,
    choice,
    slot,
    dy,
    dx,
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
    PROJ: tl.constexpr,
    PASSES: tl.constexpr,
    HAS_DX: tl.constexpr,
    TRAINING: tl.constexpr,
    GIVEN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    layer, index, chain, used = layer_of(table, choice, slot, PROJ)
    if used == 0:
        return
    if not HAS_DX and index == 0:
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
    values = (batch * field(layer, HEIGHT) * field(layer, WIDTH)).to(tl.float32)
    first = tl.zeros((BLOCK_C,), tl.float32)
    second = tl.zeros((BLOCK_C,), tl.float32)
    for tile in range(part, tiles, programs):
        pixel = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        image = pixel // (height * width)
        row = pixel // width % height
        column = pixel % width
        there = (pixel < pixels)[:, None] & (channel < channels)[None, :]
        if taps == 3:
            value = spread(dy, kept, maps, statistics, sums, layer, index, chain, image, row, column, channel, there,
                           dy_pixel, beside, map_size, values, eps, 3, TRAINING, GIVEN, BLOCK_P, BLOCK_C)  # fmt: skip
        elif taps == 5:
            value = spread(dy, kept, maps, statistics, sums, layer, index, chain, image, row, column, channel, there,
                           dy_pixel, beside, map_size, values, eps, 5, TRAINING, GIVEN, BLOCK_P, BLOCK_C)  # fmt: skip
        else:
            value = spread(dy, kept, maps, statistics, sums, layer, index, chain, image, row, column, channel, there,
                           dy_pixel, beside, map_size, values, eps, 7, TRAINING, GIVEN, BLOCK_P, BLOCK_C)  # fmt: skip
        more_first, more_second = taken(value, dy, dx, kept, maps, statistics, layer, index,
                                        pixel.to(tl.int64)[:, None], channel[None, :], there, dy_pixel, map_size, eps,
                                        PROJ, PASSES, GIVEN, BLOCK_C)  # fmt: skip
        first += more_first
        second += more_second
    if index > 0:
        finish_sums(parts, counters + tl.program_id(1), part, programs, layer - SIZE, sums, channel, first, second,
                    BLOCK_C)  # fmt: skip


@kernel(fixed(BLOCK_P=16, BLOCK_C=32, TAPS=8), general=["slot"])
def depthwise_wgrad_kernel(
    table,
    choice,
    slot,
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
    PROJ: tl.constexpr,
    PASSES: tl.constexpr,
    TRAINING: tl.constexpr,
    GIVEN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TAPS: tl.constexpr,
):
    """A row of the filters over a part of the pixels, its taps side by side: [pixels, TAPS, channels]."""
    layer, index, chain, used = layer_of(table, choice, slot, PROJ)
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
    steps = tl.cdiv(pixels, BLOCK_P)
    result = tl.zeros((TAPS, BLOCK_C), tl.float32)
    for step in range(steps * split // splits, steps * (split + 1) // splits):
        pixel = step * BLOCK_P + tl.arange(0, BLOCK_P)
        there = (pixel < pixels)[:, None] & (channel < channels)[None, :]
        gradient = layer_gradient(dy, kept, maps, statistics, sums, layer, index, chain, pixel.to(tl.int64)[:, None],
                                  channel[None, :], there, dy_pixel, beside, map_size, values, eps,
                                  TRAINING, GIVEN)  # fmt: skip
        in_row = (pixel // width % height) * stride - taps // 2 + a
        in_column = (pixel % width * stride - taps // 2)[:, None] + tap[None, :]
        inside = (in_column >= 0) & (in_column < in_width) & (tap < taps)[None, :]
        inside &= ((in_row >= 0) & (in_row < in_height))[:, None]
        place = (pixel // (height * width) * in_height + in_row).to(tl.int64)[:, None] * in_width + in_column
        value = layer_input(x, kept, statistics, layer, index, place[:, :, None], channel[None, None, :],
                            inside[:, :, None] & there[:, None, :], x_pixel, eps, PASSES, GIVEN)  # fmt: skip
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
        if is_last(counters + COUNTERS_OF_WEIGHTS + tl.program_id(0) * 8 + a, splits):
            total = tl.zeros((TAPS, BLOCK_C), tl.float32)
            for other in range(splits):
                total += tl.load(parts + other * size + at, mask=mask, other=0.0, cache_modifier=".cg")
            tl.store(dweight + at, stored(total, kept), mask=mask)
