"""One path through a ShuffleNet V2 choice block, convolutions, batch normalisations, shuffle and all, as one operation.

An eager call on plain tensors is checked by the extension and goes through an autograd.Function straight to its
kernels; everything else that torch may do with a call goes through the same functions as operators of torch.library.
What a block is made of and what is accepted is in choice_block_reference.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

import spos_kernels.choice_block_operators  # noqa: F401  (registers them)
from spos_kernels import _C
from spos_kernels.backends import GPU, is_autocast, is_plain, resolve_backend, takes_kernels
from spos_kernels.choice_block_kernels import dense_pixels, measure, plan_of, rows, run, running
from spos_kernels.choice_block_reference import Block, Branch, Layer, Link, describe, run_reference
from spos_kernels.cuda import choice_block as cuda

__all__ = ["choice_block"]


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
    it is [proj(x), main(x)], `proj` having C outputs. Every convolution is followed by batch normalisation, every
    pointwise one by ReLU too (see `ConvBN`). Only `branches[choice]` is read, updated or given gradients.

    x: [N, C, H, W] float32 or float64, on backends "cuda" and "cuda-emulated" float32, float16 or bfloat16; C even at
        stride 1. channels_last tensors and slices of their channels are read in place, other layouts are copied first.
        N may be 0 outside of training.
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
    if type(branches) in (list, tuple) and type(choice) is int and 0 <= choice < len(branches):
        y = run_links(x, (Link(branches[choice], stride),), training, momentum, eps)
        if y is not None:
            return y
    block = describe(x, branches, choice, stride, training, momentum, eps)
    backend = resolve_backend(block.x, ("cpu", *GPU))
    if backend == "reference" or block.x.shape[0] == 0:
        return run_reference(block, training, momentum, eps)
    return run_block(block, stride, False, training, momentum, eps, backend)


def run_links(x: Tensor, links: tuple[Link, ...], training: bool, momentum: float | None, eps: float) -> Tensor | None:
    """Run a chain of blocks that is plain and right, checked by the extension.

    None, with nothing done, for any other: another backend, weights that are copied, autocast, an error.
    """
    if not takes_kernels() or not is_plain(x) or is_autocast(x) or type(training) is not bool:
        return None
    if type(eps) is not float or not 0 < eps < math.inf:
        return None
    if momentum is not None and (type(momentum) is not float or not 0 <= momentum <= 1):
        return None
    if x.ndim != 4 or x.layout is not torch.strided or x.numel() == 0:
        return None
    x = dense_pixels(x)
    measured = measure(x, links, training, momentum)
    if measured is None:
        return None
    bank, plans = measured
    given = None if training else running([layer for link in links for chain in link.branch for layer in chain])
    track = partial(_C.choice_block_track, links=links, x_shape=tuple(x.shape), momentum=momentum)
    return run(x, bank, given, plans, eps, track)


def run_block(
    block: Block, stride: int, whole: bool, training: bool, momentum: float | None, eps: float, backend: str
) -> Tensor:
    """Run a block that `describe` has checked. `whole`: x is main's input, and the result main's output alone."""
    layers = block.main + block.proj
    bank = [tensor for layer in layers for tensor in layer.tensors[:3] if tensor is not None]
    affine = [layer.tensors.gamma is not None for layer in layers]
    given = None if training else running([layer.tensors for layer in layers])
    track = partial(_track, layers, block.x.shape[0], momentum)
    if backend in GPU and is_plain(block.x, *bank):
        tracked = tuple([layer.tensors[3:] for layer in layers])
        call = cuda.Call(
            tuple(affine), len(block.main), stride, whole, block.shape, tracked, training, momentum, eps, backend
        )
        return cuda.run(dense_pixels(block.x), call, tuple(map(rows, bank)))
    if is_plain(block.x, *bank):
        x, own = dense_pixels(block.x), tuple(map(rows, bank))
        plan = plan_of(x, own, affine, len(block.main), stride, whole)
        return run(x, own, given, (plan,), eps, track)
    options = (affine, len(block.main), stride, whole, eps, backend)
    y: Tensor
    y, statistics, _ = torch.ops.spos_kernels.choice_block(block.x, bank, given, *options)
    if training:
        track(statistics)
    return y


def _track(layers: Sequence[Layer], batch: int, momentum: float | None, statistics: Tensor) -> None:
    """Update running statistics from the batch's, layer by layer, as nn.BatchNorm2d does."""
    offset = 0
    with torch.no_grad():
        for layer in layers:
            _, _, _, running_mean, running_var, count = layer.tensors
            mean, var = statistics[offset : offset + 2 * layer.out_channels].chunk(2)
            offset += 2 * layer.out_channels
            if count is not None:
                count.add_(1)
            if running_mean is None or running_var is None:
                continue
            share = momentum if momentum is not None else 1 / float(count) if count is not None else 0.0
            values = batch * layer.height * layer.width
            running_mean.mul_(1 - share).add_(mean * share)
            running_var.mul_(1 - share).add_(var * (share * values / (values - 1)))
