"""The kernels of csrc/cuda/sliced_conv2d.cu as functions of plain tensors.

Maps are channels_last, channel slices of wider ones too, or matrices, which are maps of one pixel; weights are whole,
of any strides. options: out_offset, in_offset, stride, padding, groups. active_in_channels, active_out_channels: int32
tensors of one element on the device, how many of a group's channels to use; outputs beyond them are left alone.

float32 is multiplied as float32, or rounded to TF32 where torch.backends.cuda.matmul.allow_tf32 is set.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spos_kernels.cuda.modules import module_of, stream_of, takes_tf32

Options = tuple[int, int, int, int, int]


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    options: Options,
    backend: str,
    active_in_channels: Tensor | None = None,
    active_out_channels: Tensor | None = None,
) -> None:
    module_of(backend).sliced_conv2d_forward(
        x, weight, bias, y, *options, takes_tf32(x), active_in_channels, active_out_channels, stream_of(x)
    )


def dgrad(
    dy: Tensor,
    weight: Tensor,
    dx: Tensor,
    options: Options,
    backend: str,
    active_in_channels: Tensor | None = None,
    active_out_channels: Tensor | None = None,
) -> None:
    module_of(backend).sliced_conv2d_dgrad(
        dy, weight, dx, *options, takes_tf32(dy), active_in_channels, active_out_channels, stream_of(dy)
    )


def wgrad(
    x: Tensor,
    dy: Tensor,
    dweight: Tensor,
    options: Options,
    accumulate: bool,
    backend: str,
    active_in_channels: Tensor | None = None,
    active_out_channels: Tensor | None = None,
) -> None:
    """Write the slice of `dweight`, or add to it; touch nothing else of it."""
    module = module_of(backend)
    size = module.sliced_conv2d_wgrad_workspace(x, dy, dweight, *options)
    workspace = torch.empty(size, dtype=torch.float32, device=x.device)
    module.sliced_conv2d_wgrad(
        x,
        dy,
        dweight,
        *options,
        accumulate,
        takes_tf32(x),
        workspace,
        active_in_channels,
        active_out_channels,
        stream_of(x),
    )
