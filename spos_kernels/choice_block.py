"""One path through a ShuffleNet V2 choice block, convolutions, batch normalisations, shuffle and all, as one operation.

An eager call on plain tensors goes through an autograd.Function straight to the extension; everything else that torch
may do with a call goes through the same functions as operators of torch.library. What a block is made of and what
is accepted is in choice_block_reference.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spos_kernels import _C
from spos_kernels.backends import ISA, is_plain, resolve_backend, threads_for
from spos_kernels.choice_block_reference import Block, Branch, Layer, describe, run_reference
from spos_kernels.layout import as_nhwc, empty_nhwc
from spos_kernels.library import register

__all__ = ["choice_block"]

# The bank of a call is a flat list, of each layer its weight and, where `affine` says so, gamma and beta; those of main
# come first. (torch.library loses the gradients of a list with None in it.)


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
    return run_block(block, stride, False, training, momentum, eps, backend)


def run_block(
    block: Block, stride: int, whole: bool, training: bool, momentum: float | None, eps: float, backend: str
) -> Tensor:
    """Run a checked call on the kernels. `whole`: x is main's input, and the result main's output alone."""
    layers = block.main + block.proj
    bank = [tensor for layer in layers for tensor in layer.tensors[:3] if tensor is not None]
    affine = [layer.tensors.gamma is not None for layer in layers]
    given = None if training else _running(layers)
    options = (affine, len(block.main), stride, whole, eps, backend)
    if is_plain(block.x, *bank):
        if torch.is_grad_enabled() and any(t.requires_grad for t in (block.x, *bank)):
            y, statistics = _Eager.apply(block.x, given, *options, *bank)
        else:
            y, statistics, _ = _forward(block.x, bank, given, *options, kept=False)
    else:
        y, statistics, _ = torch.ops.spos_kernels.choice_block(block.x, bank, given, *options)
    if training:
        _track(layers, statistics, block.x.shape[0], momentum)
    return y


def _running(layers: Sequence[Layer]) -> Tensor:
    """Return the running statistics in the layout of the batch's: of each layer means, then variances."""
    pairs = ((layer.tensors.running_mean, layer.tensors.running_var) for layer in layers)
    return torch.cat([t for pair in pairs for t in pair if t is not None])


def _track(layers: Sequence[Layer], statistics: Tensor, batch: int, momentum: float | None) -> None:
    """Update running statistics from the batch's, layer by layer, as nn.BatchNorm2d does."""
    tracked = [layer for layer in layers if layer.tensors.running_mean is not None]
    counts = [layer.tensors.num_batches_tracked for layer in layers if layer.tensors.num_batches_tracked is not None]
    with torch.no_grad():
        if counts:
            torch._foreach_add_(counts, 1)
        running = [t for layer in tracked for t in layer.tensors[3:5] if t is not None]
        if len(tracked) == len(layers) and is_plain(statistics, *running) and all(t.is_contiguous() for t in running):
            _C.choice_block_update(statistics, tuple(_entry(layer, batch, momentum) for layer in layers))  # type: ignore[misc]
            return
        offset = 0
        for layer in layers:
            mean, var = statistics[offset : offset + 2 * layer.out_channels].chunk(2)
            offset += 2 * layer.out_channels
            running_mean, running_var, fraction, count = _entry(layer, batch, momentum)
            if running_mean is not None and running_var is not None:
                running_mean.mul_(1 - fraction).add_(mean * fraction)
                running_var.mul_(1 - fraction).add_(var * (fraction * count / (count - 1)))


def _entry(layer: Layer, batch: int, momentum: float | None) -> tuple[Tensor | None, Tensor | None, float, int]:
    """Return the running mean and variance, the share of the new value, the number of values a channel."""
    _, _, _, mean, var, count = layer.tensors
    share = momentum if momentum is not None else 1 / float(count) if count is not None else 0.0
    return mean, var, share, batch * layer.height * layer.width


# The two kernels, as functions of plain tensors. A layer is known by its weight: [C, 1, k, k] with k > 1 is depthwise.


class _Call(NamedTuple):
    """A call's layers as the extension takes them, the sizes of its outputs, and its multiply-adds."""

    chains: tuple[tuple[Any, ...], tuple[Any, ...]]
    y: tuple[int, int, int, int]
    kept: int
    statistics: int
    multiply_adds: int


def _call(x: Tensor, bank: Sequence[Tensor], affine: Sequence[bool], main: int, stride: int, whole: bool) -> _Call:
    batch, channels, height, width = x.shape
    small = (height - 1) // stride + 1, (width - 1) // stride + 1
    kept = statistics = multiply_adds = 0
    layers = []
    tensors = iter(bank)
    pixels = batch * height * width
    for index, has_affine in enumerate(affine):
        if index == main:  # proj starts at x again
            pixels = batch * height * width
        weight = next(tensors)
        outputs, inputs, kernel, _ = weight.shape
        if kernel > 1:
            pixels = batch * small[0] * small[1]
        kept += pixels * outputs
        statistics += 2 * outputs
        multiply_adds += pixels * outputs * inputs * kernel * kernel
        layers.append((_rows(weight), *((next(tensors), next(tensors)) if has_affine else (None, None))))
    beside = 0 if whole else channels // 2 if stride == 1 else channels
    y = (batch, beside + layers[main - 1][0].shape[0], *small)
    return _Call((tuple(layers[:main]), tuple(layers[main:])), y, kept, statistics, multiply_adds)


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


def _forward(
    x: Tensor,
    bank: Sequence[Tensor],
    given: Tensor | None,
    affine: Sequence[bool],
    main: int,
    stride: int,
    whole: bool,
    eps: float,
    backend: str,
    kept: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the batch's statistics (empty where they are given), and the outputs of the convolutions.

    `kept` False: nothing is wanted for backward, and the last may be empty.
    """
    call = _call(x, bank, affine, main, stride, whole)
    y = empty_nhwc(call.y, like=x)
    x, threads = _dense_pixels(x), threads_for(call.multiply_adds)
    none = x.new_empty(0)
    if not kept and given is not None:
        done = _C.choice_block_inference(x, *call.chains, y, given, stride, whole, eps, ISA, threads)
        if done:
            return y, none, none
    saved = x.new_empty(call.kept)
    statistics = x.new_empty(call.statistics) if given is None else none
    _C.choice_block_forward(
        x,
        *call.chains,
        y,
        saved,
        statistics if given is None else given,
        stride,
        whole,
        given is None,
        eps,
        ISA,
        threads,
    )
    return y, statistics, saved


def _forward_fake(
    x: Tensor,
    bank: Sequence[Tensor],
    given: Tensor | None,
    affine: Sequence[bool],
    main: int,
    stride: int,
    whole: bool,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    call = _call(x, bank, affine, main, stride, whole)
    return empty_nhwc(call.y, like=x), x.new_empty(call.statistics if given is None else 0), x.new_empty(call.kept)


def _backward(
    dy: Tensor,
    x: Tensor,
    bank: Sequence[Tensor],
    statistics: Tensor,
    saved: Tensor,
    wanted: Sequence[bool],
    affine: Sequence[bool],
    main: int,
    stride: int,
    whole: bool,
    training: bool,
    eps: float,
    backend: str,
) -> list[Tensor]:
    """Return the gradients of x and of the bank, those alone that are `wanted`, a list in the same order."""
    call = _call(x, bank, affine, main, stride, whole)
    gradients = _new_gradients(x, bank, wanted)
    dx, *of_bank = _expand(gradients, wanted)
    left = iter(of_bank)
    layers = tuple((next(left), *((next(left), next(left)) if has_affine else (None, None))) for has_affine in affine)
    _C.choice_block_backward(
        _dense_pixels(dy),
        _dense_pixels(x),
        *call.chains,
        saved,
        statistics,
        dx,
        layers,
        stride,
        whole,
        training,
        eps,
        ISA,
        threads_for(2 * call.multiply_adds),
    )
    return gradients


def _backward_fake(
    dy: Tensor,
    x: Tensor,
    bank: Sequence[Tensor],
    statistics: Tensor,
    saved: Tensor,
    wanted: Sequence[bool],
    affine: Sequence[bool],
    main: int,
    stride: int,
    whole: bool,
    training: bool,
    eps: float,
    backend: str,
) -> list[Tensor]:
    return _new_gradients(x, bank, wanted)


def _new_gradients(x: Tensor, bank: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
    dx = [empty_nhwc(x.shape, like=x)] if wanted[0] else []
    return dx + [_like(tensor) for tensor, want in zip(bank, wanted[1:], strict=True) if want]


def _like(parameter: Tensor) -> Tensor:
    """Return a dense tensor for a gradient, with the parameter's strides if those are dense too.

    Strides of dimensions of one element differ between layouts of the same memory, and optimizers are slow, or copy,
    where a gradient has others than its parameter.
    """
    gradient = torch.empty_like(parameter)
    return gradient if gradient.is_contiguous() else parameter.new_empty(parameter.shape)


def _expand(gradients: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor | None]:
    found = iter(gradients)
    return [next(found) if want else None for want in wanted]


def _gradients(ctx: Any, dy: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "choice_block: backend 'cpu' has no double backward (create_graph=True): use backend 'reference'"
        )
    x, statistics, saved, *bank = ctx.saved_tensors
    backward = _backward if is_plain(dy, x, saved) else torch.ops.spos_kernels.choice_block_backward
    return _expand(backward(dy, x, bank, statistics, saved, wanted, *ctx.options), wanted)


class _Eager(torch.autograd.Function):
    # The bank comes flat: apply() sees tensors in its arguments, not in lists of them.
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        given: Tensor | None,
        affine: Sequence[bool],
        main: int,
        stride: int,
        whole: bool,
        eps: float,
        backend: str,
        *bank: Tensor,
    ) -> tuple[Tensor, Tensor]:
        x = _dense_pixels(x)
        y, statistics, saved = _forward(x, bank, given, affine, main, stride, whole, eps, backend)
        ctx.options = (affine, main, stride, whole, given is None, eps, backend)
        ctx.save_for_backward(x, statistics if given is None else given, saved, *bank)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        dx, *gradients = _gradients(ctx, dy, [ctx.needs_input_grad[0], *ctx.needs_input_grad[8:]])
        return (dx, *(None,) * 7, *gradients)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, bank, given, affine, main, stride, whole, eps, backend = inputs
    _, statistics, saved = output
    ctx.options = (affine, main, stride, whole, given is None, eps, backend)
    ctx.save_for_backward(x, statistics if given is None else given, saved, *bank)
    ctx.set_materialize_grads(False)


def _library_gradients(ctx: Any, dy: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    count = len(ctx.saved_tensors) - 3
    if dy is None:
        return (None, [None] * count, *(None,) * 7)
    needs_dx, needs_bank = ctx.needs_input_grad[:2]
    of_bank = needs_bank if isinstance(needs_bank, list | tuple) else [needs_bank] * count
    dx, *gradients = _gradients(ctx, dy, [needs_dx, *of_bank])
    return (dx, gradients, *(None,) * 7)


_OPTIONS = "bool[] affine, int main, int stride, bool whole"
register(
    "choice_block",
    f"(Tensor x, Tensor[] bank, Tensor? given, {_OPTIONS}, float eps, str backend)",
    _forward,
    _forward_fake,
    "(Tensor, Tensor, Tensor)",
)
register(
    "choice_block_backward",
    "(Tensor dy, Tensor x, Tensor[] bank, Tensor statistics, Tensor saved, bool[] wanted, "
    f"{_OPTIONS}, bool training, float eps, str backend)",
    _backward,
    _backward_fake,
    "Tensor[]",
)
torch.library.register_autograd("spos_kernels::choice_block", _library_gradients, setup_context=_save)
