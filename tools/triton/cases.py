"""Calls of the Triton kernels as networks make them: each launch of theirs is recorded, and compiled ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spos_kernels import triton as kernels
from spos_kernels.layout import empty_nhwc
from spos_kernels.triton.launch import Kernel

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class Launch(NamedTuple):
    """A launch that a call makes: its kernel, arguments and constants."""

    kernel: Kernel
    arguments: tuple[Any, ...]
    constants: dict[str, Any]


def maps(batch: int, channels: int, side: int, dtype: torch.dtype) -> Tensor:
    return empty_nhwc((batch, channels, side, side), like=torch.empty(0, dtype=dtype))


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def convolutions(dtype: torch.dtype) -> None:
    """Pointwise and 3×3 slices of wider weights, all passes; depthwise ones of every size and stride."""
    cases = [(1, 1, False), (3, 2, False), (3, 1, True)]
    for kernel, stride, tf32 in cases[: 3 - FLOATS.index(dtype)]:
        side = 28 // stride
        x, y = maps(32, 96, 28, dtype), maps(32, 160, side, dtype)
        weight = floats(192, 128, kernel, kernel, dtype=dtype)
        options = (0, 0, stride, kernel // 2, 1)
        kernels.sliced_conv2d_forward(x, weight, None, y, *options, tf32, None, None, 0)
        kernels.sliced_conv2d_dgrad(y, weight, x, *options, tf32, None, None, 0)
        size = kernels.sliced_conv2d_wgrad_workspace(x, y, weight, *options)
        kernels.sliced_conv2d_wgrad(x, y, weight, *options, False, tf32, floats(size), None, None, 0)
    for kernel in (3, 5, 7) if dtype is torch.float32 else (7,):
        for stride in (1, 2) if kernel == 3 else (1,):
            x, y = maps(32, 96, 28, dtype), maps(32, 96, 28 // stride, dtype)
            weight = floats(96, 1, kernel, kernel, dtype=dtype)
            kernels.depthwise_conv2d_forward(x, weight, y, stride, kernel // 2, None, 0)
            kernels.depthwise_conv2d_dgrad(y, weight, x, stride, kernel // 2, None, 0)
            size = kernels.depthwise_conv2d_wgrad_workspace(x, y, weight, stride, kernel // 2)
            kernels.depthwise_conv2d_wgrad(x, y, weight, stride, kernel // 2, False, floats(size), None, 0)


def layers(channels: int, mid: int, out: int, stride: int, kernel: int, dtype: torch.dtype) -> tuple[Any, ...]:
    inputs = channels // 2 if stride == 1 else channels

    def layer(outputs: int, of: int, size: int) -> tuple[Tensor, ...]:
        weight = floats(outputs, 1 if size > 1 else of, size, size, dtype=dtype)
        return (weight, *(floats(outputs) for _ in range(4)), torch.zeros((), dtype=torch.int64))

    main = (layer(mid, inputs, 1), layer(mid, mid, kernel), layer(out, mid, 1))
    proj = (layer(inputs, inputs, kernel), layer(inputs, inputs, 1)) if stride == 2 else ()
    return (*main, *proj)


def choice_blocks(dtype: torch.dtype) -> None:
    """Blocks with the choice in memory: forward, backward, evaluation, and gradients through running statistics."""
    for stride in (1, 2):
        x = maps(32, 64, 28, dtype)
        out = 32 if stride == 1 else 64
        y = maps(32, 64 if stride == 1 else 128, 28 // stride, dtype)
        branches = []
        for kernel in (3, 7):
            own = layers(64, 32, out, stride, kernel, dtype)
            gradients = tuple(tuple(torch.empty_like(t) for t in layer[:3]) for layer in own)
            branches.append((own, 3, gradients))
        table = kernels.ChoiceTable(x, branches, stride, False)
        rows = torch.frombuffer(bytearray(table.rows()), dtype=torch.uint8)
        kept_size, statistics_size, *workspaces = table.sizes()
        memory = (floats(kept_size, dtype=dtype), floats(statistics_size))
        workspace = torch.empty(max(workspaces), dtype=torch.uint8)
        counters = torch.zeros(kernels.CHOICE_BLOCK_COUNTERS, dtype=torch.int32)
        choice = torch.zeros(1, dtype=torch.int32)
        place = (x, rows, choice)
        for tf32 in (False, True) if dtype is torch.float32 else (False,):
            table.forward(*place, y, *memory, workspace, counters, 0.1, 1e-5, tf32, 0)
            table.evaluate(*place, y, memory[0], workspace, counters, 1e-5, tf32, 0)
            table.backward(y, *place, *memory, torch.empty_like(x), workspace, counters, 1e-5, tf32, 0)
            own, main, gradients = branches[0]
            kernels.choice_block_backward(
                y, x, own, main, stride, False, *memory, x, gradients, workspace, counters, False, 1e-5, tf32, 0
            )


def fake_quantization(dtype: torch.dtype) -> None:
    x = torch.empty(1 << 16, dtype=dtype)
    for method in ("dorefa", "pact", "lsq") if dtype is torch.float32 else ("lsq",):
        for channels, inner in ((1, 1 << 16), (64, 1)):
            options = (method, 4, method == "lsq", channels, inner, 0)
            scale = floats(channels)
            workspace = floats(kernels.fake_quantize_workspace(x, *options))
            kernels.fake_quantize_forward(x, scale, None, torch.empty_like(x), *options)
            codes = torch.empty_like(x, dtype=torch.int8 if method == "lsq" else torch.uint8)
            kernels.fake_quantize_codes(x, scale, None, codes, *options)
            dscale = None if method == "dorefa" else scale
            kernels.fake_quantize_backward(x, x, scale, None, x, dscale, workspace, *options)
            if method == "dorefa":
                kernels.fake_quantize_maximum(x, scale, workspace, *options)


def low_bits(_: torch.dtype) -> None:
    """Every width of weights on codes, and floats quantized on the way, with all that may follow; depthwise ones."""
    sizes = (8, 28, 28, 28, 28, 1, 128, 128, 3, 3, 1, 1, 1, 1, 1, 1)
    alone = (8, 28, 28, 28, 28, 128, 1, 1, 3, 3, 1, 1, 1, 1, 1, 1)
    rows = 8 * 28 * 28
    codes, y = torch.empty(rows, 128, dtype=torch.uint8), floats(rows, 128)
    sums, zero, scale = (torch.empty(1, 128, dtype=kind) for kind in (torch.int32, torch.int32, torch.float32))

    def run(x: Tensor, bits: int, of: tuple[int, ...], full: bool) -> None:
        packed = torch.empty(128, (9 * of[6] * bits + 7) // 8, dtype=torch.uint8)
        more = (scale[0], codes, None, y, codes) if full else (None, None, None, y, None)
        scales = (0.1 if x.is_floating_point() else None, 0.1 if full else None, 0.1 if full else None)
        numbers = (4, 0, bits, 1, 0, 4, 0)
        wanted = (-1, 0, 0, 0)
        kernels.lowbit_conv2d(
            x, packed, sums, zero, scale, *more, of, numbers, scales, full, False,
            wanted=wanted, workspace=codes, counters=zero, stream=0,
        )  # fmt: skip

    for bits in range(1, 9):
        run(codes, bits, sizes, full=bits == 4)
    run(y, 4, sizes, full=True)
    run(codes, 4, alone, full=True)


def weights_only(dtype: torch.dtype) -> None:
    x, y = floats(8 * 28 * 28, 128, dtype=dtype), floats(8 * 28 * 28, 128, dtype=dtype)
    sizes = (8, 28, 28, 28, 28, 1, 128, 128, 3, 3, 1, 1, 1, 1, 1, 1)
    for bits in range(1, 9) if dtype is not torch.bfloat16 else (4,):
        packed = torch.empty(128, 9 * 128 * bits // 8, dtype=torch.uint8)
        zero = torch.empty(1, 128, dtype=torch.int32)
        for bias in (None, floats(128)) if bits == 4 else (None,):
            relu = bias is not None
            kernels.weight_only_conv2d(x, packed, zero, floats(1, 128), bias, y, sizes, bits, relu, False, 0)


def descent(_: torch.dtype) -> None:
    rates, scale = floats(1), floats(1)
    table = torch.zeros(18 * 8 * 4, dtype=torch.uint8)
    parameter = floats(4, 4096)
    update = (parameter, parameter, parameter, 0, 4, 4096, 4096, 0.9, 1e-4, False, 0, None, 0, None, 1, None, 1)
    step = kernels.SgdTable([update], 1)
    step.run(table, rates, scale, 0)
    step.clip(table, 1.0, floats(4, dtype=torch.float64), torch.zeros(1, dtype=torch.int32), scale, 0)


def network_ends(dtype: torch.dtype) -> None:
    images, windows = maps(32, 3, 32, dtype), maps(32, 27, 32, dtype)
    kernels.im2row(images, windows, 3, 1, 1, 0)
    features, step = floats(32, 27, dtype=dtype), torch.zeros(1, dtype=torch.int64)
    for backward in (False, True):
        kernels.pool(windows, features, 0.1, 1 << 40, step, backward, 0)
    labels = torch.zeros(32, dtype=torch.int64)
    kernels.cross_entropy(features, labels, floats(32), floats(1), torch.empty_like(features), 0.1, 0)


CASES: dict[Callable[[torch.dtype], None], tuple[torch.dtype, ...]] = {
    convolutions: FLOATS,
    choice_blocks: FLOATS,
    fake_quantization: FLOATS,
    network_ends: FLOATS,
    low_bits: (torch.float32,),
    weights_only: FLOATS,
    descent: (torch.float32,),
}


def launches() -> Iterator[Launch]:
    """Yield what all cases launch."""
    found: list[Launch] = []
    Kernel.recorder = lambda kernel, arguments, constants: found.append(Launch(kernel, arguments, constants))
    try:
        for case, dtypes in CASES.items():
            for dtype in dtypes:
                case(dtype)
    finally:
        Kernel.recorder = None
    yield from found
