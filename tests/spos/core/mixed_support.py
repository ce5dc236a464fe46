"""A small network with choices of bits and channel numbers, and what of it a path uses."""

from __future__ import annotations

import torch

import spos

from .channels_support import randomized
from .channels_support import used as used_slices


def small_net(**options) -> spos.Supernet:
    net = spos.spaces.get("resnet-mixed-small", num_classes=3, image_size=8, in_channels=1, **options)
    net = randomized(net)
    torch.manual_seed(3)
    for layer in quantized_layers(net):
        torch.nn.init.uniform_(layer.clip, 0.5, 3)
    return net


def quantized_layers(net: spos.Supernet) -> list[spos.SlicedQuantizedConv2d]:
    return [layer for layer in net.modules() if isinstance(layer, spos.SlicedQuantizedConv2d)]


def any_archs(net: spos.Supernet, count: int) -> list[spos.Arch]:
    """Architectures of options that are offered and of others, alternating."""
    rng = spos.generator(0, "any")
    every = [len(d.options) for d in net.space.decisions]
    return [net.space.arch(rng.integers(0, every)) if i % 2 else net.space.sample(rng) for i in range(count)]


def used(net: spos.Supernet, arch) -> dict[str, torch.Tensor]:
    """Masks, by the state dict's keys, of what a path uses; of a layer's clips it is one, not always the first."""
    masks = used_slices(net, arch)
    for name, layer in net.module.named_modules():
        if isinstance(layer, spos.SlicedQuantizedConv2d):
            mask = masks[f"{name}.clip"].zero_()
            mask[layer.bits.bits(arch).a_bits - 1 if len(mask) > 1 else 0] = True
    return masks
