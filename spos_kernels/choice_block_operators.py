"""The choice block as operators of torch.library: what torch.compile, export, fake tensors and dispatch modes see.

One block a call; its options one by one, tensors in any layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spos_kernels.backends import GPU
from spos_kernels.choice_block_kernels import (
    Plan,
    backward,
    dense_pixels,
    expand,
    forward,
    new_gradients,
    plan_of,
    refuse_double_backward,
    rows,
)
from spos_kernels.cuda import choice_block as cuda
from spos_kernels.layout import empty_nhwc
from spos_kernels.library import register


def _arguments(
    x: Tensor, bank: Sequence[Tensor], affine: Sequence[bool], main: int, stride: int, whole: bool
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Plan, ...]]:
    x, bank = dense_pixels(x), tuple(map(rows, bank))
    return x, bank, (plan_of(x, bank, affine, main, stride, whole),)


def _cuda_call(plan: Plan, training: bool, eps: float, backend: str) -> cuda.Call:
    untracked = ((None, None, None),) * len(plan.affine)
    return cuda.Call(*plan[:4], plan.y, untracked, training, None, eps, backend)


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
    x, bank, plans = _arguments(x, bank, affine, main, stride, whole)
    if backend in GPU:
        call = _cuda_call(plans[0], given is None, eps, backend)
        options = (call.training, True, None, eps, backend, False)
        y, found, saved = cuda.forward(x, call.layers(bank), main, stride, whole, call.shape, given, *options)
        return y, x.new_empty(0, dtype=torch.float32) if given is not None or found is None else found, saved
    (y,), statistics, (saved,) = forward(x, bank, given, plans, eps)
    return y, statistics if given is None else x.new_empty(0), saved


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
    plan = plan_of(x, bank, affine, main, stride, whole, cuda.KEPT_ALIGNMENT if backend in GPU else 1)
    dtype = torch.float64 if x.dtype is torch.float64 else torch.float32
    statistics = x.new_empty(plan.statistics if given is None else 0, dtype=dtype)
    return empty_nhwc(plan.y, like=x), statistics, x.new_empty(plan.kept)


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
    x, bank, plans = _arguments(x, bank, affine, main, stride, whole)
    if backend in GPU:
        gradients = new_gradients(x, bank, wanted)
        dx, *of_bank = expand(gradients, wanted)
        cuda.backward_into(dy, x, _cuda_call(plans[0], training, eps, backend), bank, saved, statistics, dx, of_bank)
        return gradients
    return backward(dy, x, bank, plans, (), (saved,), statistics, wanted, training, eps)


def _operator_backward_fake(
    dy: Tensor, x: Tensor, bank: Sequence[Tensor], statistics: Tensor, saved: Tensor, wanted: Sequence[bool], *_: Any
) -> list[Tensor]:
    return new_gradients(x, bank, wanted)


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
    refuse_double_backward()
    needs_dx, needs_bank = ctx.needs_input_grad[:2]
    wanted = [needs_dx, *(needs_bank if isinstance(needs_bank, list | tuple) else [needs_bank] * len(bank))]
    backward = torch.ops.spos_kernels.choice_block_backward
    dx, *of_bank = expand(backward(dy, x, bank, statistics, saved, wanted, *ctx.options), wanted)
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
