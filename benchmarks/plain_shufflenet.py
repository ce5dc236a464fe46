"""The ShuffleNet space without any of our kernels, as a user of the released code has it: the networks to beat."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import spos
from spos.modules import map_layers, unfuse
from spos.spaces.shufflenet import ShuffleBlock


class PlainBlock(nn.Module):
    """A block of torch's own layers, taken over from a `ShuffleBlock`; `nhwc` says how the channels are shuffled.

    In NCHW as released. In NHWC, where its reshape would copy back to NCHW, by unbinding the channel pairs, the fastest
    way that was found.
    """

    def __init__(self, block: ShuffleBlock, nhwc: bool) -> None:
        super().__init__()
        self.branch_main, self.stride, self.nhwc = block.branch_main, block.stride, nhwc
        if block.stride == 2:
            self.branch_proj = block.branch_proj

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            return torch.cat([self.branch_proj(x), self.branch_main(x)], 1)
        if self.nhwc:
            pairs = x.permute(0, 2, 3, 1).unflatten(-1, (-1, 2)).unbind(-1)
            passed, rest = (half.permute(0, 3, 1, 2) for half in pairs)
        else:
            batch, channels, height, width = x.shape
            shuffled = x.reshape(batch * channels // 2, 2, height * width).permute(1, 0, 2)
            passed, rest = shuffled.reshape(2, -1, channels // 2, height, width)
        return torch.cat([passed, self.branch_main(rest)], 1)


def memory_format(nhwc: bool) -> torch.memory_format:
    return torch.channels_last if nhwc else torch.contiguous_format


def plain(module: nn.Module, nhwc: bool) -> nn.Module:
    """Return a copy of a network or a block of the space on torch's own layers, its weights in NHWC or NCHW."""
    module = map_layers(
        unfuse(copy.deepcopy(module)),
        lambda layer: PlainBlock(layer, nhwc) if isinstance(layer, ShuffleBlock) else layer,
    )
    return module.to(memory_format=memory_format(nhwc))  # type: ignore[call-overload]


def plain_child(net: spos.Supernet, arch: spos.Arch) -> nn.Module:
    """Return one path of a supernet as a plain NHWC network of its own, without its choices: torch.compile takes it."""
    return plain(net.extract(arch, affine=False), nhwc=True)
