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
from spos_kernels.library import register

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
    given = None if training else _running(layers)
    options = (len(block.main), stride, eps, backend)
    if is_plain(*(t for t in (block.x, *bank) if t is not None)):
        if torch.is_grad_enabled() and any(t.requires_grad for t in (block.x, *bank) if t is not None):
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
        if len(tracked) == len(layers) and is_plain(statistics):
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


class _Shape:
    """The sizes of a call's outputs and its multiply-adds, from its input and the weights of its layers."""

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
    x: Tensor,
    bank: Sequence[Tensor | None],
    given: Tensor | None,
    main: int,
    stride: int,
    eps: float,
    backend: str,
    kept: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the batch's statistics (empty where they are given), and the outputs of the convolutions.

    `kept` False: nothing is wanted for backward, and the last may be empty.
    """
    shape = _Shape(x, bank, main, stride)
    y = empty_nhwc(shape.y, like=x)
    x, chains, threads = _dense_pixels(x), _chains(bank, main), threads_for(shape.multiply_adds)
    none = x.new_empty(0)
    if not kept and given is not None:
        done = _C.choice_block_inference(x, *chains, y, given, stride, eps, ISA, threads)
        if done:
            return y, none, none
    saved = x.new_empty(shape.kept)
    statistics = x.new_empty(shape.statistics) if given is None else none
    _C.choice_block_forward(
        x,
        *chains,
        y,
        saved,
        statistics if given is None else given,
        stride,
        given is None,
        eps,
        ISA,
        threads,
    )
    return y, statistics, saved


def _forward_fake(
    x: Tensor, bank: Sequence[Tensor | None], given: Tensor | None, main: int, stride: int, eps: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    shape = _Shape(x, bank, main, stride)
    return empty_nhwc(shape.y, like=x), x.new_empty(shape.statistics if given is None else 0), x.new_empty(shape.kept)


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
) -> list[Tensor]:
    """Return dx, then the gradients of the bank, those alone that are `wanted`, a list in the same order."""
    gradients = _backward_fake(dy, x, bank, statistics, saved, wanted, main, stride, training, eps, backend)
    dx, *of_bank = _expand(gradients, wanted)
    _C.choice_block_backward(
        _dense_pixels(dy),
        _dense_pixels(x),
        *_chains(bank, main),
        saved,
        statistics,
        dx,
        tuple(zip(of_bank[::3], of_bank[1::3], of_bank[2::3], strict=True)),
        stride,
        training,
        eps,
        ISA,
        threads_for(2 * _Shape(x, bank, main, stride).multiply_adds),
    )
    return gradients


def _backward_fake(
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
) -> list[Tensor]:
    dx = [empty_nhwc(x.shape, like=x)] if wanted[0] else []
    return dx + [x.new_empty(t.shape) for t, want in zip(bank, wanted[1:], strict=True) if t is not None and want]


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
        main: int,
        stride: int,
        eps: float,
        backend: str,
        *bank: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        x = _dense_pixels(x)
        y, statistics, saved = _forward(x, bank, given, main, stride, eps, backend)
        ctx.options = (main, stride, given is None, eps, backend)
        ctx.save_for_backward(x, statistics if given is None else given, saved, *bank)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        dx, *gradients = _gradients(ctx, dy, [ctx.needs_input_grad[0], *ctx.needs_input_grad[6:]])
        return dx, None, None, None, None, None, *gradients


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, bank, given, main, stride, eps, backend = inputs
    _, statistics, saved = output
    ctx.options = (main, stride, given is None, eps, backend)
    ctx.save_for_backward(x, statistics if given is None else given, saved, *bank)
    ctx.set_materialize_grads(False)


def _library_gradients(ctx: Any, dy: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    present = [tensor is not None for tensor in ctx.saved_tensors[3:]]
    if dy is None:
        return None, [None] * len(present), None, None, None, None, None
    of_bank = ctx.needs_input_grad[1]
    dx, *gradients = _gradients(ctx, dy, [ctx.needs_input_grad[0], *(p and bool(of_bank) for p in present)])
    return dx, gradients, None, None, None, None, None


_BANK = "Tensor x, Tensor?[] bank"
_OPTIONS = "float eps, str backend"
register(
    "choice_block",
    f"({_BANK}, Tensor? given, int main, int stride, {_OPTIONS})",
    _forward,
    _forward_fake,
    "(Tensor, Tensor, Tensor)",
)
register(
    "choice_block_backward",
    f"(Tensor dy, {_BANK}, Tensor statistics, Tensor saved, bool[] wanted, int main, int stride, bool training, "
    f"{_OPTIONS})",
    _backward,
    _backward_fake,
    "Tensor[]",
)
torch.library.register_autograd("spos_kernels::choice_block", _library_gradients, setup_context=_save)
