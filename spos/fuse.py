"""Putting the library's kernels into a network of plain torch layers."""

from __future__ import annotations

import torch
from torch import nn

from spos.supernet import map_layers
from spos_kernels import DepthwiseConv2d


def fuse(module: nn.Module) -> nn.Module:
    """Swap in the kernels, in place where possible, and return the module; keys and weights stay, outputs up to
    rounding.

    Replaced is every depthwise `nn.Conv2d` with a square kernel of 3, 5 or 7, stride 1 or 2, zero padding, no dilation
    and no bias, by `spos_kernels.DepthwiseConv2d`.
    """
    return map_layers(module, lambda layer: _fused(layer) if _is_covered(layer) else layer)


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
    )


def _fused(layer: nn.Module) -> DepthwiseConv2d:
    assert isinstance(layer, nn.Conv2d) and not isinstance(layer.padding, str)
    with torch.device("meta"):
        new = DepthwiseConv2d(layer.in_channels, layer.kernel_size[0], layer.stride[0], layer.padding[0])
    new.weight = layer.weight
    return new.train(layer.training)
