"""Registration of the kernels with torch.library: what torch.compile, export, fake tensors and dispatch modes see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def register(
    name: str, arguments: str, kernel: Callable[..., Any], fake: Callable[..., Any], result: str = "Tensor"
) -> None:
    """Define torch.ops.spos_kernels.<name>: functional, for CPU and CUDA tensors.

    arguments, result: those of a torch schema, "(Tensor x, int stride)". fake: `kernel` for tensors without data.
    """
    qualified = f"spos_kernels::{name}"
    torch.library.define(qualified, f"{arguments} -> {result}")
    torch.library.impl(qualified, ("cpu", "cuda"), kernel)
    torch.library.register_fake(qualified, fake)
