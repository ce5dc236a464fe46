"""What each Triton kernel has to move and to compute for typical shapes.

Bytes are those of operands from and results to the device's memory, each once; operations count a multiply-add as two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

SIZES = {"fp32": 4, "fp16": 2}


class Work(NamedTuple):
    """A kernel's name, "file.function", its shapes, bytes and operations; unit: "fp32", or a key of peaks.py's rates of
    tensor cores.
    """

    kernel: str
    shapes: str
    bytes: float
    operations: float
    unit: str = "fp32"


def convolutions() -> Iterator[Work]:
    for kind, size in SIZES.items():
        unit = "fp32" if kind == "fp32" else "mma_f16"
        for kernel, inputs, outputs, side in ((1, 96, 160, 28), (3, 96, 160, 28)):
            pixels = 32 * side * side
            x, y, w = pixels * inputs, pixels * outputs, inputs * outputs * kernel * kernel
            shapes = f"{kind}, 32 × {inputs} × {side}² to {outputs}, {kernel}×{kernel}"
            for name in ("sliced_conv2d.rows_kernel", "sliced_conv2d_wgrad.wgrad_kernel"):
                yield Work(name, shapes, size * (x + y + w), 2 * pixels * w, unit)
            parts = 16
            moved = 4 * parts * w + size * w
            yield Work("sliced_conv2d_wgrad.add_parts_kernel", f"{shapes}, {parts} parts", moved, parts * w)
        for kernel in (3, 5, 7):
            both = 2 * 32 * 28 * 28 * 96
            shapes = f"{kind}, 32 × 96 × 28², {kernel}×{kernel}"
            for name in ("convolve_kernel", "depthwise_wgrad_kernel"):
                yield Work(f"depthwise_conv2d.{name}", shapes, size * both, both * kernel * kernel)


def blocks() -> Iterator[Work]:
    """A block of stride 1, 64 channels at 28², 32 inside of the branch, 5×5."""
    pixels, channels, k = 32 * 28 * 28, 32, 5
    one = pixels * channels  # elements of a map inside
    product, taps = 2 * one * channels, 2 * one * k * k
    for kind, size in SIZES.items():
        shapes = f"{kind}, 32 × 64 × 28², 5×5, stride 1"
        unit = "fp32" if kind == "fp32" else "mma_f16"
        forward, dgrad = "choice_block_forward", "choice_block_{}_backward.{}_dgrad_kernel"
        wgrad = "choice_block_{}_backward.{}_wgrad_kernel"
        # The channels that pass lie between the others: both are moved. A dz is made of dy and z.
        yield Work(f"{forward}.pointwise_forward_kernel", shapes, size * 2 * one, product, unit)
        yield Work(f"{forward}.depthwise_forward_kernel", shapes, size * 2 * one, taps)
        yield Work(f"{forward}.output_kernel", shapes, size * (1 + 2 + 2) * one, 4 * one)
        yield Work("choice_block_gradients.end_sums_kernel", shapes, size * 2 * one, 8 * one)
        for which, operations, by in (("pointwise", product, unit), ("depthwise", taps, "fp32")):
            yield Work(dgrad.format(which, which), shapes, size * 4 * one, operations, by)
            yield Work(wgrad.format(which, which), shapes, size * 3 * one, operations, by)


def quantization() -> Iterator[Work]:
    elements = 8 * 64 * 56 * 56
    for kind, size in SIZES.items():
        shapes = f"{kind}, {elements:,} elements"
        yield Work("fake_quantize_kernels.quantize_kernel", shapes, 2 * size * elements, 15 * elements)
        for name, what in (("columns_kernel", "a scale a channel"), ("runs_kernel", "one scale")):
            yield Work(f"fake_quantize_kernels.{name}", f"{shapes}, {what}", 3 * size * elements, 20 * elements)
    yield Work("fake_quantize_kernels.finish_kernel", "512 parts of 64 channels", 4 * 513 * 64, 512 * 64)
    pixels, channels = 8 * 28 * 28, 128
    weights = 9 * channels * channels
    for bits in (1, 2, 4, 8):
        moved = 2 * pixels * channels + weights * bits / 8
        shapes = f"w{bits}, 8 × {channels} × 28² codes to {channels}, 3×3"
        yield Work("lowbit.lowbit_kernel", shapes, moved, 2 * pixels * weights, "mma_s8")
        moved = 2 * 2 * pixels * channels + weights * bits / 8
        shapes = f"w{bits}, fp16, 8 × {channels} × 28² to {channels}, 3×3"
        yield Work("weight_only.weight_only_kernel", shapes, moved, 2 * pixels * weights, "mma_f16")
    shapes = f"w4, 8 × {channels} × 28² codes, 3×3 depthwise"
    yield Work("lowbit.lowbit_depthwise_kernel", shapes, 2 * pixels * channels, 18 * pixels * channels)


def others() -> Iterator[Work]:
    yield Work("sgd.sgd_kernel", "4,000,000 parameters with momentum", 20 * 4e6, 6 * 4e6)
    yield Work("sgd.clip_kernel", "4,000,000 gradients", 4 * 4e6, 2 * 4e6)
    pixels, image = 256 * 112 * 112, 256 * 3 * 224 * 224
    yield Work(
        "network_ends.windows_kernel", "fp32, 256 × 3 × 224², 3×3, stride 2", 4 * (image + 27 * pixels), 27 * pixels
    )
    for name in ("pool_kernel", "pool_backward_kernel"):
        yield Work(f"network_ends.{name}", "fp32, 256 × 1024 × 7²", 4 * 256 * 1024 * 50, 256 * 1024 * 49)
    yield Work("network_ends.cross_entropy_kernel", "fp32, 256 × 1000", 3 * 4 * 256 * 1000, 20 * 256 * 1000)
    yield Work("network_ends.mean_kernel", "256 losses", 4 * 257, 256)


def works() -> Iterator[Work]:
    """Yield the work of all kernels."""
    yield from (*convolutions(), *blocks(), *quantization(), *others())
