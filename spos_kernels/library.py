"""Registration of the kernels with torch.library: what torch.compile, export, fake tensors and dispatch modes see."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def register(name: str, arguments: str, kernel: Callable[..., Tensor], fake: Callable[..., Tensor]) -> None:
    """Define torch.ops.spos_kernels.<name>: functional, one result, for CPU tensors.

    arguments: those of a torch schema, "(Tensor x, int stride)". fake: `kernel` for tensors without data.
    """
    qualified = f"spos_kernels::{name}"
    torch.library.define(qualified, f"{arguments} -> Tensor")
    torch.library.impl(qualified, "cpu", kernel)
    torch.library.register_fake(qualified, fake)
