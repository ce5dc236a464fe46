"""The choice block's pointwise convolutions, backward: the gradients of the input (dgrad) and the weight (wgrad)."""

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
from spos_kernels.triton.choice_block_parts import (
    DWEIGHT,
    HEIGHT,
    INPUTS,
    OUTPUTS,
    POINTWISE,
    SIZE,
    WEIGHT,
    WEIGHT_STRIDE,
    WIDTH,
    arriving,
    field,
    finish_sums,
    is_last,
    layer_input,
    layer_of,
    source_of,
)
from spos_kernels.triton.elements import product, stored
from spos_kernels.triton.launch import kernel


@kernel(POINTWISE, general=GENERAL_OF_DGRAD)
def pointwise_dgrad_kernel(
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
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Tiles of pixels by inputs."""
    layer, index, chain, used = layer_of(table, choice, slot, proj)
    if used == 0:
        return
    if (has_dx == 0) & (index == 0):
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
    source = gradient_of(dy, kept, maps, layer, index, chain, dy_pixel, beside, map_size)
    first = tl.zeros((BLOCK_N,), tl.float32)
    second = tl.zeros((BLOCK_N,), tl.float32)
    for tile in range(part, tiles, programs):
        pixel = (tile * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None]
        there = pixel < pixels
        product_sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for begin in range(0, outputs, BLOCK_K):
            output = begin + tl.arange(0, BLOCK_K)
            exists = (output < outputs)[None, :]
            departure = leaving(statistics, sums, layer, output[None, :], exists, values, eps, TRAINING, GIVEN)
            a = layer_gradient(source, departure, pixel, output[None, :], there & exists, TRAINING)
            mask = (output < outputs)[:, None] & (column < inputs)[None, :]
            b = tl.load(weight + output.to(tl.int64)[:, None] * row_stride + column[None, :], mask=mask, other=0.0)
            product_sums = product(stored(a, kept), b, product_sums, PRECISION, UPCAST)
        more_first, more_second = taken(product_sums, proj, dy, dx, kept, maps, statistics, layer, index, pixel,
                                        column[None, :], there & (column < inputs)[None, :], dy_pixel, map_size, eps,
                                        inputs, PASSES, GIVEN)  # fmt: skip
        first += more_first
        second += more_second
    if index > 0:
        finish_sums(parts, counters + tl.program_id(1), part, programs, layer - SIZE, sums, column, first, second,
                    BLOCK_N)  # fmt: skip


@kernel(POINTWISE, general=["slot", "proj"])
def pointwise_wgrad_kernel(
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
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Tiles of outputs by inputs over a part of the pixels; the last program of a tile adds its parts up."""
    layer, index, chain, used = layer_of(table, choice, slot, proj)
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
    in_rows = output[None, :] < outputs
    in_columns = column[None, :] < inputs
    source = source_of(x, kept, layer, index, x_pixel, PASSES)
    arrival = arriving(statistics, layer, index, column[None, :], in_columns, eps, GIVEN)
    of_gradient = gradient_of(dy, kept, maps, layer, index, chain, dy_pixel, beside, map_size)
    departure = leaving(statistics, sums, layer, output[None, :], in_rows, values, eps, TRAINING, GIVEN)
    steps = tl.cdiv(pixels, BLOCK_K)
    gradient_sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(steps * split // splits, steps * (split + 1) // splits):
        pixel = (step * BLOCK_K + tl.arange(0, BLOCK_K)).to(tl.int64)[:, None]
        there = pixel < pixels
        a = layer_gradient(of_gradient, departure, pixel, output[None, :], there & in_rows, TRAINING)
        b = layer_input(source, arrival, pixel, column[None, :], there & in_columns)
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
