"""What stands before and behind a network's blocks: windows for the first convolution, mean over the map with dropout,
cross entropy.

Bytes: windows are written once and read k² / stride² times, from L1 but for the first; the mean reads its map once. The
cross entropy is small: a program for each row of logits, then one that adds the losses up in their order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from spos_kernels.triton.elements import stored
from spos_kernels.triton.launch import blocks, fixed, kernel
from spos_kernels.triton.sliced_conv2d import maps


@kernel(fixed(BLOCK=1024))
def windows_kernel(
    x,
    y,
    size,
    channels,
    in_height,
    in_width,
    out_height,
    out_width,
    x_n,
    x_h,
    x_w,
    stride,
    padding,
    KERNEL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    channel = at % channels
    tap = at // channels % (KERNEL * KERNEL)
    pixel = at // channels // (KERNEL * KERNEL)
    row = pixel // out_width % out_height * stride - padding + tap // KERNEL
    column = pixel % out_width * stride - padding + tap % KERNEL
    inside = mask & (row >= 0) & (row < in_height) & (column >= 0) & (column < in_width)
    image = pixel // (out_height * out_width)
    value = tl.load(x + image * x_n + row * x_h + column * x_w + channel, mask=inside, other=0.0)
    tl.store(y + at, value, mask=mask)


def im2row(x: Tensor, y: Tensor, kernel_size: int, stride: int, padding: int, stream: int) -> None:
    (_, channels, in_height, in_width), strides = maps(x)
    (_, _, out_height, out_width), _ = maps(y)
    windows_kernel.launch(
        lambda meta: (blocks(y.numel(), meta["BLOCK"]),),
        x, y, y.numel(), channels, in_height, in_width, out_height, out_width, *strides, stride, padding,
        KERNEL=kernel_size,
    )  # fmt: skip


@triton.jit
def kept_factor(feature, seed, step, rate, HAS_DROPOUT: tl.constexpr):
    """1 / (1 - rate), or 0 where the feature is dropped: by Philox 4x32-10 of seed, step and feature."""
    factor = tl.zeros(feature.shape, tl.float32) + 1.0
    if HAS_DROPOUT:
        number = tl.load(step)
        low = feature.to(tl.uint32)
        zeros = tl.zeros_like(low)
        draw, _, _, _ = tl.philox(
            seed, low, (feature >> 32).to(tl.uint32), zeros + number.to(tl.uint32), zeros + (number >> 32).to(tl.uint32)
        )
        uniform = (draw >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08
        factor = tl.where(uniform < rate, 0.0, 1.0 / (1.0 - rate))
    return factor


@kernel(fixed(BLOCK=128))
def pool_kernel(
    x, features, step, seed, rate, channels, pixels, HAS_DROPOUT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = channel < channels
    total = tl.zeros((BLOCK,), tl.float32)
    for pixel in range(pixels):
        total += tl.load(x + (image * pixels + pixel) * channels + channel, mask=mask, other=0.0).to(tl.float32)
    feature = image * channels + channel
    total *= kept_factor(feature, seed, step, rate, HAS_DROPOUT) / pixels
    tl.store(features + feature, stored(total, features), mask=mask)


@kernel(fixed(BLOCK=128))
def pool_backward_kernel(
    dx, features, step, seed, rate, channels, pixels, HAS_DROPOUT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = channel < channels
    feature = image * channels + channel
    value = tl.load(features + feature, mask=mask, other=0.0).to(tl.float32)
    value = stored(value * (kept_factor(feature, seed, step, rate, HAS_DROPOUT) / pixels), dx)
    for pixel in range(pixels):
        tl.store(dx + (image * pixels + pixel) * channels + channel, value, mask=mask)


def pool(
    map_: Tensor, features: Tensor, rate: float, seed: int, step: Tensor | None, backward: bool, stream: int
) -> None:
    batch, channels, height, width = map_.shape
    signed = seed - (1 << 64) if seed >= 1 << 63 else seed
    (pool_backward_kernel if backward else pool_kernel).launch(
        lambda meta: (batch, blocks(channels, meta["BLOCK"])),
        map_, features, map_ if step is None else step, signed, rate, channels, height * width,
        HAS_DROPOUT=rate > 0,
    )  # fmt: skip


@kernel(fixed(BLOCK=256))
def cross_entropy_kernel(
    logits, labels, losses, dlogits, batch, classes, smoothing, BLOCK: tl.constexpr
):  # fmt: skip
    """A row of logits: its loss, and the gradient of the mean of all. A label that is no class makes it NaN."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    base = row * classes
    most = tl.full((BLOCK,), float("-inf"), tl.float32)
    for first in range(0, classes, BLOCK):
        column = first + tl.arange(0, BLOCK)
        value = tl.load(logits + base + column, mask=column < classes, other=float("-inf")).to(tl.float32)
        most = tl.maximum(most, value)
    largest = tl.max(most, 0)
    exponentials = tl.zeros((BLOCK,), tl.float32)
    distances = tl.zeros((BLOCK,), tl.float32)
    right = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, classes, BLOCK):
        column = first + tl.arange(0, BLOCK)
        mask = column < classes
        distance = tl.load(logits + base + column, mask=mask, other=0.0).to(tl.float32) - largest
        exponentials += tl.where(mask, tl.exp(distance), 0.0)
        distances += tl.where(mask, distance, 0.0)
        right += tl.where(mask & (column == label), distance, 0.0)
    total = tl.sum(exponentials, 0)
    others = smoothing / classes
    loss = tl.log(total) - (1.0 - smoothing) * tl.sum(right, 0) - others * tl.sum(distances, 0)
    loss = tl.where((label >= 0) & (label < classes), loss, float("nan"))
    tl.store(losses + row, loss)
    for first in range(0, classes, BLOCK):
        column = first + tl.arange(0, BLOCK)
        mask = column < classes
        value = tl.load(logits + base + column, mask=mask, other=0.0).to(tl.float32)
        target = others + tl.where(column == label, 1.0 - smoothing, 0.0)
        gradient = (tl.exp(value - largest) / total - target) / batch
        tl.store(dlogits + base + column, stored(gradient, dlogits), mask=mask)


@kernel(fixed(num_warps=1, BLOCK=256))
def mean_kernel(losses, loss, batch, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, batch, BLOCK):
        number = first + tl.arange(0, BLOCK)
        total += tl.load(losses + number, mask=number < batch, other=0.0)
    tl.store(loss, tl.sum(total, 0) / batch)


def cross_entropy(
    logits: Tensor, labels: Tensor, losses: Tensor, loss: Tensor, dlogits: Tensor, smoothing: float, stream: int
) -> None:
    batch, classes = logits.shape
    cross_entropy_kernel.launch(lambda _: (batch,), logits, labels, losses, dlogits, batch, classes, smoothing)
    mean_kernel.launch(lambda _: (1,), losses, loss, batch)
