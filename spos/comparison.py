"""A packed network against the child that it was made of: the codes between its layers, its layers, its speed."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spos.deployment import affine, convert, weight_codes
from spos.modules import channels_last, map_layers, unfuse
from spos.quantized import QuantizedConv2d, positive_clip
from spos.spaces.resnet_mixed import MixedBlock, MixedResNet
from spos_kernels import PackedNetwork, fake_quantize, use_backend

_BATCH = 64


@dataclass(frozen=True)
class Comparison:
    """Of a packed network with its child in float64, over `images` images.

    codes: how many the quantized layers' inputs had. differing: those that are not the child's, end to end.
    rounded: those that are not where every layer is given the child's codes, so that a difference is of one rounding
    alone and not of all that depends on it.
    agreement: the fraction of images of the same top-1 class, end to end.
    """

    images: int
    codes: int
    differing: int
    rounded: int
    agreement: float

    @property
    def rate(self) -> float:
        """The fraction of codes that differ end to end."""
        return self.differing / self.codes


@dataclass(frozen=True)
class LayerComparison:
    """Of a packed layer with what it stands for, given the same `codes` codes.

    exact: the result is `lowbit_conv2d_reference`'s, to the bit.
    error: the largest difference to the child's layer and batch normalisation in float64, where 1 is what rounding in
    the layer's dtype can make: eight roundings of the sum and of the bias, sixteen in float64, for then the child's own
    count.
    """

    layer: str
    codes: int
    exact: bool
    error: float


def compare_deployed(child: nn.Module, deployed: PackedNetwork, images: Tensor | Iterable[Tensor]) -> Comparison:
    """Run a packed network and, in float64, the child it was made of, and compare codes and classes.

    images: float32 [N, C, H, W], or batches of them. The child runs in eval mode: its weights are the codes that its
    float32 weights round to, everything else is computed in float64. A code differs where an activation lies within
    rounding of a boundary between two, and then, end to end, so do some of those that depend on it: few bits forget no
    difference, and one may spread over the rest of its image. So there is none to be expected where all is float64, and
    up to some in 10,000 at 4 bits where layers have float32 in and out.

    Raises ValueError where there is no image, or `deployed` was made of another network.
    """
    exact = _in_float64(child)
    count = codes = differing = rounded = same = 0
    for batch in _batches(images):
        with torch.no_grad():
            expected = exact.run(batch)
        logits, found = deployed.codes(batch)
        _check_same(exact.codes, found)
        _, alone = deployed.codes(batch, given=exact.codes)
        codes += sum(part.numel() for maps in found.values() for part in maps)
        differing += _count_differing(exact.codes, found)
        rounded += _count_differing(exact.codes, alone)
        same += int((logits.argmax(1) == expected.argmax(1)).sum())
        count += len(batch)
    if not count:
        raise ValueError("images is empty: expected at least one image")
    return Comparison(count, codes, differing, rounded, same / count)


def compare_layers(child: nn.Module, deployed: PackedNetwork, images: Tensor) -> list[LayerComparison]:
    """Give each packed layer the codes that it meets in the network, and compare what it makes of them.

    images: float32 [N, C, H, W]. ValueError where `deployed` was made of another network.
    """
    norms, layers = convert(child).norms, deployed.packed_layers()
    if norms.keys() != layers.keys():
        names = ", ".join(sorted(norms.keys() ^ layers.keys())[:4])
        raise ValueError(f"deployed has other quantized layers than child: {names}")
    result = []
    for name, maps in deployed.codes(images)[1].items():
        conv, layer = child.get_submodule(name), layers[name]
        assert isinstance(conv, QuantizedConv2d)
        found = torch.cat([_plain(layer(codes)).flatten() for codes in maps])
        with use_backend("reference"):
            reference = torch.cat([_plain(layer(codes)).flatten() for codes in maps])
        factor, shift = affine(norms[name], conv.out_channels)
        exact = _ExactConv2d(conv, [])
        bias = (shift if exact.bias is None else shift + exact.bias * factor)[:, None, None]
        sums = [exact.products(codes) * factor[:, None, None] for codes in maps]
        roundings = 8 * 2.0**-24 if layers[name].dtype == torch.float32 else 16 * 2.0**-53
        bound = torch.cat([roundings * (s.abs() + bias.abs()).flatten() for s in sums])
        difference = (found.double() - torch.cat([(s + bias).flatten() for s in sums])).abs()
        error = float((difference / bound.clamp(min=1e-300)).max()) if bound.numel() else 0.0
        result.append(LayerComparison(name, sum(c.numel() for c in maps), torch.equal(found, reference), error))
    return result


def float_counterpart(child: nn.Module) -> nn.Module:
    """Return a child as plain float32 layers, channels last, for comparisons of speed: no input is quantized.

    Batch normalisations right behind a convolution are folded into it, as a float network would be deployed.
    """

    def replace(layer: nn.Module) -> nn.Module:
        if not isinstance(layer, QuantizedConv2d):
            return layer
        plain = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size[0], groups=layer.groups)
        plain.stride, plain.padding = layer.stride, layer.padding
        plain.weight = nn.Parameter(fake_quantize(layer.weight.detach(), layer.w_bits, "dorefa"))
        plain.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
        return plain

    network = map_layers(unfuse(copy.deepcopy(child)), replace).cpu().eval().requires_grad_(False)
    for module in list(network.modules()):
        if type(module) not in (nn.Sequential, MixedBlock, MixedResNet):
            continue  # elsewhere the order of layers is not that of their calls
        for (name, conv), (after, norm) in pairwise(list(module.named_children())):
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.running_mean is not None:
                setattr(module, name, nn.utils.fusion.fuse_conv_bn_eval(conv, norm))
                setattr(module, after, nn.Identity())
    return channels_last(network)


def median_times(networks: Mapping[str, nn.Module], images: Tensor, *, runs: int = 20) -> dict[str, float]:
    """Return each network's median time for `images`, in seconds, over `runs` rounds in which all take turns."""
    times: dict[str, list[float]] = {name: [] for name in networks}
    with torch.no_grad():
        for number in range(runs + 2):
            for name, network in networks.items():
                start = time.perf_counter()
                network(images)
                if number >= 2:  # the first ones choose methods and fill caches
                    times[name].append(time.perf_counter() - start)
    return {name: median(seconds) for name, seconds in times.items()}


class _ExactConv2d(nn.Module):
    """What a quantized layer computes, in float64; the codes of its inputs go into `codes`."""

    def __init__(self, layer: QuantizedConv2d, codes: list[Tensor]) -> None:
        super().__init__()
        self.codes, self.layer = codes, layer
        self.most, steps = 2**layer.a_bits - 1, 2**layer.w_bits - 1
        self.step = positive_clip(layer.clip.detach()).double() / self.most
        self.whole = 2 * weight_codes(layer).double() - steps
        self.scale = self.step / steps
        self.bias = None if layer.bias is None else layer.bias.detach().double()

    def products(self, codes: Tensor) -> Tensor:
        """Return the convolution of codes, without the bias: whole numbers, which float64 adds exactly, then scaled."""
        layer = self.layer
        return F.conv2d(codes.double(), self.whole, None, layer.stride, layer.padding, groups=layer.groups) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        codes = (x / self.step).round().clamp(0, self.most).to(torch.uint8)
        self.codes.append(codes)
        y = self.products(codes)
        return y if self.bias is None else y + self.bias[:, None, None]


class _Exact:
    """A child in float64, and the codes of its last run."""

    def __init__(self, network: nn.Module, codes: dict[str, list[Tensor]]) -> None:
        self.network, self._codes = network, codes

    def run(self, images: Tensor) -> Tensor:
        for maps in self._codes.values():
            maps.clear()
        result: Tensor = self.network(images.double())
        return result

    @property
    def codes(self) -> dict[str, list[Tensor]]:
        return {name: maps for name, maps in self._codes.items() if maps}


def _in_float64(child: nn.Module) -> _Exact:
    own = unfuse(copy.deepcopy(child)).cpu().eval()
    names = {id(layer): name for name, layer in own.named_modules()}
    codes: dict[str, list[Tensor]] = {}

    def replace(layer: nn.Module) -> nn.Module:
        if not isinstance(layer, QuantizedConv2d):
            return layer
        return _ExactConv2d(layer, codes.setdefault(names[id(layer)], []))

    return _Exact(map_layers(own, replace).double(), codes)


def _check_same(expected: Mapping[str, Sequence[Tensor]], found: Mapping[str, Sequence[Tensor]]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        shapes = [[list(codes.shape) for codes in maps.get(name, ())] for maps in (found, expected)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"deployed has inputs {shapes[0]} of {name!r}: expected those of child, {shapes[1]}")


def _count_differing(a: Mapping[str, Sequence[Tensor]], b: Mapping[str, Sequence[Tensor]]) -> int:
    return sum(int((x != y).sum()) for name in a for x, y in zip(a[name], b[name], strict=True))


def _plain(result: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    assert isinstance(result, Tensor)
    return result


def _batches(images: Tensor | Iterable[Tensor]) -> Iterable[Tensor]:
    return images.split(_BATCH) if isinstance(images, Tensor) else images
