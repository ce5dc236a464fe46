"""Low-bit convolutions and matrix products on the CUDA kernels (csrc/cuda/lowbit.h)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spos_kernels.cuda.modules import counters, module_of, stream_of
from spos_kernels.lowbit_methods import record

# Numbered as in csrc/cuda/lowbit.h.
BODIES = ("s8", "s4", "b1", "rows", "direct")
FORMS = ("x in place", "x packed", "windows of x packed")


class Plan(NamedTuple):
    """How a call runs: by which products, over x in which form, in tiles of which size, by how many blocks each."""

    body: int
    form: int
    tile: int
    splits: int
    workspace_bytes: int
    capability: int

    def __str__(self) -> str:
        size = {"rows": f"{self.tile} columns", "direct": f"{self.tile} pixels"}.get(
            BODIES[self.body], f"tiles of {self.tile}x{self.tile}"
        )
        splits = f", k in {self.splits} parts" if self.splits > 1 else ""
        return f"{BODIES[self.body]}, {FORMS[self.form]}, {size}{splits}"


class Wanted(NamedTuple):
    """What of a plan is not left to the arithmetic of csrc/cuda/lowbit_plan.cu: for tests and measurements."""

    body: int = -1
    tile: int = 0
    splits: int = 0
    capability: int = 0  # to plan for, 80, 90 ...: in the emulator, which runs every body


wanted = Wanted()
_plans: dict[tuple[object, ...], Plan] = {}


def run(
    backend: str,
    tensors: Sequence[Tensor | None],
    sizes: tuple[int, ...],
    numbers: tuple[int, ...],
    scales: tuple[float | None, float | None, float | None],
    relu: bool,
    centred: bool,
) -> None:
    """Fill the results of one call.

    tensors: x as rows of pixels, packed, sums, twice_zero, multiplier, bias, residual and the results (sums, floats,
    codes), as `lowbit_products` has them. centred: whether all zeros of the weight are 2^(bits − 1).
    """
    module = module_of(backend)
    x, groups = tensors[0], tensors[2]
    assert x is not None and groups is not None
    arguments = (*tensors, sizes, numbers, scales, relu, centred)
    # All that a plan follows from.
    aligned = x.data_ptr() % 16 == 0, x.stride(0) % 16 == 0
    key = (backend, x.device, sizes, numbers, groups.shape[0], x.dtype, aligned, wanted)
    plan = _plans.get(key)
    if plan is None:
        plan = Plan(*module.lowbit_plan(*arguments, wanted=wanted))
        if len(_plans) >= 4096:
            _plans.clear()
        _plans[key] = plan
        record((*sizes, groups.shape[0], numbers[0], numbers[2], f"{backend} sm_{plan.capability}"), str(plan))
    workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=x.device)
    stream = stream_of(x)
    module.lowbit_conv2d(*arguments, wanted=wanted, workspace=workspace,
                         counters=counters(x, module.lowbit_counters), stream=stream)  # fmt: skip
