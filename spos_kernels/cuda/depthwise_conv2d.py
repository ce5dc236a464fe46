"""The kernels of csrc/cuda/depthwise_conv2d.cu as functions of plain tensors.

Maps are channels_last, channel slices of wider ones too, in float32, float16 or bfloat16; weights [C, 1, k, k] of any
strides. active_channels: an int32 tensor of one element on the device, how many of the channels to compute; the rest of
the output is left alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spos_kernels.cuda.modules import module_of, stream_of


def forward(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    stride: int,
    padding: int,
    backend: str,
    active_channels: Tensor | None = None,
) -> None:
    module = module_of(backend)
    module.depthwise_conv2d_forward(x, weight, y, stride, padding, active_channels, stream_of(x))


def dgrad(
    dy: Tensor,
    weight: Tensor,
    dx: Tensor,
    stride: int,
    padding: int,
    backend: str,
    active_channels: Tensor | None = None,
) -> None:
    module = module_of(backend)
    module.depthwise_conv2d_dgrad(dy, weight, dx, stride, padding, active_channels, stream_of(dy))


def wgrad(
    x: Tensor,
    dy: Tensor,
    dweight: Tensor,
    stride: int,
    padding: int,
    accumulate: bool,
    backend: str,
    active_channels: Tensor | None = None,
) -> None:
    """Write into `dweight`, or add to it."""
    module = module_of(backend)
    size = module.depthwise_conv2d_wgrad_workspace(x, dy, dweight, stride, padding)
    workspace = torch.empty(size, dtype=torch.float32, device=x.device)
    module.depthwise_conv2d_wgrad(x, dy, dweight, stride, padding, accumulate, workspace, active_channels, stream_of(x))
