"""One path through a ShuffleNet V2 choice block, convolutions, batch normalisations, shuffle and all, as one operation.

An eager call on plain tensors is checked by the extension and goes through an autograd.Function straight to its
kernels; everything else that torch may do with a call goes through the same functions as operators of torch.library.
What a block is made of and what is accepted is in choice_block_reference.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spos_kernels import _C
from spos_kernels.backends import ISA, is_autocast, is_plain, resolve_backend, takes_kernels, threads_for
from spos_kernels.choice_block_reference import Block, Branch, ConvBN, Layer, describe, run_reference
from spos_kernels.layout import as_nhwc, empty_nhwc
from spos_kernels.library import register

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
    measured = _measure(x, branches, choice, stride, training, momentum, eps)
    if measured is not None:
        branch, bank, call = measured
        y, statistics = _run_plain(x, bank, None if training else _running(branch.main + branch.proj), call)
        if training:
            batch, _, height, width = x.shape
            _C.choice_block_track(statistics, branch, batch, height, width, stride, momentum)
        return y
    block = describe(x, branches, choice, stride, training, momentum, eps)
    backend = resolve_backend(block.x)
    if backend == "reference" or block.x.shape[0] == 0:
        return run_reference(block, training, momentum, eps)
    return run_block(block, stride, False, training, momentum, eps, backend)


class _Call(NamedTuple):
    """What the kernels are told of a call beside its tensors, the sizes of its outputs, and its multiply-adds."""

    affine: tuple[bool, ...]
    main: int
    stride: int
    whole: bool
    eps: float
    y: tuple[int, int, int, int]
    kept: int
    statistics: int
    multiply_adds: int


def _measure(
    x: Tensor,
    branches: Sequence[Branch],
    choice: int,
    stride: int,
    training: bool,
    momentum: float | None,
    eps: float,
) -> tuple[Branch, tuple[Tensor, ...], _Call] | None:
    """Check a call in the extension, ten times as fast as `describe` does, which knows what to say if it is refused.

    None where anything is not plain or not right: another backend, a layout that is copied, autocast, an error.
    """
    if not takes_kernels() or not is_plain(x) or is_autocast(x):
        return None
    if type(branches) not in (list, tuple) or type(choice) is not int or not 0 <= choice < len(branches):
        return None
    branch = branches[choice]
    if type(branch) is not Branch or type(stride) is not int or stride not in (1, 2) or type(training) is not bool:
        return None
    if type(eps) is not float or not 0 < eps < math.inf:
        return None
    if momentum is not None and (type(momentum) is not float or not 0 <= momentum <= 1):
        return None
    found = _C.choice_block_measure(x, branch, ConvBN, stride, training, momentum is None)
    if found is None:
        return None
    bank, affine, *sizes = found
    return branch, bank, _Call(affine, len(branch.main), stride, False, eps, *sizes)


def run_block(
    block: Block, stride: int, whole: bool, training: bool, momentum: float | None, eps: float, backend: str
) -> Tensor:
    """Run a checked call on the kernels. `whole`: x is main's input, and the result main's output alone."""
    layers = block.main + block.proj
    bank = [tensor for layer in layers for tensor in layer.tensors[:3] if tensor is not None]
    affine = [layer.tensors.gamma is not None for layer in layers]
    given = None if training else _running([layer.tensors for layer in layers])
    if is_plain(block.x, *bank):
        x, rows = _dense_pixels(block.x), tuple(map(_rows, bank))
        y, statistics = _run_plain(x, rows, given, _call(x, rows, affine, len(block.main), stride, whole, eps))
    else:
        options = (affine, len(block.main), stride, whole, eps, backend)
        y, statistics, _ = torch.ops.spos_kernels.choice_block(block.x, bank, given, *options)
    if training:
        _track(layers, statistics, block.x.shape[0], momentum)
    return y


def _run_plain(x: Tensor, bank: tuple[Tensor, ...], given: Tensor | None, call: _Call) -> tuple[Tensor, Tensor]:
    """Return y and the batch's statistics, of tensors as the kernels take them."""
    if torch.is_grad_enabled() and (x.requires_grad or any([t.requires_grad for t in bank])):
        result: tuple[Tensor, Tensor] = _Eager.apply(x, given, call, *bank)
        return result
    y, statistics, _ = _forward(x, bank, given, call, kept=False)
    return y, statistics


def _running(layers: Sequence[ConvBN]) -> Tensor:
    """Return the running statistics in the layout of the batch's: of each layer means, then variances."""
    return torch.cat([t for layer in layers for t in layer[3:5] if t is not None])


def _track(layers: Sequence[Layer], statistics: Tensor, batch: int, momentum: float | None) -> None:
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


# The two kernels, as functions of plain tensors. A layer is known by its weight: [C, 1, k, k] with k > 1 is depthwise.
# The bank of a call is a flat list, of each layer its weight and, where `affine` says so, gamma and beta; those of main
# come first. (torch.library loses the gradients of a list with None in it.)


def _call(
    x: Tensor, bank: Sequence[Tensor], affine: Sequence[bool], main: int, stride: int, whole: bool, eps: float
) -> _Call:
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
        kept += pixels * outputs
        statistics += 2 * outputs
        multiply_adds += pixels * outputs * inputs * kernel * kernel
        last = outputs if index < main else last
    beside = 0 if whole else channels // 2 if stride == 1 else channels
    y = (batch, beside + last, *small)
    return _Call(tuple(affine), main, stride, whole, eps, y, kept, statistics, multiply_adds)


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


def _rows(tensor: Tensor) -> Tensor:
    """Return a tensor of the bank as the kernels read it: [O, I, 1, 1] with adjacent inputs, others dense."""
    if tensor.ndim == 4 and tensor.shape[-1] == 1 and (tensor.stride(1) == 1 or tensor.shape[1] == 1):
        return tensor
    return tensor.contiguous()


def _forward(
    x: Tensor, bank: tuple[Tensor, ...], given: Tensor | None, call: _Call, kept: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, the batch's statistics (empty where they are given), and the outputs of the convolutions.

    `kept` False: nothing is wanted for backward, and the last may be empty.
    """
    y = empty_nhwc(call.y, like=x)
    threads = threads_for(call.multiply_adds)
    layers = (call.affine, call.main)
    none = x.new_empty(0) if given is not None else None
    if not kept and given is not None and none is not None:
        done = _C.choice_block_inference(
            x, bank, *layers, y, given, call.stride, call.whole, call.eps, ISA, threads
        )
        if done:
            return y, none, none
    saved = x.new_empty(call.kept)
    statistics = x.new_empty(call.statistics) if given is None else given
    options = (call.stride, call.whole, given is None, call.eps)
    _C.choice_block_forward(x, bank, *layers, y, saved, statistics, *options, ISA, threads)
    return y, statistics if none is None else none, saved


def _backward(
    dy: Tensor,
    x: Tensor,
    bank: tuple[Tensor, ...],
    statistics: Tensor,
    saved: Tensor,
    wanted: Sequence[bool],
    training: bool,
    call: _Call,
) -> list[Tensor]:
    """Return the gradients of x and of the bank, those alone that are `wanted`, a list in the same order."""
    gradients = _new_gradients(x, bank, wanted)
    dx, *of_bank = _expand(gradients, wanted)
    options = (call.stride, call.whole, training, call.eps)
    _C.choice_block_backward(
        _dense_pixels(dy),
        x,
        bank,
        call.affine,
        call.main,
        saved,
        statistics,
        dx,
        tuple(of_bank),
        *options,
        ISA,
        threads_for(2 * call.multiply_adds),
    )
    return gradients


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


def _refuse_double_backward() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "choice_block: backend 'cpu' has no double backward (create_graph=True): use backend 'reference'"
        )


class _Eager(torch.autograd.Function):
    # The bank comes flat: apply() sees tensors in its arguments, not in lists of them.
    @staticmethod
    def forward(ctx: Any, x: Tensor, given: Tensor | None, call: _Call, *bank: Tensor) -> tuple[Tensor, Tensor]:
        y, statistics, saved = _forward(x, bank, given, call)
        ctx.call, ctx.training = call, given is None
        ctx.save_for_backward(x, statistics if given is None else given, saved, *bank)
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad
        if dy is None:
            return (None,) * len(needed)
        _refuse_double_backward()
        wanted = [needed[0], *needed[3:]]
        x, statistics, saved, *bank = ctx.saved_tensors
        if is_plain(dy, x, saved):
            gradients = _backward(dy, x, tuple(bank), statistics, saved, wanted, ctx.training, ctx.call)
        else:
            options = (*ctx.call[:4], ctx.training, ctx.call.eps, "cpu")
            gradients = torch.ops.spos_kernels.choice_block_backward(
                dy, x, bank, statistics, saved, wanted, *options
            )
        dx, *of_bank = _expand(gradients, wanted)
        return (dx, None, None, *of_bank)


# The same as operators: the options of a call one by one, tensors in any layout.


def _operator(
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
    x, rows = _dense_pixels(x), tuple(map(_rows, bank))
    return _forward(x, rows, given, _call(x, rows, affine, main, stride, whole, eps))


def _operator_fake(
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
    call = _call(x, bank, affine, main, stride, whole, eps)
    return empty_nhwc(call.y, like=x), x.new_empty(call.statistics if given is None else 0), x.new_empty(call.kept)


def _operator_backward(
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
    x, rows = _dense_pixels(x), tuple(map(_rows, bank))
    call = _call(x, rows, affine, main, stride, whole, eps)
    return _backward(dy, x, rows, statistics, saved, wanted, training, call)


def _operator_backward_fake(
    dy: Tensor, x: Tensor, bank: Sequence[Tensor], statistics: Tensor, saved: Tensor, wanted: Sequence[bool], *_: Any
) -> list[Tensor]:
    return _new_gradients(x, bank, wanted)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, bank, given, affine, main, stride, whole, eps, backend = inputs
    _, statistics, saved = output
    ctx.options = (affine, main, stride, whole, given is None, eps, backend)
    ctx.save_for_backward(x, statistics if given is None else given, saved, *bank)
    ctx.set_materialize_grads(False)


def _operator_gradients(ctx: Any, dy: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    x, statistics, saved, *bank = ctx.saved_tensors
    if dy is None:
        return (None, [None] * len(bank), *(None,) * 7)
    _refuse_double_backward()
    needs_dx, needs_bank = ctx.needs_input_grad[:2]
    wanted = [needs_dx, *(needs_bank if isinstance(needs_bank, list | tuple) else [needs_bank] * len(bank))]
    backward = torch.ops.spos_kernels.choice_block_backward
    dx, *of_bank = _expand(backward(dy, x, bank, statistics, saved, wanted, *ctx.options), wanted)
    return (dx, of_bank, *(None,) * 7)


_OPTIONS = "bool[] affine, int main, int stride, bool whole"
register(
    "choice_block",
    f"(Tensor x, Tensor[] bank, Tensor? given, {_OPTIONS}, float eps, str backend)",
    _operator,
    _operator_fake,
    "(Tensor, Tensor, Tensor)",
)
register(
    "choice_block_backward",
    "(Tensor dy, Tensor x, Tensor[] bank, Tensor statistics, Tensor saved, bool[] wanted, "
    f"{_OPTIONS}, bool training, float eps, str backend)",
    _operator_backward,
    _operator_backward_fake,
    "Tensor[]",
)
torch.library.register_autograd("spos_kernels::choice_block", _operator_gradients, setup_context=_save)
