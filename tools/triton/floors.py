"""Writes docs/triton-floors.md: what each Triton kernel has to move and to compute, and the least time that takes.

Bytes are those of operands from and results to the device's memory, each once for the whole operation; operations count
a multiply-add as two. The floor is the larger of bytes by the rate of memory and operations by the rate of the units
that do them, from the published peaks of tools/gpu/peaks.py. Nothing here was measured.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "gpu"))

import peaks  # noqa: E402

PAGE = ROOT / "docs" / "triton-floors.md"
SIZES = {"fp32": 4, "fp16": 2}


class Work(NamedTuple):
    """An operation's name, shapes, bytes and operations; unit: "fp32", or a key of the tensor cores' rates."""

    kernel: str
    shapes: str
    bytes: float
    operations: float
    unit: str


def convolutions() -> Iterator[Work]:
    for kind, size in SIZES.items():
        unit = "fp32" if kind == "fp32" else "mma_f16"
        for kernel, inputs, outputs, side in ((1, 96, 160, 28), (3, 96, 160, 28)):
            pixels = 32 * side * side
            x, y, w = pixels * inputs, pixels * outputs, inputs * outputs * kernel * kernel
            work = 2 * pixels * w
            shapes = f"{kind}, 32 × {inputs} × {side}² to {outputs}, {kernel}×{kernel}"
            for name in ("rows_kernel, forward", "rows_kernel, dgrad", "wgrad_kernel"):
                yield Work(name, shapes, size * (x + y + w), work, unit)
        for kernel in (3, 5, 7):
            pixels, channels = 32 * 28 * 28, 96
            both, work = 2 * pixels * channels, 2 * pixels * channels * kernel * kernel
            shapes = f"{kind}, 32 × {channels} × 28², {kernel}×{kernel} depthwise"
            for name in ("convolve_kernel", "depthwise_wgrad_kernel"):
                yield Work(name, shapes, size * both, work, "fp32")


def blocks() -> Iterator[Work]:
    """A block of stride 1, 64 channels at 28², 32 inside of the branch, 5×5: all of its kernels together."""
    pixels, channels, k = 32 * 28 * 28, 32, 5
    for kind, size in SIZES.items():
        maps = pixels * channels
        products = 2 * 2 * pixels * channels * channels + 2 * maps * k * k
        shapes = f"{kind}, 32 × 64 × 28², 5×5, stride 1"
        unit = "fp32"  # what is not depthwise is little
        # x's half, three maps written and read, y: 9 of the size of one.
        yield Work("choice block, forward", shapes, size * maps * (1 + 2 * 3 + 1 + 2), products, unit)
        # Of each layer: dy and z twice, its input once, the gradient of it written; dy of the end once more.
        yield Work("choice block, backward", shapes, size * maps * (3 * 6 + 2 + 3), 2 * products, unit)


def others() -> Iterator[Work]:
    elements = 8 * 64 * 56 * 56
    for kind, size in SIZES.items():
        shapes = f"{kind}, {elements:,} elements"
        yield Work("quantize_kernel", shapes, 2 * size * elements, 15 * elements, "fp32")
        yield Work("columns_kernel, runs_kernel (backward)", shapes, 3 * size * elements, 20 * elements, "fp32")
    pixels, channels = 8 * 28 * 28, 128
    for bits in (1, 2, 4, 8):
        weights = 9 * channels * channels
        moved = 2 * pixels * channels + weights * bits / 8
        shapes = f"w{bits}, 8 × {channels} × 28² codes to {channels}, 3×3"
        yield Work("lowbit_kernel", shapes, moved, 2 * pixels * weights, "mma_s8")
    yield Work("sgd_kernel", "4,000,000 parameters with momentum", 20 * 4e6, 6 * 4e6, "fp32")
    yield Work("clip_kernel", "4,000,000 gradients", 4 * 4e6, 2 * 4e6, "fp32")
    yield Work("pool_kernel", "fp32, 256 × 1024 × 7²", 4 * 256 * 1024 * 50, 256 * 1024 * 49, "fp32")
    yield Work("cross_entropy_kernel", "fp32, 256 × 1000", 3 * 4 * 256 * 1000, 20 * 256 * 1000, "fp32")


def floor(work: Work, device: peaks.Device) -> str:
    rate = device.fp32 if work.unit == "fp32" else device.tensor[work.unit]
    by_memory, by_units = 1e6 * work.bytes / device.memory, 1e6 * work.operations / rate
    which = "memory" if by_memory >= by_units else "fp32" if work.unit == "fp32" else "tensor cores"
    return f"{max(by_memory, by_units):.3g} {which}"


def page() -> str:
    devices = [device for device in peaks.DEVICES if device.name in ("A100", "H100")]
    lines = [
        "# The least time of the Triton kernels",
        "",
        "**Not run: no time on this page was measured.** Written by `tools/triton/floors.py`. Bytes: operands from the",
        "device's memory and results to it, each once. Intensity: operations a byte. Floors in µs and what sets them,",
        "from the peaks that [cuda-bounds.md](cuda-bounds.md) cites; a launch takes some µs more.",
        "",
        "| kernel | shapes | MB | M operations | intensity | " + " | ".join(d.name for d in devices) + " |",
        "|---|---|--:|--:|--:|" + "--:|" * len(devices),
    ]
    for work in (*convolutions(), *blocks(), *others()):
        floors = " | ".join(floor(work, device) for device in devices)
        lines.append(
            f"| {work.kernel} | {work.shapes} | {work.bytes / 1e6:.3g} | {work.operations / 1e6:.4g} | "
            f"{work.operations / work.bytes:.3g} | {floors} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
