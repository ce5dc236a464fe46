"""The kernels of the choice block as functions of plain tensors, for a chain of blocks at once, with autograd.

A chain's bank is a flat list, of each layer its weight and, where `affine` says so, gamma and beta; of each block the
layers of main come first, then those of proj. (torch.library loses the gradients of a list with None in it.) A layer is
known by its weight: [C, 1, k, k] with k > 1 is depthwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spos_kernels import _C
from spos_kernels.backends import ISA, is_plain, threads_for
from spos_kernels.choice_block_reference import Branch, ConvBN, Link
from spos_kernels.layout import as_nhwc, empty_nhwc


class Plan(NamedTuple):
    """Of which layers one block is made, the sizes of what it writes, and its multiply-adds."""

    affine: tuple[bool, ...]
    main: int
    stride: int
    whole: bool
    y: tuple[int, int, int, int]
    kept: int
    statistics: int
    multiply_adds: int


def measure(
    x: Tensor, links: tuple[Link, ...], training: bool, momentum: float | None
) -> tuple[tuple[Tensor, ...], tuple[Plan, ...]] | None:
    """Check a chain in the extension, ten times as fast as Python does; return its bank and the blocks' plans.

    None where anything is not plain or not right, which `describe` then has the words for.
    """
    found = _C.choice_block_measure(x, links, (Link, Branch, ConvBN), training, momentum is None)
    if found is None:
        return None
    bank, plans = found
    return bank, tuple(map(Plan._make, plans))


def plan_of(
    x: Tensor,
    bank: Sequence[Tensor],
    affine: Sequence[bool],
    main: int,
    stride: int,
    whole: bool,
    kept_alignment: int = 1,
) -> Plan:
    """Return the plan of one checked block. kept_alignment: the elements at a multiple of which each layer's begin."""
    batch, channels, height, width = x.shape
    small = (height - 1) // stride + 1, (width - 1) // stride + 1
    kept = statistics = multiply_adds = last = 0
    tensors = iter(bank)
    pixels = batch * height * width
    for index, has_affine in enumerate(affine):
        if index == main:  # proj starts at x again
            pixels = batch * height * width
        outputs, inputs, kernel, _ = next(tensors).shape
        if has_affine:
            next(tensors), next(tensors)
        if kernel > 1:
            pixels = batch * small[0] * small[1]
        kept += -kept % kept_alignment + pixels * outputs
        statistics += 2 * outputs
        multiply_adds += pixels * outputs * inputs * kernel * kernel
        last = outputs if index < main else last
    beside = 0 if whole else channels // 2 if stride == 1 else channels
    return Plan(tuple(affine), main, stride, whole, (batch, beside + last, *small), kept, statistics, multiply_adds)


def dense_pixels(x: Tensor) -> Tensor:
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


def rows(tensor: Tensor) -> Tensor:
    """Return a tensor of the bank as the kernels read it: [O, I, 1, 1] with adjacent inputs, others dense."""
    if tensor.ndim == 4 and tensor.shape[-1] == 1 and (tensor.stride(1) == 1 or tensor.shape[1] == 1):
        return tensor
    return tensor.contiguous()


def running(layers: Sequence[ConvBN]) -> Tensor:
    """Return the running statistics in the layout of the batch's: of each layer means, then variances."""
    return torch.cat([t for layer in layers for t in layer[3:5] if t is not None])


def run(
    x: Tensor,
    bank: tuple[Tensor, ...],
    given: Tensor | None,
    plans: tuple[Plan, ...],
    eps: float,
    track: Callable[[Tensor], None],
) -> Tensor:
    """Run a chain on tensors as the kernels take them.

    given: the statistics to use; None for those of the batch, which `track` is then called with.
    """
    if torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in bank)):
        found: list[Tensor] = []
        y: Tensor = _Eager.apply(x, given, plans, eps, found, *bank)
        if given is None:
            track(*found)  # only now: autograd may have refused to keep what it was given
        return y
    y = empty_nhwc(plans[-1].y, like=x)
    statistics = x.new_empty(sum([plan.statistics for plan in plans])) if given is None else given
    threads = tuple([threads_for(plan.multiply_adds) for plan in plans])
    _C.choice_block_run(x, bank, plans, y, statistics, given is None, eps, ISA, threads)
    if given is None:
        track(statistics)
    return y


def forward(
    x: Tensor, bank: tuple[Tensor, ...], given: Tensor | None, plans: tuple[Plan, ...], eps: float
) -> tuple[tuple[Tensor, ...], Tensor, tuple[Tensor, ...]]:
    """Return of each block y and the outputs of its convolutions, and between them the statistics of all."""
    ys = tuple([empty_nhwc(plan.y, like=x) for plan in plans])
    saved = tuple([x.new_empty(plan.kept) for plan in plans])
    statistics = x.new_empty(sum([plan.statistics for plan in plans])) if given is None else given
    threads = tuple([threads_for(plan.multiply_adds) for plan in plans])
    _C.choice_block_forward(x, bank, plans, ys, saved, statistics, given is None, eps, ISA, threads)
    return ys, statistics, saved


def backward(
    dy: Tensor,
    x: Tensor,
    bank: tuple[Tensor, ...],
    plans: tuple[Plan, ...],
    ys: tuple[Tensor, ...],
    saved: tuple[Tensor, ...],
    statistics: Tensor,
    wanted: Sequence[bool],
    training: bool,
    eps: float,
) -> list[Tensor]:
    """Return the gradients of x and of the bank, those alone that are `wanted`, a list in the same order.

    ys: of all blocks but the last.
    """
    gradients = new_gradients(x, bank, wanted)
    dx, *of_bank = expand(gradients, wanted)
    threads = tuple([threads_for(2 * plan.multiply_adds) for plan in plans])
    _C.choice_block_backward(
        dense_pixels(dy), x, bank, plans, ys, saved, statistics, dx, tuple(of_bank), training, eps, ISA, threads
    )
    return gradients


def new_gradients(x: Tensor, bank: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    """Return memory for the gradients that are wanted."""
    dx = [empty_nhwc(x.shape, like=x)] if wanted[0] else []
    return dx + [_like(tensor) for tensor, want in zip(bank, wanted[1:], strict=True) if want]


def _like(parameter: Tensor) -> Tensor:
    """Return a dense tensor for a gradient, with the parameter's strides if those are dense too.

    Strides of dimensions of one element differ between layouts of the same memory, and optimizers are slow, or copy,
    where a gradient has others than its parameter.
    """
    gradient = torch.empty_like(parameter)
    return gradient if gradient.is_contiguous() else parameter.new_empty(parameter.shape)


def expand(gradients: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    """Return the gradients with None in the place of those that are not wanted."""
    found = iter(gradients)
    return [next(found) if want else None for want in wanted]


def refuse_double_backward() -> None:
    """RuntimeError where a graph of the backward pass is asked for."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "choice_block: compiled kernels have no double backward (create_graph=True): use backend 'reference'"
        )


class _Eager(torch.autograd.Function):
    # The bank comes flat: apply() sees tensors in its arguments, not in lists of them.
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        given: Tensor | None,
        plans: tuple[Plan, ...],
        eps: float,
        found: list[Tensor],
        *bank: Tensor,
    ) -> Tensor:
        ys, statistics, saved = forward(x, bank, given, plans, eps)
        found.append(statistics)
        ctx.plans, ctx.eps, ctx.training = plans, eps, given is None
        ctx.save_for_backward(x, statistics, *ys[:-1], *saved, *bank)
        ctx.set_materialize_grads(False)
        return ys[-1]

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad
        if dy is None:
            return (None,) * len(needed)
        refuse_double_backward()
        wanted, plans = [needed[0], *needed[5:]], ctx.plans
        x, statistics, *rest = ctx.saved_tensors
        inner = len(plans) - 1
        ys, saved, bank = rest[:inner], rest[inner : 2 * inner + 1], rest[2 * inner + 1 :]
        run = backward if is_plain(dy, x, *saved) else _backward_by_operators
        tensors = (tuple(bank), plans, tuple(ys), tuple(saved), statistics)
        dx, *of_bank = expand(run(dy, x, *tensors, wanted, ctx.training, ctx.eps), wanted)
        return (dx, None, None, None, None, *of_bank)


def _backward_by_operators(
    dy: Tensor,
    x: Tensor,
    bank: tuple[Tensor, ...],
    plans: tuple[Plan, ...],
    ys: tuple[Tensor, ...],
    saved: tuple[Tensor, ...],
    statistics: Tensor,
    wanted: Sequence[bool],
    training: bool,
    eps: float,
) -> list[Tensor]:
    """Do the same block by block, through operators that a dispatch mode sees."""
    operator = torch.ops.spos_kernels.choice_block_backward
    of_statistics = statistics.split([plan.statistics for plan in plans])
    counts = [len(plan.affine) + 2 * sum(plan.affine) for plan in plans]
    gradients: list[Tensor] = []
    end = len(bank)
    for index in reversed(range(len(plans))):
        begin = end - counts[index]
        own = [index > 0 or wanted[0], *wanted[1 + begin : 1 + end]]
        options = (*plans[index][:4], training, eps, "cpu")
        before = ys[index - 1] if index else x
        found = operator(dy, before, bank[begin:end], of_statistics[index], saved[index], own, *options)
        if own[0]:
            dy, *found = found
        gradients[:0] = found
        end = begin
    return [dy, *gradients] if wanted[0] else gradients
