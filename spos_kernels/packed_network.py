"""Networks of packed integer layers: what runs a deployed network, and the one file that it is kept in.

A network is a tree of modules. A file describes it in JSON, layer by layer, and holds its tensors: of a packed layer
the dense stream of its codes, a scale and a bias for each output; of a stem the same with a float32 weight; of another
float layer what torch's state dict has. Sums of codes are computed at loading, so that the file is as small as the bits
promise.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spos_kernels import packed_file
from spos_kernels.lowbit_products import Quantizer
from spos_kernels.packed_file import PackedFileError
from spos_kernels.packed_layers import PackedBlock, PackedBlocks, PackedConv2d
from spos_kernels.packing import check_bits, pack_weight, unpack
from spos_kernels.stem_conv2d import StemConv2d

__all__ = ["PackedNetwork", "load_packed"]

# The float layers that a file can describe: by name, the class and the arguments that are attributes of its objects.
_FLOAT: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "conv2d": (
        nn.Conv2d,
        ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    ),
    "linear": (nn.Linear, ("in_features", "out_features")),
    "batch_norm2d": (nn.BatchNorm2d, ("num_features", "eps", "affine", "track_running_stats")),
    "relu": (nn.ReLU, ("inplace",)),
    "relu6": (nn.ReLU6, ("inplace",)),
    "hardswish": (nn.Hardswish, ("inplace",)),
    "max_pool2d": (nn.MaxPool2d, ("kernel_size", "stride", "padding", "dilation", "ceil_mode")),
    "avg_pool2d": (
        nn.AvgPool2d,
        ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override"),
    ),
    "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d, ("output_size",)),
    "flatten": (nn.Flatten, ("start_dim", "end_dim")),
    "identity": (nn.Identity, ()),
}
_NAMES = {kind: name for name, (kind, _) in _FLOAT.items()}
_WITH_BIAS = (nn.Conv2d, nn.Linear)
_STEM = ("stride", "padding", "relu", "max_pool")
Described = dict[str, Any]


class PackedNetwork(nn.Module):
    """A deployed network: float32 images [N, C, H, W] in, what `network` makes of them out. Inference only.

    It stays in eval mode, needs no gradients and runs on the CPU. `spos.deploy` makes one of a trained network,
    `load_packed` of a file.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network is a {type(network).__name__}: expected a torch.nn.Module")
        self.network = network.requires_grad_(False)
        self.train(False)

    def forward(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor) or images.dtype != torch.float32:
            kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
            raise TypeError(f"images is {kind}: expected a torch.float32 tensor")
        with torch.no_grad():
            result: Tensor = self.network(images)
        return result

    def train(self, mode: bool = True) -> PackedNetwork:
        """Stay in eval mode: there is nothing to train."""
        super().train(False)
        return self

    def packed_layers(self) -> dict[str, PackedConv2d]:
        """Return the packed layers by the name of the layer that each was made of."""
        return {layer.layer: layer for layer in self.modules() if isinstance(layer, PackedConv2d)}

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weights: bits of each weight times their number, each output filled up to a byte."""
        return sum(layer.weight.packed.numel() for layer in self.modules() if isinstance(layer, PackedConv2d))

    def codes(
        self, images: Tensor, *, given: Mapping[str, Sequence[Tensor]] | None = None
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Return the result for `images`, and by layer name the uint8 codes of its input at each of its calls.

        given: codes in the same form, which each layer convolves in the place of those that it is found to be given.
        """
        found: dict[str, list[Tensor]] = {}

        def note(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            assert isinstance(layer, PackedConv2d)
            maps = found.setdefault(layer.layer, [])
            maps.append(layer.quantize(inputs[0]))
            return (maps[-1] if given is None else given[layer.layer][len(maps) - 1],)

        layers = [layer for layer in self.modules() if isinstance(layer, PackedConv2d)]
        handles = [layer.register_forward_pre_hook(note) for layer in layers]
        try:
            return self(images), found
        finally:
            for handle in handles:
                handle.remove()

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the network to one file, atomically, and return its size in bytes.

        ValueError, naming the layer, for one that a file cannot describe: a class of the user's own. OSError leaves an
        earlier file of that name as it was.
        """
        tensors: dict[str, Tensor] = {}
        description = _describe(self.network, "network", tensors)
        return packed_file.write(Path(path), tensors, description)


def load_packed(path: str | os.PathLike[str]) -> PackedNetwork:
    """Read a network that `PackedNetwork.save` wrote; needs nothing of what trained it.

    FileNotFoundError if there is none; PackedFileError, a ValueError that names the file, if it is truncated, edited,
    of another version, or does not fit together.
    """
    tensors, description = packed_file.read(Path(path))
    try:
        network = PackedNetwork(_build(description, "network", tensors))
        if tensors:
            raise ValueError(f"{min(tensors)} belongs to no layer")
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise PackedFileError(f"packed network {Path(path)} does not fit together: {reason[:400]}") from None
    return network


def _describe(module: nn.Module, name: str, tensors: dict[str, Tensor]) -> Described:
    """Describe a module, and put its tensors among `tensors` under names that begin with its own."""
    if isinstance(module, PackedConv2d):
        return _describe_packed(module, name, tensors)
    if isinstance(module, StemConv2d):
        tensors |= {f"{name}.{key}": value.contiguous() for key, value in module.state_dict().items()}
        return {"kind": "stem_conv2d", **{option: getattr(module, option) for option in _STEM}}
    if type(module) is nn.Sequential:
        layers = [_describe(layer, f"{name}.{i}", tensors) for i, layer in enumerate(module)]
        return {"kind": "sequential", "layers": layers}
    if isinstance(module, PackedBlocks):
        blocks = [
            {part: _describe(layer, f"{name}.{i}.{part}", tensors) for part, layer in block.named_children()}
            for i, block in enumerate(module.blocks)
        ]
        return {"kind": "packed_blocks", "blocks": blocks}
    kind = _NAMES.get(type(module))
    if kind is None:
        raise ValueError(
            f"{name} is a {type(module).__name__}, which a file cannot describe: expected packed layers, StemConv2d, "
            f"torch.nn.Sequential and {', '.join(cls.__name__ for cls, _ in _FLOAT.values())}"
        )
    for key, value in module.state_dict().items():
        tensors[f"{name}.{key}"] = value.contiguous()
    options = {option: getattr(module, option) for option in _FLOAT[kind][1]}
    return {"kind": kind, **options, **({"bias": module.bias is not None} if isinstance(module, _WITH_BIAS) else {})}


def _describe_packed(layer: PackedConv2d, name: str, tensors: dict[str, Tensor]) -> Described:
    assert layer.weight.scale is not None
    tensors[f"{name}.packed"] = layer.weight.packed
    tensors[f"{name}.scale"] = layer.weight.scale[0]
    if layer.bias is not None:
        tensors[f"{name}.bias"] = layer.bias.contiguous()
    return {
        "kind": "packed_conv2d",
        "layer": layer.layer,
        "shape": list(layer.weight.shape),
        "w_bits": layer.w_bits,
        "zero_point": layer.zero_point,
        "x_quantizer": layer.x_quantizer._asdict(),
        "stride": layer.stride,
        "padding": layer.padding,
        "groups": layer.groups,
        "bias": layer.bias is not None,
    }


def _build(described: Described, name: str, tensors: dict[str, Tensor]) -> nn.Module:
    """Undo `_describe`, taking what it uses out of `tensors`."""
    kind = described["kind"]
    if kind == "sequential":
        return nn.Sequential(*(_build(layer, f"{name}.{i}", tensors) for i, layer in enumerate(described["layers"])))
    if kind == "packed_blocks":
        return PackedBlocks(list(_build_blocks(described, name, tensors)))
    if kind == "packed_conv2d":
        return _build_packed(described, name, tensors)
    if kind == "stem_conv2d":
        parts = [tensors.pop(f"{name}.{key}") for key in ("weight", "scale", "bias")]
        return StemConv2d(*parts, **{option: described[option] for option in _STEM})
    if kind not in _FLOAT:
        raise ValueError(f"{name} is a {kind!r}: expected packed layers and {', '.join(_FLOAT)}")
    cls, names = _FLOAT[kind]
    options = {n: tuple(v) if isinstance(v := described[n], list) else v for n in names}
    if issubclass(cls, _WITH_BIAS):
        options["bias"] = described["bias"]
    with torch.device("meta"):
        layer = cls(**options)
    state = {key: tensors.pop(f"{name}.{key}") for key in layer.state_dict()}
    for key, expected in layer.state_dict().items():
        if state[key].dtype != expected.dtype:
            raise ValueError(f"{name}.{key} has dtype {state[key].dtype}: expected {expected.dtype}")
    layer.load_state_dict(state, assign=True)
    if isinstance(layer, nn.Conv2d):
        layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return layer


def _build_blocks(described: Described, name: str, tensors: dict[str, Tensor]) -> Iterator[PackedBlock]:
    for i, block in enumerate(described["blocks"]):
        parts = {part: _build_packed(layer, f"{name}.{i}.{part}", tensors) for part, layer in block.items()}
        yield PackedBlock(**parts)


def _build_packed(described: Described, name: str, tensors: dict[str, Tensor]) -> PackedConv2d:
    outputs, inputs, height, width = shape = described["shape"]
    if any(type(n) is not int or n < 1 for n in shape):
        raise ValueError(f"{name} has shape {shape}: expected four positive sizes")
    bits = check_bits(described["w_bits"], f"{name}.w_bits")
    packed = tensors.pop(f"{name}.packed")
    if packed.ndim != 2 or packed.shape[0] != outputs:
        raise ValueError(f"{name}.packed has shape {list(packed.shape)}: expected a row for each of {outputs} outputs")
    codes = unpack(packed, bits, inputs * height * width).view(outputs, height, width, inputs).permute(0, 3, 1, 2)
    scale = tensors.pop(f"{name}.scale")
    if scale.dtype not in (torch.float32, torch.float64) or tuple(scale.shape) != (outputs,):
        raise ValueError(f"{name}.scale is {scale.dtype} {list(scale.shape)}: expected torch.float64 [{outputs}]")
    weight = pack_weight(codes, bits, scale=scale, zero_point=described["zero_point"])
    if not torch.equal(weight.packed, packed):
        raise ValueError(f"{name}.packed has bits set behind the codes of a row")
    return PackedConv2d(
        weight,
        x_quantizer=Quantizer(**described["x_quantizer"]),
        bias=tensors.pop(f"{name}.bias") if described["bias"] else None,
        stride=described["stride"],
        padding=described["padding"],
        groups=described["groups"],
        layer=described["layer"],
    )
