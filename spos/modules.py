"""Working on a tree of modules: initialising it, and swapping layers for the library's kernels and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from spos_kernels import DepthwiseConv2d


def initialize(module: nn.Module, seed: int) -> None:
    """Initialise every weight from `seed`: each layer's `reset_parameters()`, then the module's `init_weights()`."""
    custom = getattr(module, "init_weights", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in module.modules():
            reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
            if callable(reset):
                reset()
            elif custom is None and next(layer.parameters(recurse=False), None) is not None:
                kind = type(layer).__name__
                raise TypeError(f"{kind} has parameters but no reset_parameters(), and the network no init_weights()")
        if custom is not None:
            custom()


def channels_last(module: nn.Module) -> nn.Module:
    """Lay the module's four-dimensional weights out as NHWC, the kernels' layout, in place; return the module."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def map_layers(module: nn.Module, replace: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Put `replace(layer)` in the place of every module of the tree, children first; return the new root."""
    done: dict[int, nn.Module] = {}

    def visit(layer: nn.Module) -> nn.Module:
        if id(layer) not in done:
            for name, child in list(layer._modules.items()):  # named_children() leaves out a second name of a layer
                if child is not None:
                    setattr(layer, name, visit(child))
            done[id(layer)] = replace(layer)
        return done[id(layer)]

    return visit(module)


class Fusible(nn.Module):
    """A block that has one kernel for all of its layers, and uses it while `fused`."""

    fused = True


def is_observed(module: nn.Module) -> bool:
    """Whether something waits for the module's own call: a hook, or a `forward` put in the place of its class's."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def norm_options(block: nn.Module) -> dict[str, Any] | None:
    """Return what a block's batch normalisations have in common, or None where one kernel cannot run them all.

    It cannot where they differ, where a layer's own hooks would not see its call, or where a layer was put in that the
    kernel does not know: a convolution with a bias, another activation.
    """
    common = None
    pending = [block]
    while pending:  # `modules()` would take longer than the kernels of a small block
        for layer in pending.pop()._modules.values():
            if layer is None:
                continue
            if is_observed(layer):
                return None
            if layer._modules:
                pending.append(layer)
            if layer._parameters.get("bias") is not None and not isinstance(layer, nn.BatchNorm2d):
                return None
            if isinstance(layer, nn.ReLU) and type(layer) is not nn.ReLU:
                return None
            if isinstance(layer, nn.BatchNorm2d):
                own = (layer.training or layer._buffers.get("running_mean") is None, layer.momentum, layer.eps)
                if common is None:
                    common = own
                elif common != own:
                    return None
    if common is None:
        return None
    return {"training": common[0], "momentum": common[1], "eps": common[2]}


def fuse(module: nn.Module) -> nn.Module:
    """Swap in the kernels, in place where possible, and return the module; keys and weights stay, outputs up to
    rounding.

    A ShuffleNet block then runs as one `spos_kernels.choice_block`. Replaced is every depthwise `nn.Conv2d` with a
    square kernel of 3, 5 or 7, stride 1 or 2, zero padding, no dilation and no bias, by `spos_kernels.DepthwiseConv2d`.
    """

    def replace(layer: nn.Module) -> nn.Module:
        if isinstance(layer, Fusible):
            layer.fused = True
        return _fused(layer) if _is_covered(layer) else layer

    return map_layers(module, replace)


def unfuse(module: nn.Module) -> nn.Module:
    """Undo `fuse`: put plain torch layers back, which exporters know; weights stay shared with the argument's."""

    def replace(layer: nn.Module) -> nn.Module:
        if isinstance(layer, Fusible):
            layer.fused = False
        return layer.plain() if isinstance(layer, DepthwiseConv2d) else layer

    return map_layers(module, replace)


def _is_covered(layer: nn.Module) -> bool:
    return (
        type(layer) is nn.Conv2d
        and layer.in_channels == layer.out_channels == layer.groups
        and layer.kernel_size in ((3, 3), (5, 5), (7, 7))
        and layer.stride in ((1, 1), (2, 2))
        and not isinstance(layer.padding, str)
        and layer.padding[0] == layer.padding[1] < layer.kernel_size[0]
        and layer.dilation == (1, 1)
        and layer.padding_mode == "zeros"
        and layer.bias is None
        and "weight" in layer._parameters  # not one that weight_norm or pruning computes
        and not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)
    )


def _fused(layer: nn.Module) -> DepthwiseConv2d:
    assert isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str)
    with torch.device("meta"):
        new = DepthwiseConv2d(layer.in_channels, layer.kernel_size[0], layer.stride[0], layer.padding[0])
    new.weight = layer.weight
    return new.train(layer.training)
