"""What the sliced operations accept: checks that name the argument, its value and what is accepted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spos_kernels.backends import float_dtypes, is_autocast, names_of


def conv2d_arguments(
    x: Tensor, weight: Tensor, out_channels: int | None, out_offset: int, groups: int
) -> tuple[Tensor, Tensor, int]:
    """Resolve the default number of channels and autocast, which come before any choice of backend."""
    for name, tensor in (("x", x), ("weight", weight)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
        if tensor.ndim != 4:
            raise ValueError(f"{name} has shape {list(tensor.shape)}: expected 4 dimensions")
        if tensor.layout is not torch.strided:
            raise ValueError(f"{name} has layout {tensor.layout}: accepted is torch.strided")
    check_integer("groups", groups)
    check_integer("out_offset", out_offset)
    if is_autocast(x):
        x, weight = (t.float() if t.dtype in (torch.bfloat16, torch.float16) else t for t in (x, weight))
    if out_channels is not None:
        check_integer("out_channels", out_channels)
        return x, weight, out_channels
    depthwise = groups == x.shape[1] and weight.shape[1] == 1
    return x, weight, x.shape[1] if depthwise else weight.shape[0] - out_offset


def check_integer(name: str, value: object) -> None:
    if not isinstance(value, int | torch.SymInt) or isinstance(value, bool):
        raise ValueError(f"{name} = {value!r}: expected an integer")


def output_shape(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    outputs: int,
    out_offset: int,
    in_offset: int,
    stride: int,
    padding: int,
    groups: int,
) -> tuple[int, int, int, int]:
    """Check the sizes of a call and return the shape of its result."""
    batch, channels, height, width = x_shape
    rows, columns, kernel, other = weight_shape
    check_integer("in_offset", in_offset)
    if kernel not in range(1, 8) or other != kernel:
        raise ValueError(f"weight has shape {list(weight_shape)}: expected [O, I, k, k] with k from 1 to 7")
    if channels < 1 or groups < 1 or channels % groups:
        raise ValueError(
            f"groups = {groups}: expected a divisor of {channels}, the channels of x, which are at least 1"
        )
    if outputs < 1 or outputs % groups:
        raise ValueError(f"out_channels = {outputs}: expected a positive multiple of groups, {groups}")
    if out_offset < 0 or out_offset + outputs > rows:
        raise ValueError(
            f"out_offset = {out_offset} and out_channels = {outputs}: expected a range within the {rows} rows of "
            f"weight, whose shape is {list(weight_shape)}"
        )
    if in_offset < 0 or in_offset + channels // groups > columns:
        raise ValueError(
            f"in_offset = {in_offset}: expected {channels // groups} columns from there (channels of x, {channels}, "
            f"over groups, {groups}) within the {columns} of weight"
        )
    if stride not in (1, 2) or isinstance(stride, float | bool):
        raise ValueError(f"stride = {stride!r}: accepted are 1 and 2")
    if padding not in range(kernel) or isinstance(padding, float | bool):
        raise ValueError(
            f"padding = {padding!r}: accepted are integers from 0 to {kernel - 1} for a kernel of {kernel}"
        )
    smallest = max(1, kernel - 2 * padding)
    if height < smallest or width < smallest:
        raise ValueError(
            f"x has shape {list(x_shape)}: expected H and W of at least {smallest} for kernel {kernel} and padding "
            f"{padding}"
        )
    return batch, outputs, (height + 2 * padding - kernel) // stride + 1, (width + 2 * padding - kernel) // stride + 1


def check_tensors(x: Tensor, other: Tensor, backend: str, name: str = "weight") -> None:
    if x.dtype not in (accepted := float_dtypes(backend)):
        raise TypeError(f"x has dtype {x.dtype}: accepted are {names_of(accepted)}")
    if other.dtype != x.dtype:
        raise TypeError(f"{name} has dtype {other.dtype}: expected that of x, {x.dtype}")
    if other.device != x.device:
        raise ValueError(f"{name} is on {other.device}: expected the device of x, {x.device}")


def check_single_backward(name: str, backend: str) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{name}: backend {backend!r} has no double backward (create_graph=True): use backend 'reference'"
        )
