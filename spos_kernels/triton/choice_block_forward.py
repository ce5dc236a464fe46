"""The choice block, forward: a kernel for pointwise, one for depthwise convolutions, one for the output.

    convolution   normalises what it loads, keeps its sums z, and takes the statistics of z
    output        normalises the ends of both chains through ReLU into y, passes channels on, moves running statistics

Bytes: every map between two layers is written once and read once, by tiles of outputs; y is written once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spos_kernels.triton.choice_block_memory import CHANNELS, PIXELS
from spos_kernels.triton.choice_block_parts import (
    BATCHES,
    HEIGHT,
    IN_HEIGHT,
    IN_WIDTH,
    INPUTS,
    KEPT,
    KERNEL,
    MEAN,
    OUTPUTS,
    POINTWISE,
    SIZE,
    STATISTICS,
    STRIDE,
    VAR,
    WEIGHT,
    WEIGHT_STRIDE,
    WIDTH,
    arriving,
    branch_of,
    field,
    finish_moments,
    layer_input,
    layer_of,
    merged,
    normalisation,
    put_vector,
    relu,
    source_of,
    vector,
)
from spos_kernels.triton.elements import product, stored
from spos_kernels.triton.launch import fixed, kernel


@kernel(POINTWISE, general=["slot", "proj"])
def pointwise_forward_kernel(
    table,
    choice,
    slot,
    proj,
    x,
    kept,
    statistics,
    parts,
    counters,
    batch,
    x_pixel,
    most_parts,
    eps,
    PASSES: tl.constexpr,
    TRAINING: tl.constexpr,
    GIVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Tiles of pixels by outputs: every `programs`-th tile of a column of tiles is a program's."""
    layer, index, _, used = layer_of(table, choice, slot, proj)
    if used == 0:
        return
    inputs = field(layer, INPUTS)
    outputs = field(layer, OUTPUTS)
    pixels = batch * field(layer, HEIGHT) * field(layer, WIDTH)
    tiles = tl.cdiv(pixels, BLOCK_M)
    programs = tl.minimum(tiles, most_parts)
    part = tl.program_id(0)
    if (part >= programs) | (tl.program_id(1) * BLOCK_N >= outputs):
        return
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    kind: tl.constexpr = kept.dtype.element_ty
    weight = tl.load(layer + WEIGHT).to(tl.pointer_type(kind))
    of_column = weight + column.to(tl.int64) * tl.load(layer + WEIGHT_STRIDE)
    to = kept + tl.load(layer + KEPT)
    source = source_of(x, kept, layer, index, x_pixel, PASSES)
    count = tl.zeros((BLOCK_N,), tl.float32)
    mean = tl.zeros((BLOCK_N,), tl.float32)
    m2 = tl.zeros((BLOCK_N,), tl.float32)
    for tile in range(part, tiles, programs):
        pixel = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        there = (pixel < pixels)[:, None]
        sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for first in range(0, inputs, BLOCK_K):
            channel = first + tl.arange(0, BLOCK_K)
            exists = (channel < inputs)[None, :]
            arrival = arriving(statistics, layer, index, channel[None, :], exists, eps, GIVEN)
            a = layer_input(source, arrival, pixel.to(tl.int64)[:, None], channel[None, :], there & exists)
            mask = (channel < inputs)[:, None] & (column < outputs)[None, :]
            b = tl.load(of_column[None, :] + channel[:, None], mask=mask, other=0.0)
            sums = product(stored(a, kept), b, sums, PRECISION, UPCAST)
        z = stored(sums, kept)
        mask = there & (column < outputs)[None, :]
        tl.store(to + pixel.to(tl.int64)[:, None] * outputs + column[None, :], z, mask=mask)
        if TRAINING:
            count, mean, m2 = merged(count, mean, m2, z.to(tl.float32), mask)
    if TRAINING:
        finish_moments(parts, counters + tl.program_id(1), part, programs, layer, statistics, column, count, mean, m2,
                       BLOCK_N)  # fmt: skip


@kernel(fixed(num_warps=8, BLOCK_P=PIXELS, BLOCK_C=CHANNELS), general=["slot", "proj"])
def depthwise_forward_kernel(
    table,
    choice,
    slot,
    proj,
    x,
    kept,
    statistics,
    parts,
    counters,
    batch,
    x_pixel,
    most_parts,
    eps,
    PASSES: tl.constexpr,
    TRAINING: tl.constexpr,
    GIVEN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    layer, index, _, used = layer_of(table, choice, slot, proj)
    if used == 0:
        return
    outputs = field(layer, OUTPUTS)
    height = field(layer, HEIGHT)
    width = field(layer, WIDTH)
    pixels = batch * height * width
    tiles = tl.cdiv(pixels, BLOCK_P)
    programs = tl.minimum(tiles, most_parts)
    part = tl.program_id(0)
    if (part >= programs) | (tl.program_id(1) * BLOCK_C >= outputs):
        return
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = channel < outputs
    kind: tl.constexpr = kept.dtype.element_ty
    taps = field(layer, KERNEL)
    of_channel = tl.load(layer + WEIGHT).to(tl.pointer_type(kind)) + channel * (taps * taps)
    stride = field(layer, STRIDE)
    in_height = field(layer, IN_HEIGHT)
    in_width = field(layer, IN_WIDTH)
    to = kept + tl.load(layer + KEPT)
    source = source_of(x, kept, layer, index, x_pixel, PASSES)
    arrival = arriving(statistics, layer, index, channel[None, :], exists[None, :], eps, GIVEN)
    count = tl.zeros((BLOCK_C,), tl.float32)
    mean = tl.zeros((BLOCK_C,), tl.float32)
    m2 = tl.zeros((BLOCK_C,), tl.float32)
    for tile in range(part, tiles, programs):
        pixel = tile * BLOCK_P + tl.arange(0, BLOCK_P)
        first_row = pixel // width % height * stride - taps // 2
        first_column = pixel % width * stride - taps // 2
        image_row = pixel // (height * width) * in_height
        mask = (pixel < pixels)[:, None] & exists[None, :]
        sums = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        for tap in range(taps * taps):
            row = first_row + tap // taps
            column = first_column + tap % taps
            inside = (row >= 0) & (row < in_height) & (column >= 0) & (column < in_width)
            place = (image_row + row).to(tl.int64) * in_width + column
            value = layer_input(source, arrival, place[:, None], channel[None, :], mask & inside[:, None])
            factor = tl.load(of_channel + tap, mask=exists, other=0.0)
            sums += value * factor.to(tl.float32)[None, :]
        z = stored(sums, kept)
        tl.store(to + pixel.to(tl.int64)[:, None] * outputs + channel[None, :], z, mask=mask)
        if TRAINING:
            count, mean, m2 = merged(count, mean, m2, z.to(tl.float32), mask)
    if TRAINING:
        finish_moments(parts, counters + tl.program_id(1), part, programs, layer, statistics, channel, count, mean, m2,
                       BLOCK_C)  # fmt: skip


@triton.jit
def end_of_chain(branch, proj):
    """The last layer of main or, with 1 for `proj`, of proj."""
    number = tl.load(branch) + proj * tl.load(branch + 1) - 1
    return branch + 2 + number * SIZE


@triton.jit
def normalised_end(kept, statistics, layer, pixel, channel, mask, eps, GIVEN: tl.constexpr):
    at = tl.load(layer + KEPT) + pixel * field(layer, OUTPUTS) + channel
    z = tl.load(kept + at, mask=mask, other=0.0).to(tl.float32)
    exists = (channel >= 0) & (channel < field(layer, OUTPUTS))
    mean, _, scale, beta = normalisation(layer, statistics, channel, exists, eps, GIVEN)
    return tl.where(mask, relu((z - mean) * scale + beta), 0.0)


@triton.jit
def move_running_statistics(branch, statistics, batch, momentum, BLOCK: tl.constexpr):
    """Those of all layers of a branch. The count is incremented before its value is used, as nn.BatchNorm2d does."""
    layers = (tl.load(branch) + tl.load(branch + 1)).to(tl.int32)
    for number in range(layers):
        layer = branch + 2 + number * SIZE
        outputs = field(layer, OUTPUTS)
        values = (batch * field(layer, HEIGHT) * field(layer, WIDTH)).to(tl.float32)
        address = tl.load(layer + BATCHES)
        counter = address.to(tl.pointer_type(tl.int64))
        seen = tl.load(counter, mask=address != 0, other=0) + 1
        share = momentum
        if momentum < 0:
            share = tl.where(address != 0, 1.0 / seen.to(tl.float32), 0.0)
        tl.debug_barrier()  # all threads have read the count
        tl.store(counter, seen, mask=address != 0)
        for first in range(0, outputs, BLOCK):
            channel = first + tl.arange(0, BLOCK)
            mask = channel < outputs
            at = statistics + tl.load(layer + STATISTICS) + channel
            mean = tl.load(at, mask=mask, other=0.0)
            var = tl.load(at + outputs, mask=mask, other=0.0) * (values / (values - 1.0))
            old_mean = vector(layer, MEAN, channel, mask, 0.0)
            old_var = vector(layer, VAR, channel, mask, 0.0)
            put_vector(layer, MEAN, channel, tl.fma(tl.zeros_like(mean) + share, mean - old_mean, old_mean), mask)
            put_vector(layer, VAR, channel, tl.fma(tl.zeros_like(var) + share, var - old_var, old_var), mask)


@kernel(fixed(num_warps=8, BLOCK_P=16, BLOCK_C=64))
def output_kernel(
    table,
    choice,
    x,
    y,
    kept,
    statistics,
    pixels,
    batch,
    x_pixel,
    out_channels,
    beside,
    momentum,
    eps,
    HAS_PROJ: tl.constexpr,
    PASSES: tl.constexpr,
    TRACK: tl.constexpr,
    GIVEN: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Channels of y: first those beside main's, which pass or are proj's. The last program moves running statistics."""
    branch = branch_of(table, choice)
    if TRACK and tl.program_id(0) == tl.num_programs(0) - 1:
        if tl.program_id(1) == 0:
            move_running_statistics(branch, statistics, batch, momentum, BLOCK_C)
        return
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    at = pixel.to(tl.int64)[:, None]
    mask = (pixel < pixels)[:, None] & (channel < out_channels)[None, :]
    is_main = (channel >= beside)[None, :]
    value = normalised_end(kept, statistics, end_of_chain(branch, 0), at, (channel - beside)[None, :],
                           mask & is_main, eps, GIVEN)  # fmt: skip
    if PASSES:
        passing = tl.load(x + at * x_pixel + 2 * channel[None, :], mask=mask & (channel < beside)[None, :], other=0.0)
        value = tl.where(is_main, value, passing.to(tl.float32))
    if HAS_PROJ:
        other = normalised_end(kept, statistics, end_of_chain(branch, 1), at, channel[None, :],
                               mask & (channel < beside)[None, :], eps, GIVEN)  # fmt: skip
        value = tl.where(is_main, value, other)
    tl.store(y + at * out_channels + channel[None, :], stored(value, y), mask=mask)
