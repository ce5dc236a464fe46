"""A ShuffleNet V2 choice block: what it is made of, what is accepted, and its reference in plain PyTorch.

The block is that of Single Path One-Shot NAS (arXiv 1904.00420, appendix), after ShuffleNet V2 (arXiv 1807.11164).
`describe` is the one place where arguments are checked; every backend of `choice_block` starts from its result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spos_kernels.backends import is_autocast, names_of, runs_gpu
from spos_kernels.layout import as_nhwc

__all__ = ["Branch", "ConvBN", "Link", "choice_block_reference"]

LONGEST_CHAIN = 6  # that of "xception"


class ConvBN(NamedTuple):
    """The tensors of a convolution without bias and of the batch normalisation behind it.

    weight: [C, 1, k, k], k = 3, 5 or 7, is a depthwise convolution of the C channels that arrive, padded by k // 2, and
        only the normalisation follows; [O, I, 1, 1] is a pointwise one, and normalisation and ReLU follow.
    gamma, beta: [O], scale and shift; None, both, for a normalisation without.
    running_mean, running_var: [O], updated in place in training; None, both, where they are not tracked.
    num_batches_tracked: int64 scalar, incremented in training; None where it is not counted.

    All but the count have the dtype and device of the block's input, but where that is float16 or bfloat16 (on backends
    "cuda" and "cuda-emulated"), only the weight is too, and the others are float32. Views of larger tensors are read
    and updated in place.
    """

    weight: Tensor
    gamma: Tensor | None = None
    beta: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    num_batches_tracked: Tensor | None = None


class Branch(NamedTuple):
    """One option of a choice block: the chain of its main branch, and that of the projection beside it at stride 2."""

    main: tuple[ConvBN, ...]
    proj: tuple[ConvBN, ...] = ()


class Link(NamedTuple):
    """One block of a chain, on the path that is taken through it.

    branch: the option taken. stride: 1 or 2, as in `choice_block`. whole: the block is one convolution with its
    normalisation and ReLU and nothing beside it, as `conv_norm_relu` runs it with padding k // 2: `main` has that one,
    `proj` none.
    """

    branch: Branch
    stride: int = 1
    whole: bool = False


class Layer(NamedTuple):
    """A checked `ConvBN`, with the shape that it works on: `height` and `width` are those of its output."""

    tensors: ConvBN
    is_depthwise: bool
    kernel: int
    stride: int
    in_channels: int
    out_channels: int
    height: int
    width: int


class Block(NamedTuple):
    """A checked call: its input after autocast, the layers of the chosen branch, the shape of the result."""

    x: Tensor
    main: tuple[Layer, ...]
    proj: tuple[Layer, ...]
    shape: tuple[int, int, int, int]


def choice_block_reference(
    x: Tensor,
    branches: Sequence[Branch],
    choice: int,
    *,
    stride: int = 1,
    training: bool = True,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`choice_block` in plain PyTorch: same arguments, result and errors, on every device, differentiable twice."""
    return run_reference(describe(x, branches, choice, stride, training, momentum, eps), training, momentum, eps)


def describe(
    x: Tensor,
    branches: Sequence[Branch],
    choice: int,
    stride: int,
    training: bool,
    momentum: float | None,
    eps: float,
) -> Block:
    """Check the arguments of a call, of `branches` the chosen one, and say what is to be computed.

    Under autocast, bfloat16 and float16 tensors come back as float32. Raises TypeError or ValueError that names the
    argument, down to `branches[2].main[1].weight`.
    """
    check_options(stride, training, momentum, eps)
    check_tensor(x, "x")
    if x.ndim != 4:
        raise ValueError(f"x has shape {list(x.shape)}: expected [N, C, H, W]")
    branch = _chosen(branches, choice)
    if is_autocast(x):
        x, branch = widened(x), Branch(*(tuple(map(widened_layer, chain)) for chain in branch))
    check_dtype(x)
    batch, channels, height, width = x.shape
    if height < 1 or width < 1 or channels < 1:
        raise ValueError(f"x has shape {list(x.shape)}: expected C, H and W of at least 1")
    if stride == 1 and channels % 2:
        raise ValueError(f"x has {channels} channels: at stride 1, half of them pass, so their number must be even")
    where = f"branches[{choice}]"
    if len(branch.proj) != (2 if stride == 2 else 0):
        expected = "a depthwise and a pointwise convolution at stride 2" if stride == 2 else "none at stride 1"
        raise ValueError(f"{where}.proj has {len(branch.proj)} convolutions: expected {expected}")
    arriving = channels // 2 if stride == 1 else channels
    main = _chain(x, branch.main, f"{where}.main", arriving, stride, training, momentum)
    proj = _chain(x, branch.proj, f"{where}.proj", arriving, stride, training, momentum) if stride == 2 else ()
    if proj and proj[-1].out_channels != channels:
        raise ValueError(
            f"{where}.proj[1].weight has shape {list(proj[-1].tensors.weight.shape)}: expected "
            f"[{channels}, {channels}, 1, 1], as many outputs as x has channels"
        )
    beside = proj[-1].out_channels if proj else channels - arriving
    last = main[-1]
    return Block(x, main, proj, (batch, beside + last.out_channels, last.height, last.width))


def run_reference(block: Block, training: bool, momentum: float | None, eps: float) -> Tensor:
    """Compute a checked call with torch's own operations."""
    x = block.x
    # Under autocast the casts are made by now; the block itself stays in float32.
    with torch.autocast(x.device.type, enabled=False) if is_autocast(x) else nullcontext():
        if block.proj:
            beside, main = _run_chain(x, block.proj, training, momentum, eps), x
        else:
            # Unbinding the channel pairs in NHWC order makes their gradient one stacked tensor, channels last too.
            pairs = x.permute(0, 2, 3, 1).unflatten(-1, (x.shape[1] // 2, 2)).unbind(-1)
            beside, main = (half.permute(0, 3, 1, 2) for half in pairs)
        return as_nhwc(torch.cat([beside, _run_chain(as_nhwc(main), block.main, training, momentum, eps)], 1))


def _run_chain(x: Tensor, chain: tuple[Layer, ...], training: bool, momentum: float | None, eps: float) -> Tensor:
    for layer in chain:
        weight = layer.tensors.weight
        groups = layer.in_channels if layer.is_depthwise else 1
        x = F.conv2d(x, weight, stride=layer.stride, padding=layer.kernel // 2, groups=groups)
        x = run_norm(x, layer.tensors, training, momentum, eps)
        x = x if layer.is_depthwise else F.relu(x)
    return x


def run_norm(x: Tensor, tensors: ConvBN, training: bool, momentum: float | None, eps: float) -> Tensor:
    """Normalise a convolution's output, and update what is tracked, with torch's own operation."""
    _, gamma, beta, mean, var, count = tensors
    if training and count is not None:
        count.add_(1)
    fraction = momentum
    if fraction is None:
        fraction = 1 / float(count) if training and count is not None else 0.0
    return F.batch_norm(x, mean, var, gamma, beta, training, fraction, eps)


def _chain(
    x: Tensor,
    convolutions: tuple[ConvBN, ...],
    where: str,
    channels: int,
    stride: int,
    training: bool,
    momentum: float | None,
) -> tuple[Layer, ...]:
    """Check a chain of alternately depthwise and pointwise convolutions; the first depthwise one has the stride."""
    batch, height, width = x.shape[0], x.shape[2], x.shape[3]
    layers: list[Layer] = []
    for index, tensors in enumerate(convolutions):
        name = f"{where}[{index}]"
        if not isinstance(tensors, ConvBN):
            raise TypeError(f"{name} is a {type(tensors).__name__}: expected a ConvBN")
        weight = tensors.weight
        check_tensor(weight, f"{name}.weight", x)
        # A weight of one channel and one pixel is pointwise: depthwise kernels start at 3.
        is_depthwise = weight.ndim == 4 and weight.shape[-1] > 1
        if layers and layers[-1].is_depthwise == is_depthwise:
            kind = "depthwise" if is_depthwise else "pointwise"
            raise ValueError(
                f"{name}.weight has shape {list(weight.shape)}, a second {kind} convolution in succession: expected "
                "depthwise and pointwise ones in turn"
            )
        kernel = weight.shape[-1] if is_depthwise else 1
        expected = (channels, 1, kernel, kernel) if is_depthwise else (*weight.shape[:1], channels, 1, 1)
        if weight.shape != expected or kernel not in (1, 3, 5, 7) or weight.shape[0] < 1:
            raise ValueError(
                f"{name}.weight has shape {list(weight.shape)}: {channels} channels arrive, expected [{channels}, 1, "
                f"k, k] with k = 3, 5 or 7, or [O, {channels}, 1, 1]"
            )
        step, stride = (stride, 1) if is_depthwise else (1, stride)  # the first depthwise one takes the stride
        height, width = (height - 1) // step + 1, (width - 1) // step + 1
        check_norm(x, tensors, name, training, momentum)
        if training and batch * height * width < 2:
            raise ValueError(
                f"x has shape {list(x.shape)}: {name} would take batch statistics over {batch * height * width} values "
                "a channel, expected at least 2 in training"
            )
        layers.append(Layer(tensors, is_depthwise, kernel, step, channels, weight.shape[0], height, width))
        channels = weight.shape[0]
    if not 2 <= len(layers) <= LONGEST_CHAIN or layers[-1].is_depthwise:
        raise ValueError(
            f"{where} has {len(layers)} convolutions: expected at most {LONGEST_CHAIN}, a depthwise one and, "
            "last, a pointwise one"
        )
    return tuple(layers)


def check_dtype(x: Tensor) -> None:
    halves = (torch.float16, torch.bfloat16) if runs_gpu(x) else ()
    if x.dtype not in (torch.float32, torch.float64, *halves):
        accepted = names_of((torch.float32, torch.float64, *halves))
        raise TypeError(f"x has dtype {x.dtype}: accepted are {accepted}")


def check_norm(x: Tensor, tensors: ConvBN, where: str, training: bool, momentum: float | None) -> None:
    weight, gamma, beta, mean, var, count = tensors
    shape = weight.shape[:1]
    for field, tensor in ("gamma", gamma), ("beta", beta), ("running_mean", mean), ("running_var", var):
        if tensor is None:
            continue
        check_tensor(tensor, f"{where}.{field}", x, torch.float64 if x.dtype is torch.float64 else torch.float32)
        if tensor.shape != shape:
            raise ValueError(f"{where}.{field} has shape {list(tensor.shape)}: expected {list(shape)}")
    if (gamma is None) != (beta is None):
        raise ValueError(f"{where}.{'gamma' if gamma is None else 'beta'} is None: expected gamma and beta, or neither")
    if (mean is None) != (var is None):
        missing = "running_mean" if mean is None else "running_var"
        raise ValueError(f"{where}.{missing} is None: expected running_mean and running_var, or neither")
    if mean is None and not training:
        raise ValueError(f"{where}.running_mean is None: expected running statistics where training is False")
    if count is None:
        if training and momentum is None and mean is not None:
            raise ValueError(f"{where}.num_batches_tracked is None: expected it with momentum = None")
        return
    if not isinstance(count, Tensor) or count.dtype is not torch.int64:
        found = f"dtype {count.dtype}" if isinstance(count, Tensor) else f"type {type(count).__name__}"
        raise TypeError(f"{where}.num_batches_tracked has {found}: expected a torch.int64 tensor")
    if count.ndim or count.device != x.device:
        raise ValueError(
            f"{where}.num_batches_tracked has shape {list(count.shape)} on {count.device}: expected a scalar on "
            f"{x.device}"
        )
    if mean is None:
        raise ValueError(f"{where}.num_batches_tracked is given without running_mean: expected both or neither")


def check_tensor(tensor: Tensor, name: str, like: Tensor | None = None, dtype: torch.dtype | None = None) -> None:
    """Check a tensor, and that it is where x is: `like`, in its dtype unless there is another."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    if tensor.layout is not torch.strided:
        raise ValueError(f"{name} has layout {tensor.layout}: accepted is torch.strided")
    if like is None:
        return
    expected = dtype or like.dtype
    if tensor.dtype != expected:
        which = "that of x, " if expected == like.dtype else f"with x in {like.dtype} "
        raise TypeError(f"{name} has dtype {tensor.dtype}: expected {which}{expected}")
    if tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}: expected the device of x, {like.device}")


def check_options(stride: int, training: bool, momentum: float | None, eps: float) -> None:
    if stride not in (1, 2) or isinstance(stride, float | bool):
        raise ValueError(f"stride = {stride!r}: accepted are 1 and 2")
    if not isinstance(training, bool):
        raise TypeError(f"training = {training!r}: expected a bool")
    if momentum is not None:
        if not isinstance(momentum, float | int) or isinstance(momentum, bool):
            raise TypeError(f"momentum = {momentum!r}: expected None or a number from 0 to 1")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum = {momentum!r}: expected None or a number from 0 to 1")
    if not isinstance(eps, float | int) or isinstance(eps, bool):
        raise TypeError(f"eps = {eps!r}: expected a positive number")
    if not 0 < eps < math.inf:
        raise ValueError(f"eps = {eps!r}: expected a positive number")


def _chosen(branches: Sequence[Branch], choice: int) -> Branch:
    if isinstance(branches, Branch) or not isinstance(branches, Sequence):
        raise TypeError(f"branches is a {type(branches).__name__}: expected a sequence of Branch")
    if not isinstance(choice, int) or isinstance(choice, bool):
        raise TypeError(f"choice = {choice!r}: expected an integer from 0 to {len(branches) - 1}")
    if not 0 <= choice < len(branches):
        raise ValueError(f"choice = {choice}: expected an integer from 0 to {len(branches) - 1}")
    branch = branches[choice]
    if not isinstance(branch, Branch):
        raise TypeError(f"branches[{choice}] is a {type(branch).__name__}: expected a Branch")
    for field, chain in zip(Branch._fields, branch, strict=True):
        if not isinstance(chain, tuple) or isinstance(chain, ConvBN):
            raise TypeError(f"branches[{choice}].{field} is a {type(chain).__name__}: expected a tuple of ConvBN")
    return branch


def widened(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def widened_layer(tensors: ConvBN) -> ConvBN:
    """The trained tensors only: running statistics are written in place, so a copy of them would lose the update."""
    if not isinstance(tensors, ConvBN):
        return tensors  # refused with its name later
    weight, gamma, beta = (widened(t) if isinstance(t, Tensor) else t for t in tensors[:3])
    assert weight is not None
    return tensors._replace(weight=weight, gamma=gamma, beta=beta)
