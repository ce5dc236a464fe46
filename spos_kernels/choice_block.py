"""One path through a ShuffleNet V2 choice block, convolutions, batch normalisations, shuffle and all, as one operation.

An eager call on plain tensors goes through an autograd.Function straight to the extension; everything else that torch
may do with a call goes through the same functions as operators of torch.library. What a block is made of and what
is accepted is in choice_block_reference.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spos_kernels import _C
from spos_kernels.backends import ISA, is_plain, resolve_backend, threads_for
from spos_kernels.choice_block_reference import Branch, Layer, describe, run_reference
from spos_kernels.layout import as_nhwc, empty_nhwc

__all__ = ["choice_block"]

# Of each layer weight, gamma and beta, those of main first; None for no gamma and beta.
Bank = list[Tensor | None]


def choice_block(
    x: Tensor,
    branches: Sequence[Branch],
    choice: int,
    *,
    stride: int = 1,
    training: bool = True,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Run branch `choice` of a ShuffleNet V2 choice block (arXiv 1904.00420, appendix). Differentiable once.

    Stride 1: the even channels of x pass, the odd ones go through `main`, and the result is [passed, main]. Stride 2:
    it is [proj(x), main(x)]. Every convolution is followed by batch normalisation, every pointwise one by ReLU too
    (see `ConvBN`). Only `branches[choice]` is read, updated or given gradients.

    x: [N, C, H, W] float32 or float64, C even at stride 1; channels_last tensors and slices of their channels are read
        in place, other layouts are copied first. N may be 0 outside of training.
    branches: one `Branch` an option. Weights may be slices of wider ones.
    training: True normalises by the batch's statistics and updates running_mean, running_var and num_batches_tracked
        in place as nn.BatchNorm2d does; False normalises by the running statistics.
    momentum: share of the new value in the running statistics; None for their mean over all batches so far.
    eps: added to the variance.

    Returns [N, C', H', W'] in channels_last memory, H' = (H - 1) // stride + 1. For backward it keeps x, the outputs of
    the convolutions and their statistics. Under CPU autocast, bfloat16 and float16 arguments are cast to float32. The
    same bits come out for every number of threads. float64 runs in the portable kernels, which exist to check
    gradients. For double backward use the backend "reference".

    Raises TypeError or ValueError, naming the argument, as in `branches[2].main[1].weight`.
    """
    block = describe(x, branches, choice, stride, training, momentum, eps)
    backend = resolve_backend(block.x)
    if backend == "reference" or block.x.shape[0] == 0:
        return run_reference(block, training, momentum, eps)
    layers = block.main + block.proj
    bank: Bank = [tensor for layer in layers for tensor in layer.tensors[:3]]
    if not training:
        given = [t for layer in layers for t in (layer.tensors.running_mean, layer.tensors.running_var)]
        statistics = torch.cat(given)  # type: ignore[arg-type]  # describe() has seen that they are there
    else:
        statistics = None
    arguments = (block.x, bank, statistics, len(block.main), stride, eps, backend)
    tensors = [t for t in (block.x, *bank) if t is not None]
    if is_plain(*tensors):
        y, statistics = _Eager.apply(*arguments[:1], *arguments[2:], *bank)
    else:
        y, statistics, _ = torch.ops.spos_kernels.choice_block(*arguments)
    if training:
        _track(layers, statistics, block.x.shape[0], momentum)
    return y


def _track(layers: Sequence[Layer], statistics: Tensor, batch: int, momentum: float | None) -> None:
    """Update running statistics from the batch's, layer by layer, as nn.BatchNorm2d does."""
    counts = [layer.tensors.num_batches_tracked for layer in layers if layer.tensors.num_batches_tracked is not None]
    with torch.no_grad():
        if counts:
            torch._foreach_add_(counts, 1)
        entries = []
        for layer in layers:
            _, _, _, mean, var, count = layer.tensors
            if mean is None or var is None:
                return
            fraction = momentum if momentum is not None else 1 / float(count)
            entries.append((mean, var, fraction, batch * layer.height * layer.width))
        if is_plain(statistics, *(t for entry in entries for t in entry[:2])):
            _C.choice_block_update(statistics, tuple(entries))


# The two kernels, as functions of plain tensors. A layer is known by its weight: [C, 1, k, k] with k > 1 is depthwise.


class _Shape:
    """The sizes of a call's outputs, from its input and the weights of its layers."""

    def __init__(self, x: Tensor, bank: Sequence[Tensor | None], main: int, stride: int) -> None:
        batch, channels, height, width = x.shape
        small_height, small_width = (height - 1) // stride + 1, (width - 1) // stride + 1
        self.kept = self.statistics = self.multiply_adds = 0
        for chain in (bank[: 3 * main : 3], bank[3 * main :: 3]):
            pixels = batch * height * width
            for weight in chain:
                assert weight is not None
                outputs, inputs, kernel, _ = weight.shape
                if kernel > 1:
                    pixels = batch * small_height * small_width
                self.kept += pixels * outputs
                self.statistics += 2 * outputs
                self.multiply_adds += pixels * outputs * inputs * kernel * kernel
        last = bank[3 * main - 3]
        assert last is not None
        self.y = (batch, (channels // 2 if stride == 1 else channels) + last.shape[0], small_height, small_width)


def _dense_pixels(x: Tensor) -> Tensor:
    """Return x in NHWC with all pixels at one distance: itself if it is so already."""
    x = as_nhwc(x)
    batch, channels, height, width = x.shape
    pixel = x.stride(3) if width > 1 else channels if height == 1 and batch == 1 else None
    if pixel is None:
        pixel = x.stride(2) if height > 1 else x.stride(0)
    row_fits = height == 1 or x.stride(2) == width * pixel
    image_fits = batch == 1 or x.stride(0) == height * width * pixel
    if row_fits and image_fits and (width > 1 or pixel == channels):
        return x
    return x.contiguous(memory_format=torch.channels_last)


def _rows(weight: Tensor) -> Tensor:
    """Return a weight as the kernels read it: a pointwise one [O, I, 1, 1] with adjacent inputs, others dense."""
    if weight.shape[-1] == 1 and (weight.stride(1) == 1 or weight.shape[1] == 1):
        return weight
    return weight.contiguous()


def _chains(bank: Sequence[Tensor | None], main: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    layers = tuple(
        (_rows(weight), gamma, beta)
        for weight, gamma, beta in zip(bank[::3], bank[1::3], bank[2::3], strict=True)
        if weight is not None
    )
    return layers[:main], layers[main:]


def _forward(
    x: Tensor, bank: Sequence[Tensor | None], given: Tensor | None, main: int, stride: int, eps: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    shape = _Shape(x, bank, main, stride)
    y = empty_nhwc(shape.y, like=x)
    saved = x.new_empty(shape.kept)
    statistics = x.new_empty(shape.statistics) if given is None else given
    threads = threads_for(shape.multiply_adds)
    chains = _chains(bank, main)
    _C.choice_block_forward(_dense_pixels(x), *chains, y, saved, statistics, stride, given is None, eps, ISA, threads)
    return y, statistics, saved


def _backward(
    dy: Tensor,
    x: Tensor,
    bank: Sequence[Tensor | None],
    statistics: Tensor,
    saved: Tensor,
    wanted: Sequence[bool],
    main: int,
    stride: int,
    training: bool,
    eps: float,
    backend: str,
) -> list[Tensor | None]:
    """Return dx, then the gradients of the bank; None where `wanted`, in the same order, is False."""
    dx = empty_nhwc(x.shape, like=x) if wanted[0] else None
    gradients = [
        torch.empty(t.shape, dtype=t.dtype) if t is not None and want else None
        for t, want in zip(bank, wanted[1:], strict=True)
    ]
    threads = threads_for(2 * _Shape(x, bank, main, stride).multiply_adds)
    layers = tuple(zip(gradients[::3], gradients[1::3], gradients[2::3], strict=True))
    _C.choice_block_backward(
        _dense_pixels(dy),
        _dense_pixels(x),
        *_chains(bank, main),
        saved,
        statistics,
        dx,
        layers,
        stride,
        training,
        eps,
        ISA,
        threads,
    )
    return [dx, *gradients]


def _refuse_double_backward() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "choice_block: backend 'cpu' has no double backward (create_graph=True): use backend 'reference'"
        )


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        given: Tensor | None,
        main: int,
        stride: int,
        eps: float,
        backend: str,
        *bank: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        x = _dense_pixels(x)
        y, statistics, saved = _forward(x, bank, given, main, stride, eps, backend)
        ctx.options = (main, stride, given is None, eps, backend)
        ctx.save_for_backward(x, statistics, saved, *bank)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        _refuse_double_backward()
        x, statistics, saved, *bank = ctx.saved_tensors
        wanted = [ctx.needs_input_grad[0], *ctx.needs_input_grad[6:]]
        dx, *gradients = _backward(dy, x, bank, statistics, saved, wanted, *ctx.options)
        return dx, None, None, None, None, None, *gradients
