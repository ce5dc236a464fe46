"""What the choice block's kernels share: the table of branches in device memory, normalisation on load, statistics.

The table has a row of int64 for each choice: how many layers main and proj have, then the fields of each layer
(`choice_block_memory.Layer`). Every kernel reads the choice from device memory and finds its layer in the row, or has
nothing to do: what is launched is the same for every choice.

A launch is for one slot of a chain: slots 0, 2, 4 are depthwise, 1, 3, 5 pointwise; a chain that begins with a
pointwise convolution begins in slot 1.

Statistics are taken in float32: mean and squared distances within a tile, merged by Chan, Golub and LeVeque's formula.
Programs leave theirs as parts, and the last to finish puts the parts of its columns together in their order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spos_kernels.triton.choice_block_memory import POINTWISE_TILE, ROW_SIZE, Layer
from spos_kernels.triton.launch import fixed

# The places of a layer's fields.
WEIGHT, GAMMA, BETA, MEAN, VAR, BATCHES, DWEIGHT, DGAMMA, DBETA, KEPT = (tl.constexpr(i) for i in range(10))
STATISTICS, KERNEL, STRIDE, INPUTS, OUTPUTS, WEIGHT_STRIDE = (tl.constexpr(i) for i in range(10, 16))
IN_HEIGHT, IN_WIDTH, HEIGHT, WIDTH = (tl.constexpr(i) for i in range(16, 20))
SIZE = tl.constexpr(len(Layer._fields))
ROW = tl.constexpr(ROW_SIZE)
# Of products. A step of k as short as Triton allows: multiply-adds of float32 have its operands in registers.
POINTWISE = fixed(num_warps=8, registers=224, BLOCK_M=POINTWISE_TILE, BLOCK_N=POINTWISE_TILE, BLOCK_K=16)


@triton.jit
def branch_of(table, choice):
    return table + tl.load(choice).to(tl.int64) * ROW


@triton.jit
def layer_of(table, choice, slot, proj):
    """The layer in a slot of main or, with 1 for `proj`, of proj; its place in the chain, the length of that, and
    whether there is such a layer.
    """
    branch = branch_of(table, choice)
    count = tl.load(branch + proj)
    first = branch + 2 + proj * tl.load(branch) * SIZE
    index = slot - (tl.load(first + KERNEL) == 1).to(tl.int64)
    used = (index >= 0) & (index < count)
    return first + index * SIZE, index, count, used


@triton.jit
def field(layer, NAME: tl.constexpr):
    """A size, as 32 bits."""
    return tl.load(layer + NAME).to(tl.int32)


@triton.jit
def vector(layer, NAME: tl.constexpr, channel, mask, default):
    """Elements of a float32 vector, `default` where the layer has none."""
    address = tl.load(layer + NAME)
    there = mask & (address != 0)
    return tl.load(address.to(tl.pointer_type(tl.float32)) + channel, mask=there, other=default)


@triton.jit
def put_vector(layer, NAME: tl.constexpr, channel, values, mask):
    """Store a vector where the layer wants it."""
    address = tl.load(layer + NAME)
    tl.store(address.to(tl.pointer_type(tl.float32)) + channel, values, mask=mask & (address != 0))


@triton.jit
def normalisation(layer, statistics, channel, mask, eps, GIVEN: tl.constexpr):
    """Mean, one over the deviation, factor and addend of channels; of the running statistics unless GIVEN."""
    outputs = field(layer, OUTPUTS)
    if GIVEN:
        at = statistics + tl.load(layer + STATISTICS)
        mean = tl.load(at + channel, mask=mask, other=0.0)
        var = tl.load(at + outputs + channel, mask=mask, other=1.0)
    else:
        mean = vector(layer, MEAN, channel, mask, 0.0)
        var = vector(layer, VAR, channel, mask, 1.0)
    inverse = tl.div_rn(tl.zeros_like(var) + 1.0, tl.sqrt_rn(var + eps))
    return mean, inverse, vector(layer, GAMMA, channel, mask, 1.0) * inverse, vector(layer, BETA, channel, mask, 0.0)


@triton.jit
def relu(x):
    """NaN stays NaN."""
    return tl.where(x < 0, 0.0, x)


@triton.jit
def layer_before(layer, index):
    """The layer before one in its chain; of the first, itself: what is read there is not used."""
    return layer - tl.where(index > 0, SIZE, 0)


@triton.jit
def source_of(x, kept, layer, index, x_pixel, PASSES: tl.constexpr):
    """Where a layer's input is: its first element, and how far it is to the next pixel and to the next channel. The
    first layer of a chain takes x's channels, the odd ones where the even ones pass; others what the layer before left.
    """
    before = layer_before(layer, index)
    is_first = index == 0
    own = x
    step = 1
    if PASSES:
        own = x + 1
        step = tl.where(is_first, 2, 1)
    base = tl.where(is_first, own, kept + tl.load(before + KEPT))
    return base, tl.where(is_first, x_pixel, field(before, OUTPUTS)), step


@triton.jit
def arriving(statistics, layer, index, channel, mask, eps, GIVEN: tl.constexpr):
    """What becomes of a layer's input on load: mean, factor and addend of channels, and whether ReLU follows. x stays
    as it is.
    """
    before = layer_before(layer, index)
    follows = index > 0
    mean, _, scale, beta = normalisation(before, statistics, channel, mask & follows, eps, GIVEN)
    return mean, tl.where(follows, scale, 1.0), beta, follows & (field(before, KERNEL) == 1)


@triton.jit
def layer_input(source, arrival, pixel, channel, mask):
    """A layer's input, float32, zero where `mask` is false. source, arrival: of `source_of` and `arriving`. pixel
    (int64), channel and arrival's vectors broadcast.
    """
    base, pixel_stride, step = source
    mean, scale, beta, is_clipped = arrival
    value = tl.load(base + pixel * pixel_stride + channel * step, mask=mask, other=0.0).to(tl.float32)
    value = (value - mean) * scale + beta
    return tl.where(mask & ~(is_clipped & (value < 0)), value, 0.0)  # NaN stays NaN


@triton.jit
def merged(count, mean, m2, tile, mask):
    """Moments of columns with those of another tile, of which the rows in `mask` count."""
    more = tl.sum(mask.to(tl.float32), 0)
    tile_mean = tl.sum(tl.where(mask, tile, 0.0), 0) / tl.maximum(more, 1.0)
    distance = tl.where(mask, tile - tile_mean[None, :], 0.0)
    total = tl.maximum(count + more, 1.0)
    between = tile_mean - mean
    share = more / total
    m2 += tl.sum(distance * distance, 0) + between * between * (count * share)
    return count + more, mean + between * share, m2


@triton.jit
def is_last(counter, programs):
    """Whether this program is the last of so many to come here; it sees what the others wrote. Zeroes the counter."""
    tl.debug_barrier()
    last = tl.atomic_add(counter, 1) == programs - 1
    if last:
        tl.store(counter, 0)
    return last


@triton.jit
def finish_moments(parts, counter, part, programs, layer, statistics, channel, count, mean, m2, BLOCK: tl.constexpr):
    """Leave a part's moments; the last program writes mean and biased variance. parts: [part][3][outputs]."""
    outputs = field(layer, OUTPUTS)
    mask = channel < outputs
    own = parts + tl.cast(part, tl.int64) * 3 * outputs + channel
    tl.store(own, count, mask=mask)
    tl.store(own + outputs, mean, mask=mask)
    tl.store(own + 2 * outputs, m2, mask=mask)
    if is_last(counter, programs):
        rows: tl.constexpr = 16
        total = tl.zeros((BLOCK,), tl.float32)
        weighted = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, programs, rows):
            number = first + tl.arange(0, rows)
            at = parts + number.to(tl.int64)[:, None] * 3 * outputs + channel[None, :]
            there = (number < programs)[:, None] & mask[None, :]
            counts = tl.load(at, mask=there, other=0.0, cache_modifier=".cg")
            total += tl.sum(counts, 0)
            weighted += tl.sum(counts * tl.load(at + outputs, mask=there, other=0.0, cache_modifier=".cg"), 0)
        all_mean = weighted / tl.maximum(total, 1.0)
        all_m2 = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, programs, rows):
            number = first + tl.arange(0, rows)
            at = parts + number.to(tl.int64)[:, None] * 3 * outputs + channel[None, :]
            there = (number < programs)[:, None] & mask[None, :]
            counts = tl.load(at, mask=there, other=0.0, cache_modifier=".cg")
            distance = tl.load(at + outputs, mask=there, other=0.0, cache_modifier=".cg") - all_mean[None, :]
            own_m2 = tl.load(at + 2 * outputs, mask=there, other=0.0, cache_modifier=".cg")
            all_m2 += tl.sum(tl.where(there, own_m2 + counts * distance * distance, 0.0), 0)
        to = statistics + tl.load(layer + STATISTICS) + channel
        tl.store(to, all_mean, mask=mask)
        tl.store(to + outputs, all_m2 / tl.maximum(total, 1.0), mask=mask)


@triton.jit
def finish_sums(parts, counter, part, programs, layer, sums, channel, first, second, BLOCK: tl.constexpr):
    """Leave a part's sums of a gradient, and of it times what was normalised; the last program adds them up, for the
    gradient of the convolution and those of beta and gamma. parts: [part][2][outputs].
    """
    outputs = field(layer, OUTPUTS)
    mask = channel < outputs
    own = parts + tl.cast(part, tl.int64) * 2 * outputs + channel
    tl.store(own, first, mask=mask)
    tl.store(own + outputs, second, mask=mask)
    if is_last(counter, programs):
        rows: tl.constexpr = 16
        all_first = tl.zeros((BLOCK,), tl.float32)
        all_second = tl.zeros((BLOCK,), tl.float32)
        for begin in range(0, programs, rows):
            number = begin + tl.arange(0, rows)
            at = parts + number.to(tl.int64)[:, None] * 2 * outputs + channel[None, :]
            there = (number < programs)[:, None] & mask[None, :]
            all_first += tl.sum(tl.load(at, mask=there, other=0.0, cache_modifier=".cg"), 0)
            all_second += tl.sum(tl.load(at + outputs, mask=there, other=0.0, cache_modifier=".cg"), 0)
        to = sums + tl.load(layer + STATISTICS) + channel
        tl.store(to, all_first, mask=mask)
        tl.store(to + outputs, all_second, mask=mask)
        put_vector(layer, DBETA, channel, all_first, mask)
        put_vector(layer, DGAMMA, channel, all_second, mask)
