"""Layers whose number of channels is a choice: weights of the largest width, of which the leading part is used.

Channel search of Single Path One-Shot NAS (arXiv 1904.00420, section 3.4): "we preallocate a weight tensor with the
maximum number of channels, and the system randomly selects the channel number and slices out the corresponding subset".
Each layer takes a `WidthChoice` where its plain counterpart takes a number of channels; a layer without one is the
plain layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spos.choices import WidthChoice, current_path
from spos_kernels import sliced_conv2d, sliced_linear, sliced_parameter
from spos_kernels.gradient_sink import Extent, slice_of

Width = int | WidthChoice
Layer = TypeVar("Layer", bound=nn.Module)


class SlicedModule(nn.Module):
    """A layer that uses the leading part of its weights and buffers, as far as its WidthChoices say.

    A layer of your own that slices derives from this beside its torch class, keeps its WidthChoices as submodules and
    defines the two methods; costs and extraction then know what it uses. Its `forward` takes its slices by
    `spos_kernels.sliced_parameter` or `sliced_conv2d`, so that training leaves alone what lies outside of them.
    """

    def slices(self, arch: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """Return, by name, how much of the leading dimensions of each parameter and buffer `arch` uses.

        Names left out are used whole. Costs count by the sizes alone; a layer that uses another part than the leading
        one takes it in its own `forward` and `extract`.
        """
        raise NotImplementedError

    def extract(self, arch: Sequence[int]) -> nn.Module:
        """Return the plain layer that computes what this one does on `arch`, with copies of the slices."""
        raise NotImplementedError

    def width_choices(self) -> list[WidthChoice]:
        """Return the WidthChoices that the layer reads, each once."""
        return [m for m in self.modules() if isinstance(m, WidthChoice)]


def sliced_size(tensor: Tensor, sizes: tuple[int, ...]) -> int:
    """Return the number of elements of the slice of the given leading sizes."""
    return torch.Size((*sizes, *tensor.shape[len(sizes) :])).numel()


def leading(tensor: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Return the view of the given leading sizes."""
    return tensor[tuple(slice(n) for n in sizes)]


def in_force(layer: nn.Module, *names: str) -> list[Tensor | None]:
    """Return a layer's parameters and buffers, of a sliced layer the views of what the path of the running call uses.

    Gradients of the views go to the `spos_kernels.GradientSink` in force, where there is one.
    """
    parameters, buffers = layer._parameters, layer._buffers  # getattr() on a module takes several times as long
    tensors: list[Tensor | None] = [
        parameters[n] if n in parameters else buffers[n] if n in buffers else getattr(layer, n) for n in names
    ]
    if not isinstance(layer, SlicedModule):
        return tensors
    sizes = layer.slices(current_path(layer))
    return [
        t if t is None or name not in sizes else slice_of(t, _extent(t, sizes[name]))
        for name, t in zip(names, tensors, strict=True)
    ]


def _extent(tensor: Tensor, sizes: tuple[int, ...]) -> Extent:
    columns = sizes[1] if len(sizes) > 1 else tensor.shape[1] if tensor.dim() > 1 else 1
    return Extent(0, sizes[0], 0, columns)


class SlicedConv2d(SlicedModule, nn.Conv2d):
    """`nn.Conv2d` of which `in_channels`, `out_channels` or both are a WidthChoice. Input [N, width, H, W].

    `kernel_size` is 1 to 7, `stride` 1 or 2, `padding` less than `kernel_size`. A depthwise convolution has the same
    WidthChoice as `in_channels`, `out_channels` and `groups`; any other number of groups divides all the widths.
    """

    def __init__(
        self,
        in_channels: Width,
        out_channels: Width,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        groups: Width = 1,
        bias: bool = True,
    ) -> None:
        if isinstance(groups, WidthChoice):
            if not in_channels is out_channels is groups:
                raise ValueError("groups is a WidthChoice: expected the same as in_channels and as out_channels")
        else:
            odd = [w for width in (in_channels, out_channels) for w in _widths(width) if w % groups]
            if odd:
                raise ValueError(f"groups = {groups}: expected a divisor of every width, which it is not of {odd[0]}")
        sizes = (_largest(in_channels), _largest(out_channels), kernel_size, stride, padding)
        super().__init__(*sizes, groups=_largest(groups), bias=bias)
        self._stride, self._padding = stride, padding
        self.in_width = _choice(in_channels)
        self.out_width = _choice(out_channels)
        self.depthwise = isinstance(groups, WidthChoice)

    def sizes_in_force(self, input: Tensor) -> tuple[int, int, int]:
        """Return the numbers of inputs, outputs and groups on the running path; ValueError for another `input`."""
        inputs = self.in_channels if self.in_width is None else self.in_width()
        outputs = self.out_channels if self.out_width is None else self.out_width()
        _check_channels(self, input.shape[1], inputs)
        return inputs, outputs, inputs if self.depthwise else self.groups

    def forward(self, input: Tensor) -> Tensor:
        _, outputs, groups = self.sizes_in_force(input)
        options = {"stride": self._stride, "padding": self._padding, "groups": groups}
        y = sliced_conv2d(input, self.weight, out_channels=outputs, **options)
        return y if self.bias is None else y + sliced_parameter(self.bias, outputs)[:, None, None]

    def slices(self, arch: Sequence[int]) -> dict[str, tuple[int, ...]]:
        inputs, outputs = _width(self.in_width, self.in_channels, arch), _width(self.out_width, self.out_channels, arch)
        sizes: dict[str, tuple[int, ...]] = {"weight": (outputs, 1 if self.depthwise else inputs // self.groups)}
        return sizes if self.bias is None else sizes | {"bias": (outputs,)}

    def extract(self, arch: Sequence[int]) -> nn.Conv2d:
        inputs, outputs = _width(self.in_width, self.in_channels, arch), _width(self.out_width, self.out_channels, arch)
        options: dict[str, Any] = {"groups": inputs if self.depthwise else self.groups, "bias": self.bias is not None}
        with torch.device("meta"):
            conv = nn.Conv2d(inputs, outputs, self.kernel_size[0], self._stride, self._padding, **options)
        return with_slices(conv, self, arch)


class SlicedLinear(SlicedModule, nn.Linear):
    """`nn.Linear` of which `in_features`, `out_features` or both are a WidthChoice. Input [..., width]."""

    def __init__(self, in_features: Width, out_features: Width, bias: bool = True) -> None:
        super().__init__(_largest(in_features), _largest(out_features), bias)
        self.in_width = _choice(in_features)
        self.out_width = _choice(out_features)

    def forward(self, input: Tensor) -> Tensor:
        inputs = self.in_features if self.in_width is None else self.in_width()
        outputs = self.out_features if self.out_width is None else self.out_width()
        _check_channels(self, input.shape[-1], inputs)
        return sliced_linear(input, self.weight, self.bias, out_features=outputs)

    def slices(self, arch: Sequence[int]) -> dict[str, tuple[int, ...]]:
        inputs, outputs = _width(self.in_width, self.in_features, arch), _width(self.out_width, self.out_features, arch)
        return {"weight": (outputs, inputs)} if self.bias is None else {"weight": (outputs, inputs), "bias": (outputs,)}

    def extract(self, arch: Sequence[int]) -> nn.Linear:
        outputs, inputs = self.slices(arch)["weight"]
        with torch.device("meta"):
            linear = nn.Linear(inputs, outputs, self.bias is not None)
        return with_slices(linear, self, arch)


class SlicedBatchNorm2d(SlicedModule, nn.BatchNorm2d):
    """`nn.BatchNorm2d` of a WidthChoice of channels: scale, shift and running statistics are used by their prefix."""

    def __init__(
        self,
        num_features: Width,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        super().__init__(_largest(num_features), eps, momentum, affine, track_running_stats)
        self.width = _choice(num_features)

    def forward(self, input: Tensor) -> Tensor:
        channels = self.num_features if self.width is None else self.width()
        _check_channels(self, input.shape[1], channels)
        mean, var = (None if t is None else t[:channels] for t in (self.running_mean, self.running_var))
        weight, bias = (None if p is None else sliced_parameter(p, channels) for p in (self.weight, self.bias))
        factor = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                factor = 1.0 / float(self.num_batches_tracked)
        return F.batch_norm(input, mean, var, weight, bias, self.training or mean is None, factor, self.eps)

    def slices(self, arch: Sequence[int]) -> dict[str, tuple[int, ...]]:
        channels = _width(self.width, self.num_features, arch)
        names = ("weight", "bias", "running_mean", "running_var")
        return {name: (channels,) for name in names if getattr(self, name) is not None}

    def extract(self, arch: Sequence[int]) -> nn.BatchNorm2d:
        channels = _width(self.width, self.num_features, arch)
        with torch.device("meta"):
            norm = nn.BatchNorm2d(channels, self.eps, self.momentum, self.affine, self.track_running_stats)
        return with_slices(norm, self, arch)


def _choice(width: Width) -> WidthChoice | None:
    return width if isinstance(width, WidthChoice) else None


def _widths(width: Width) -> Sequence[int]:
    return width.widths if isinstance(width, WidthChoice) else (width,)


def _largest(width: Width) -> int:
    return _widths(width)[-1]


def _width(choice: WidthChoice | None, fixed: int, arch: Sequence[int]) -> int:
    return fixed if choice is None else choice.width(arch)


def _check_channels(layer: nn.Module, given: int, expected: int) -> None:
    if given != expected:
        raise ValueError(f"input has {given} channels: {type(layer).__name__} takes {expected} on this path")


def with_slices(new: Layer, layer: SlicedModule, arch: Sequence[int]) -> Layer:
    """Put copies of a sliced layer's slices into a plain one that was made without memory, and give it its mode."""
    sizes = layer.slices(arch)
    for name, parameter in layer.named_parameters(recurse=False):
        part = leading(parameter.detach(), sizes.get(name, ()))
        setattr(new, name, nn.Parameter(part.clone(), parameter.requires_grad))
    for name, buffer in layer.named_buffers(recurse=False):
        setattr(new, name, leading(buffer, sizes.get(name, ())).clone())
    return new.train(layer.training)
