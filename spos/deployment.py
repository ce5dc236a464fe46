"""From a retrained child of few bits to a network of packed integers.

A quantized layer computes conv(step · a, (2c − n) / n), a and c the codes of its input and of its weight, and the batch
normalisation behind it multiplies each output by a factor and adds a shift. The packed layer has the same codes; its
scale is 2 / n times the factor, its zero point n / 2, its bias the shift. The child's weights are quantized by the
kernel that quantized them in training.

In a chain of residual blocks all of that is float64, and so is the stem in front of them and the map that each block
adds its result to: codes are those of the child in float64, but for activations within 10⁻¹⁵ or so of a boundary. A
layer by itself takes and gives float32; its scale and bias are computed in float64 and rounded once.

What is in full precision stays so, the batch normalisation of a float convolution in its weight and bias.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from spos.modules import channels_last, is_observed, unfuse
from spos.quantized import QuantizedConv2d, SlicedQuantizedConv2d, positive_clip
from spos.spaces.resnet_mixed import MixedBlock, MixedResNet
from spos.supernet import Supernet
from spos_kernels import (
    PackedBlock,
    PackedBlocks,
    PackedConv2d,
    PackedNetwork,
    Quantizer,
    StemConv2d,
    pack_weight,
    quantize,
)

Placed = TypeVar("Placed", bound=nn.Module)
# Layers that do nothing in eval mode.
_IDLE = (nn.Identity, nn.Dropout, nn.Dropout2d)


class Deployed(NamedTuple):
    """A packed network, and what became of the child's modules, by their names.

    norms: of each packed layer the batch normalisation that went into it, if one did. places: what has taken a module's
    place. gone: layers that went into the one before them, and those that do nothing.
    """

    network: PackedNetwork
    norms: dict[str, nn.BatchNorm2d | None]
    places: dict[str, nn.Module]
    gone: set[str]


def deploy(child: nn.Module) -> PackedNetwork:
    """Turn a child with `QuantizedConv2d` layers, as it is in eval mode, into a network of packed integer layers.

    The residual networks of the mixed-precision spaces run on codes from one quantized convolution to the next, with
    nothing but the residual in floating point, float64 from the first convolution on, so that codes are those of the
    child in float64. In any other module each quantized layer becomes a packed one with float32 in and out. In an
    `nn.Sequential`, which is taken to be called as a whole, a batch normalisation right behind a convolution goes into
    it; elsewhere it stays.

    Returns a network for inference on the CPU, float32 in and out, that shares no memory with the child. Its `save`
    writes one file, for `spos_kernels.load_packed`, if all of its modules are of the library's spaces or plain torch
    layers in an `nn.Sequential`.

    Raises TypeError or ValueError: no quantized layer, bits that are still a choice, another dtype than float32, values
    that are not finite, a batch normalisation without running statistics behind a quantized layer of a residual block.
    """
    return convert(child).network


def convert(child: nn.Module, keep: Collection[str] = ()) -> Deployed:
    """`deploy`, and what it made of what. An `nn.Sequential` in `keep`, by name, is not merged with one around it."""
    if not isinstance(child, nn.Module):
        raise TypeError(f"child is a {type(child).__name__}: expected a torch.nn.Module")
    if isinstance(child, Supernet) or any(isinstance(layer, SlicedQuantizedConv2d) for layer in child.modules()):
        raise ValueError("child has bits that are still a choice: expected a child, such as net.extract(arch) returns")
    if not any(isinstance(layer, QuantizedConv2d) for layer in child.modules()):
        raise ValueError("child has no spos.QuantizedConv2d: expected at least one, there is nothing to pack")
    for name, value in child.state_dict().items():
        if isinstance(value, Tensor) and value.is_floating_point():
            if value.dtype != torch.float32:
                raise TypeError(f"child: {name} has dtype {value.dtype}: expected torch.float32")
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"child: {name} has a value that is not finite")
    own = unfuse(copy.deepcopy(child)).cpu().eval().requires_grad_(False)
    conversion = _Conversion(own, keep)
    network = PackedNetwork(channels_last(conversion.module(own)))
    return Deployed(network, conversion.norms, conversion.places, conversion.gone)


class _Conversion:
    """The conversion of one child, in place. A module that is used twice is converted once."""

    def __init__(self, child: nn.Module, keep: Collection[str]) -> None:
        self._keep = frozenset(keep)
        self.norms: dict[str, nn.BatchNorm2d | None] = {}
        self.places: dict[str, nn.Module] = {}
        self.gone: set[str] = set()
        self._names = {id(layer): name for name, layer in child.named_modules()}
        self._done: dict[int, nn.Module] = {}

    def module(self, module: nn.Module) -> nn.Module:
        """Return what takes the place of a module."""
        if id(module) not in self._done:
            self._done[id(module)] = self._placed(module, self._convert(module))
        return self._done[id(module)]

    def _placed(self, module: nn.Module, new: Placed) -> Placed:
        if id(module) in self._names:  # not one that a network made for `stages`
            self.places[self._names[id(module)]] = new
        return new

    def _norm(self, norm: nn.Module) -> nn.Module:
        self.gone.add(self._names[id(norm)])
        return norm

    def _convert(self, module: nn.Module) -> nn.Module:
        if isinstance(module, QuantizedConv2d):
            return self._packed(module, None, torch.float32)
        if is_observed(module):
            pass  # a hook waits for the module's own call
        elif type(module) is MixedResNet:
            return nn.Sequential(*self._chain(module.stages()))
        elif type(module) is nn.Sequential:
            return nn.Sequential(*self._chain(module))
        elif _is_plain_block(module):
            return PackedBlocks([self._block(module)])
        for name, layer in list(module._modules.items()):  # named_children() leaves out a second name of a layer
            if layer is not None:
                setattr(module, name, self.module(layer))
        return module

    def _chain(self, modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
        """Yield what takes the place of modules that are called one after another."""
        layers = list(self._flat(modules))
        while layers:
            if stem := self._stem(layers):
                yield stem
                continue
            layer = layers.pop(0)
            after = layers[0] if layers else None
            if _is_plain_block(layer):
                blocks = [self._block(layer)]
                while layers and _is_plain_block(layers[0]):
                    blocks.append(self._block(layers.pop(0)))
                yield PackedBlocks(blocks)
            elif isinstance(layer, QuantizedConv2d) and _is_norm_of(layer, after):
                yield self._placed(layer, self._packed(layer, self._norm(layers.pop(0)), torch.float32))
            elif type(layer) is nn.Conv2d and not is_observed(layer) and _is_norm_of(layer, after):
                yield self._placed(layer, _folded(layer, self._norm(layers.pop(0))))
            elif type(layer) not in _IDLE or is_observed(layer):
                yield self.module(layer)
            else:
                self._drop(layer)

    def _drop(self, layer: nn.Module) -> None:
        self.gone |= {self._names[id(layer)]} if id(layer) in self._names else set()

    def _stem(self, layers: list[nn.Module]) -> StemConv2d | None:
        """Take a convolution off the front of a chain, with all that lies between it and a residual block behind it.

        None, and nothing taken, where there is no such block or something else in between.
        """
        conv = layers[0]
        if not _is_stem(conv):
            return None
        rest = iter(layer for layer in layers[1:] if type(layer) not in _IDLE or is_observed(layer))
        after = next(rest, None)
        norm = after if _is_norm_of(conv, after) else None
        after = next(rest, None) if norm else after
        relu = type(after) is nn.ReLU and not is_observed(after)
        after = next(rest, None) if relu else after
        pool = _is_stem_pool(after)
        after = next(rest, None) if pool else after
        if after is None or not _is_plain_block(after):
            return None
        assert isinstance(conv, nn.Conv2d) and (norm is None or isinstance(norm, nn.BatchNorm2d))
        for layer in layers[1 : layers.index(after)]:
            self._drop(layer)
        del layers[: layers.index(after)]
        factor, shift = affine(norm, conv.out_channels)
        bias = shift if conv.bias is None else shift + conv.bias.double() * factor
        new = StemConv2d(conv.weight, factor, bias, stride=conv.stride[0], padding=int(conv.padding[0]), relu=relu,
                         max_pool=pool)  # fmt: skip
        return self._placed(conv, new)

    def _flat(self, modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
        for module in modules:
            kept = is_observed(module) or self._names.get(id(module)) in self._keep
            if type(module) is nn.Sequential and not kept:
                yield from self._flat(module)
            else:
                yield module

    def _block(self, block: nn.Module) -> PackedBlock:
        assert isinstance(block, MixedBlock)
        pairs: list[Iterable[nn.Module]] = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
        pairs += [] if block.downsample is None else [block.downsample]
        packed = [self._packed(layer, norm, torch.float64) for layer, norm in pairs]
        return self._placed(block, PackedBlock(*packed))

    def _packed(self, layer: nn.Module, norm: nn.Module | None, dtype: torch.dtype) -> PackedConv2d:
        name = self._names[id(layer)]
        if not isinstance(layer, QuantizedConv2d) or type(layer).forward is not QuantizedConv2d.forward:
            raise ValueError(f"child: {name} is a {type(layer).__name__}: expected a forward like QuantizedConv2d's")
        self.norms[name] = norm if isinstance(norm, nn.BatchNorm2d) else None
        steps = 2**layer.w_bits - 1
        factor, shift = affine(self.norms[name], layer.out_channels)
        bias = shift if layer.bias is None else shift + layer.bias.double() * factor
        codes = weight_codes(layer)
        (stride, _), padding = layer.stride, layer.padding[0]
        return PackedConv2d(
            pack_weight(codes, layer.w_bits, scale=(factor * 2 / steps).to(dtype), zero_point=steps / 2),
            x_quantizer=Quantizer(step_of(layer, dtype), layer.a_bits),
            bias=bias.to(dtype),
            stride=stride,
            padding=int(padding),
            groups=layer.groups,
            layer=name,
        )


def weight_codes(layer: QuantizedConv2d) -> Tensor:
    """Return DoReFa's codes of a layer's weight, uint8 in its shape."""
    return quantize(layer.weight.detach(), layer.w_bits, "dorefa")


def step_of(layer: QuantizedConv2d, dtype: torch.dtype) -> float:
    """Return the step between the levels of a layer's input, divided in `dtype`: in float32 as PACT's kernel does."""
    return float(positive_clip(layer.clip.detach()).to(dtype) / (2**layer.a_bits - 1))


def affine(norm: nn.BatchNorm2d | None, channels: int) -> tuple[Tensor, Tensor]:
    """Return what a batch normalisation multiplies by and adds in eval mode, float64 [channels]; 1 and 0 for none."""
    if norm is None:
        return torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    assert norm.running_mean is not None and norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    factor = factor if norm.weight is None else factor * norm.weight.detach().double()
    shift = -norm.running_mean.double() * factor
    return factor, shift if norm.bias is None else shift + norm.bias.detach().double()


def _folded(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """Return a float convolution with the batch normalisation behind it in its weight and bias."""
    assert isinstance(norm, nn.BatchNorm2d)
    factor, shift = affine(norm, conv.out_channels)
    new = copy.deepcopy(conv)
    new.weight = nn.Parameter((conv.weight.double() * factor[:, None, None, None]).float(), requires_grad=False)
    bias = shift if conv.bias is None else shift + conv.bias.double() * factor
    new.bias = nn.Parameter(bias.float(), requires_grad=False)
    return new


def _is_norm_of(conv: nn.Module, norm: nn.Module | None) -> bool:
    return (
        type(norm) is nn.BatchNorm2d
        and norm.running_mean is not None
        and norm.num_features == conv.out_channels
        and not is_observed(norm)
    )


def _is_stem(conv: nn.Module) -> bool:
    """Whether `StemConv2d` can take the place of a convolution."""
    return (
        type(conv) is nn.Conv2d
        and not is_observed(conv)
        and conv.groups == 1
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and conv.stride[0] == conv.stride[1]
        and not isinstance(conv.padding, str)
        and conv.padding[0] == conv.padding[1]
    )


def _is_stem_pool(pool: nn.Module | None) -> bool:
    options = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    return (
        type(pool) is nn.MaxPool2d
        and not is_observed(pool)
        and [getattr(pool, name) for name in options] == [3, 2, 1, 1, False, False]
    )


def _is_plain_block(block: nn.Module) -> bool:
    """Whether a residual block is as it was built: no hook waits for one of its parts, none was put in by hand."""
    if type(block) is not MixedBlock or any(is_observed(part) for part in block.modules()):
        return False
    pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
    if block.downsample is not None:
        if type(block.downsample) is not nn.Sequential or len(block.downsample) != 2:
            return False
        pairs.append((block.downsample[0], block.downsample[1]))  # type: ignore[arg-type]
    plain = all(isinstance(conv, QuantizedConv2d) and _is_norm_of(conv, norm) for conv, norm in pairs)
    return plain and type(block.relu) is nn.ReLU
