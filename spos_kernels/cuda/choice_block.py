"""The choice block's CUDA kernels as functions of plain tensors, and with autograd."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spos_kernels.choice_block_kernels import dense_pixels, expand, new_gradients, refuse_double_backward, running
from spos_kernels.choice_block_reference import ConvBN
from spos_kernels.cuda.modules import counters, module_of, stream_of, takes_tf32
from spos_kernels.layout import empty_nhwc

KEPT_ALIGNMENT = 8  # elements: each convolution's kept output begins at a whole vector


def forward(
    x: Tensor,
    layers: Sequence[ConvBN],
    main: int,
    stride: int,
    whole: bool,
    shape: Sequence[int],
    given: Tensor | None,
    training: bool,
    keep: bool,
    momentum: float | None,
    eps: float,
    backend: str,
    track: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return y of this shape, the statistics, and the outputs of the convolutions.

    x: channels_last with all pixels at one distance. layers: those of main, then of proj. given: statistics to use;
    None for the running ones, or, in training, for those of the batch. keep: for a backward pass. track: move the
    running statistics.
    """
    module = module_of(backend)
    layers, strided = _dense_statistics(layers)
    arguments = (x, tuple(map(tuple, layers)), main, stride, whole)
    kept_size, statistics_size, workspace_size, _ = module.choice_block_sizes(*arguments)
    y = empty_nhwc(shape, like=x)
    kept = x.new_empty(kept_size)
    statistics = x.new_empty(statistics_size, dtype=torch.float32) if training else given
    workspace = x.new_empty(workspace_size, dtype=torch.uint8)
    module.choice_block_forward(
        *arguments,
        y,
        kept,
        statistics,
        workspace,
        counters(x, module.CHOICE_BLOCK_COUNTERS),
        training,
        keep,
        track,
        -1.0 if momentum is None else momentum,
        eps,
        takes_tf32(x),
        stream_of(x),
    )
    if track:
        for own, dense in strided:
            own.copy_(dense)
    return y, statistics, kept


def backward(
    dy: Tensor,
    x: Tensor,
    layers: Sequence[ConvBN],
    main: int,
    stride: int,
    whole: bool,
    kept: Tensor,
    statistics: Tensor | None,
    dx: Tensor | None,
    gradients: Sequence[tuple[Tensor | None, Tensor | None, Tensor | None]],
    training: bool,
    eps: float,
    backend: str,
) -> None:
    """Write dx and, of each layer, the gradients of weight, gamma and beta; those that are None are not wanted."""
    module = module_of(backend)
    arguments = (x, tuple(map(tuple, layers)), main, stride, whole)
    *_, workspace_size = module.choice_block_sizes(*arguments)
    module.choice_block_backward(
        dy,
        *arguments,
        kept,
        statistics,
        dx,
        tuple(gradients),
        x.new_empty(workspace_size, dtype=torch.uint8),
        counters(x, module.CHOICE_BLOCK_COUNTERS),
        training,
        eps,
        takes_tf32(x),
        stream_of(x),
    )


def _dense_statistics(layers: Sequence[ConvBN]) -> tuple[Sequence[ConvBN], list[tuple[Tensor, Tensor]]]:
    """Return the layers with running statistics that the kernels can read, and which of these stand for which."""
    strided: list[tuple[Tensor, Tensor]] = []

    def dense(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or tensor.is_contiguous():
            return tensor
        strided.append((tensor, tensor.contiguous()))
        return strided[-1][1]

    return [
        layer._replace(running_mean=dense(layer.running_mean), running_var=dense(layer.running_var)) for layer in layers
    ], strided


class Call(NamedTuple):
    """A checked call but for its tensors: a block's kind, the layers' running statistics, the options."""

    affine: tuple[bool, ...]
    main: int
    stride: int
    whole: bool
    shape: tuple[int, ...]  # of y
    tracked: tuple[tuple[Tensor | None, ...], ...]  # of each layer, the last three of its ConvBN
    training: bool
    momentum: float | None
    eps: float
    backend: str

    def layers(self, bank: Iterable[Tensor]) -> list[ConvBN]:
        """Return the layers, whose trained tensors lie in a flat bank."""
        tensors = iter(bank)
        layers = []
        for affine, tracked in zip(self.affine, self.tracked, strict=True):
            weight = next(tensors)
            gamma, beta = (next(tensors), next(tensors)) if affine else (None, None)
            layers.append(ConvBN(weight, gamma, beta, *tracked))
        return layers


def run(x: Tensor, call: Call, bank: Sequence[Tensor]) -> Tensor:
    """Run a block and move its running statistics; with autograd where that is asked for."""
    if torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in bank)):
        y: Tensor = _Eager.apply(x, call, *bank)
        return y
    return _forward(x, call, call.layers(bank), None, keep=False)[0]


def _forward(
    x: Tensor, call: Call, layers: Sequence[ConvBN], given: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    return forward(
        x,
        layers,
        call.main,
        call.stride,
        call.whole,
        call.shape,
        given,
        call.training,
        keep,
        call.momentum,
        call.eps,
        call.backend,
        track=call.training,
    )


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, call: Call, *bank: Tensor) -> Tensor:
        layers = call.layers(bank)
        # The running statistics may have moved on before backward.
        given = None if call.training else running(layers)
        y, statistics, kept = _forward(x, call, layers, given, keep=True)
        ctx.call = call._replace(tracked=((None, None, None),) * len(layers))
        ctx.save_for_backward(x, statistics, kept, *bank)
        ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad
        if dy is None:
            return (None,) * len(needed)
        refuse_double_backward()
        x, statistics, kept, *bank = ctx.saved_tensors
        call, wanted = ctx.call, [needed[0], *needed[2:]]
        gradients = new_gradients(x, bank, wanted)
        dx, *of_bank = expand(gradients, wanted)
        backward_into(dy, x, call, bank, kept, statistics, dx, of_bank)
        return (dx, None, *of_bank)


def backward_into(
    dy: Tensor,
    x: Tensor,
    call: Call,
    bank: Sequence[Tensor],
    kept: Tensor,
    statistics: Tensor | None,
    dx: Tensor | None,
    of_bank: Sequence[Tensor | None],
) -> None:
    """Write dx and the gradients of the bank, in its order, those that are not None."""
    found = iter(of_bank)
    gradients = [
        (next(found), next(found), next(found)) if affine else (next(found), None, None) for affine in call.affine
    ]
    kind = (call.main, call.stride, call.whole)
    backward(
        dense_pixels(dy),
        x,
        call.layers(bank),
        *kind,
        kept,
        statistics,
        dx,
        gradients,
        call.training,
        call.eps,
        call.backend,
    )
