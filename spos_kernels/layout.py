"""Memory layout of the kernels' tensors: logically NCHW, in memory NHWC (torch.channels_last)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def as_nhwc(x: Tensor) -> Tensor:
    """Return `x` itself if its channels are adjacent in memory (also a slice of them), else a channels_last copy."""
    # The stride of a single channel means nothing: torch may hold any value there.
    if x.stride(1) == 1 or x.shape[1] == 1:
        return x
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # vmap refuses memory_format=torch.channels_last


def empty_nhwc(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return an uninitialised channels_last tensor of `shape` [N, C, H, W] with the dtype and device of `like`."""
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def nhwc_strides(shape: Sequence[int]) -> tuple[int, int, int, int]:
    """Return the strides of a dense channels_last tensor of `shape` [N, C, H, W]."""
    _, channels, height, width = shape
    return channels * height * width, 1, channels * width, channels


def is_dense(tensor: Tensor) -> bool:
    """Whether its elements fill the memory that they reach over, each once, in whatever order."""
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()
