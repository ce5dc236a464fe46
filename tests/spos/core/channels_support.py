"""Networks with choices of channel numbers: a user's own, and the small space of the library."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

import spos


def own_module() -> nn.Module:
    """Widths shared by the operators of a block, alone in a block of their own, and met in pairs along a chain.

    18 architectures' worth of operators and widths in the block, 3 × 2 in the chain.
    """
    torch.manual_seed(0)
    inner = spos.WidthChoice([2, 3, 6], labels=["narrow", "middle", "wide"], decision="inner")
    first, second = spos.WidthChoice([2, 4, 8]), spos.WidthChoice([4, 6])

    def pointwise(inputs, outputs):
        return [spos.SlicedConv2d(inputs, outputs, 1), spos.SlicedBatchNorm2d(outputs), nn.ReLU()]

    def depthwise(width):
        conv = spos.SlicedConv2d(width, width, 3, padding=1, groups=width, bias=False)
        return [conv, spos.SlicedBatchNorm2d(width, affine=False)]

    operators = {
        "dw": nn.Sequential(*pointwise(4, inner), *depthwise(inner), *pointwise(inner, 4)),
        "conv": nn.Sequential(*pointwise(4, inner), spos.SlicedConv2d(inner, 4, 3, padding=1)),
        "skip": nn.Identity(),
    }
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)),
            block=spos.ChoiceBlock(operators),
            chain=nn.Sequential(
                *pointwise(4, first),
                spos.SlicedConv2d(first, second, 3, stride=2, padding=1, groups=2, bias=False),
                spos.SlicedBatchNorm2d(second),
            ),
            head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), spos.SlicedLinear(second, 3)),
        )
    )


def own_net() -> spos.Supernet:
    return randomized(spos.Supernet(own_module(), input_shape=(1, 8, 8)))


def small_net(**options) -> spos.Supernet:
    return randomized(
        spos.spaces.get("shufflenet-oneshot-channels-small", num_classes=3, image_size=8, in_channels=1, **options)
    )


def randomized(net: spos.Supernet) -> spos.Supernet:
    """Kaiming weights and random statistics, scales and shifts, by which a wrong slice shows."""
    torch.manual_seed(1)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2)
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.5, 2)
                nn.init.normal_(layer.bias)
    return net


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def used(net: spos.Supernet, arch) -> dict[str, torch.Tensor]:
    """Masks, by the state dict's keys, of what a path uses: what has the shapes of the extracted child."""
    names = {id(value): name for name, value in net.module.named_parameters()}
    names |= {id(value): name for name, value in net.module.named_buffers()}
    child = net.extract(arch, affine=False)
    on_path = [*net.path_parameters(arch)]
    on_path += [b for m in net.path_modules(arch) for b in m.buffers(recurse=False)]
    masks = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in net.state_dict().items()}
    for value, part in zip(on_path, [*child.parameters(), *child.buffers()], strict=True):
        masks[names[id(value)]][tuple(map(slice, part.shape))] = True
    return masks
