"""The ShuffleNet V2 block space of Single Path One-Shot NAS (arXiv 1904.00420, appendix; the released supernet).

A chain of choice blocks with four options each: ShuffleNet V2 blocks with a 3×3, 5×5 or 7×7 depthwise convolution, and
"xception" with three 3×3 ones. Module names and shapes are those of the released code, so its checkpoints load.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from spos.choices import ChoiceBlock, current_path
from spos.modules import Fusible, channels_last, initialize, is_observed, norm_options
from spos.sliced import SlicedBatchNorm2d, SlicedConv2d, Width, in_force
from spos.supernet import Supernet
from spos_kernels import Branch, ConvBN, DepthwiseConv2d, Link, choice_block, choice_block_chain, conv_norm_relu

CHOICES = ("choice_3", "choice_5", "choice_7", "choice_x")


@dataclass(frozen=True)
class Spec:
    """Widths in channels: `stem`, each stage's (channels, number of blocks), `last` before the classifier."""

    stem: int
    stages: tuple[tuple[int, int], ...]
    last: int


SPECS = {
    "shufflenet-oneshot": Spec(16, ((64, 4), (160, 4), (320, 8), (640, 4)), 1024),
    "shufflenet-oneshot-small": Spec(16, ((48, 2), (96, 4), (192, 2)), 256),
}
# Up to this size the stem keeps the resolution: halving 32 pixels six times would leave nothing for the last stage.
SMALL_IMAGE = 64


NORM_TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")  # in the order of ConvBN
MakeBlock = Callable[[int, int, int, int], nn.Module]  # of number, inputs, outputs and stride


def _norm(channels: Width) -> nn.Module:
    if isinstance(channels, int):
        return nn.BatchNorm2d(channels, affine=False)
    return SlicedBatchNorm2d(channels, affine=False)


def _pointwise(inputs: Width, outputs: Width) -> list[nn.Module]:
    if isinstance(inputs, int) and isinstance(outputs, int):
        return [nn.Conv2d(inputs, outputs, 1, bias=False), _norm(outputs), nn.ReLU(inplace=True)]
    return [SlicedConv2d(inputs, outputs, 1, bias=False), _norm(outputs), nn.ReLU(inplace=True)]


def _depthwise(channels: Width, kernel: int, stride: int) -> list[nn.Module]:
    if isinstance(channels, int):
        return [DepthwiseConv2d(channels, kernel, stride), _norm(channels)]
    conv = SlicedConv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
    return [conv, _norm(channels)]


class ConvNormReLU(Fusible, nn.Sequential):
    """Convolution without bias, batch normalisation, ReLU; while `fused`, one `spos_kernels.conv_norm_relu`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, _norm(outputs), nn.ReLU(inplace=True))
        self.stride, self.padding = stride, kernel // 2

    def forward(self, input: Tensor) -> Tensor:
        options = norm_options(self) if self.fused else None
        if options is None:
            y: Tensor = super().forward(input)
            return y
        return conv_norm_relu(input, self.link().branch.main[0], stride=self.stride, padding=self.padding, **options)

    def link(self) -> Link:
        """Return what `spos_kernels.choice_block_chain` takes of the layers."""
        layer = ConvBN(*in_force(self[0], "weight"), *in_force(self[1], *NORM_TENSORS))  # type: ignore[arg-type]
        return Link(Branch((layer,)), self.stride, whole=True)


class ShuffleBlock(Fusible):
    """One ShuffleNet V2 block: [N, inputs, H, W] to [N, outputs, H / stride, W / stride].

    Stride 1 (inputs = outputs): even channels pass, odd channels go through the main branch. Stride 2: both branches
    take all channels. The output is [passed or projected, main], so the main branch makes `outputs` minus its own
    inputs. `mid`, by default outputs // 2, is the number of channels between the main branch's convolutions, and may be
    a choice. While `fused`, the layers run as one `spos_kernels.choice_block`.
    """

    def __init__(self, choice: str, inputs: int, outputs: int, stride: int, mid: Width | None = None) -> None:
        super().__init__()
        self.stride = stride
        branch = inputs // 2 if stride == 1 else inputs
        mid, main = outputs // 2 if mid is None else mid, outputs - branch
        if choice == "choice_x":
            kernel = 3
            layers = [*_depthwise(branch, 3, stride), *_pointwise(branch, mid), *_depthwise(mid, 3, 1)]
            layers += [*_pointwise(mid, mid), *_depthwise(mid, 3, 1), *_pointwise(mid, main)]
        else:
            kernel = int(choice.removeprefix("choice_"))
            layers = [*_pointwise(branch, mid), *_depthwise(mid, kernel, stride), *_pointwise(mid, main)]
        self.branch_main = nn.Sequential(*layers)
        if stride == 2:
            self.branch_proj = nn.Sequential(*_depthwise(branch, kernel, 2), *_pointwise(branch, branch))

    def conv_norms(self, branch: nn.Sequential) -> list[tuple[Tensor | None, ...]]:
        """Return, for each convolution of a branch with its normalisation, the tensors that the running path uses.

        They are the convolution's weight, and the normalisation's weight, bias, running mean, running variance and
        number of batches; of sliced layers they are views.
        """
        layers = [layer for layer in branch._modules.values() if not isinstance(layer, nn.ReLU)]
        pairs = zip(layers[::2], layers[1::2], strict=True)
        return [(*in_force(conv, "weight"), *in_force(norm, *NORM_TENSORS)) for conv, norm in pairs]

    def forward(self, x: Tensor) -> Tensor:
        options = norm_options(self) if self.fused else None
        if options is None:
            return self._forward_layers(x)
        return choice_block(x, (self.link().branch,), 0, stride=self.stride, **options)

    def link(self) -> Link:
        """Return what `spos_kernels.choice_block_chain` takes of the layers on the running path."""
        proj = self._chain(self.branch_proj) if self.stride == 2 else ()
        return Link(Branch(self._chain(self.branch_main), proj), self.stride)

    def _chain(self, branch: nn.Sequential) -> tuple[ConvBN, ...]:
        return tuple(ConvBN(*tensors) for tensors in self.conv_norms(branch))  # type: ignore[arg-type]

    def _forward_layers(self, x: Tensor) -> Tensor:
        if self.stride == 2:
            return torch.cat([self.branch_proj(x), self.branch_main(x)], 1)
        # Unbinding the channel pairs in NHWC order keeps their gradient, one stacked tensor, channels last too.
        passed, main = x.permute(0, 2, 3, 1).unflatten(-1, (-1, 2)).unbind(-1)
        return torch.cat([passed.permute(0, 3, 1, 2), self.branch_main(main.permute(0, 3, 1, 2))], 1)


def chain_of(modules: Iterable[nn.Module]) -> tuple[list[Link], dict[str, Any]] | None:
    """Return the blocks of the running path, one after another, and what their normalisations have in common.

    None where they cannot run as one operation: another kind of module among them, one that is not `fused`,
    normalisations that differ, hooks that would not see their call.
    """
    if nn.modules.module._has_any_global_hook():
        return None
    links: list[Link] = []
    common = None
    pending = list(modules)[::-1]
    while pending:
        module = pending.pop()
        if is_observed(module):
            return None
        if type(module) is nn.Sequential:
            pending += reversed(module._modules.values())
        elif type(module) is ChoiceBlock:
            pending.append(module.chosen(current_path(module)))
        elif type(module) in (ShuffleBlock, ConvNormReLU):  # not of a class derived from them, which may do more
            block = cast("ShuffleBlock | ConvNormReLU", module)
            if not block.fused:
                return None
            options = norm_options(module)
            if options is None or (common is not None and options != common):
                return None
            common = options
            links.append(block.link())
        else:
            return None
    return None if common is None else (links, common)


def operator_block(number: int, inputs: int, outputs: int, stride: int) -> ChoiceBlock:
    """Return the choice among the four operators, of which the number of the block makes no difference."""
    return ChoiceBlock({c: ShuffleBlock(c, inputs, outputs, stride) for c in CHOICES})


class ShuffleNetOneShot(nn.Module):
    """The network around the choice blocks: stem, blocks, last 1×1 convolution, global average pool, classifier.

    `num_classes` is at least 2, `image_size` at least 8 pixels: ValueError otherwise.
    """

    def __init__(
        self, spec: Spec, num_classes: int, image_size: int, in_channels: int, make_block: MakeBlock = operator_block
    ) -> None:
        super().__init__()
        for label, value, least in (("num_classes", num_classes, 2), ("image_size", image_size, 8)):
            if value < least:
                raise ValueError(f"{label} = {value!r}: expected an integer of at least {least}")
        if in_channels < 1:
            raise ValueError(f"in_channels = {in_channels!r}: expected a positive integer")
        stem_stride = 1 if image_size <= SMALL_IMAGE else 2
        self.first_conv = ConvNormReLU(in_channels, spec.stem, 3, stem_stride)
        blocks: list[nn.Module] = []
        width = spec.stem
        for channels, count in spec.stages:
            for index in range(count):
                blocks.append(make_block(len(blocks), width, channels, 2 if index == 0 else 1))
                width = channels
        self.features = nn.Sequential(*blocks)
        self.conv_last = ConvNormReLU(width, spec.last, 1, 1)
        self.globalpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Sequential(nn.Linear(spec.last, num_classes, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        chain = chain_of([self.first_conv, self.features, self.conv_last])
        if chain is None:
            x = self.conv_last(self.features(self.first_conv(x)))
        else:
            links, options = chain
            x = choice_block_chain(x, links, **options)
        logits: Tensor = self.classifier(self.dropout(self.globalpool(x).flatten(1)))
        return logits

    def stages(self) -> list[nn.Module]:
        """Return what `forward` calls one after another, for `spos.prefix_sharing`."""
        end = [self.conv_last, self.globalpool, nn.Flatten(1), self.dropout, self.classifier]
        return [self.first_conv, *self.features, *end]

    def init_weights(self) -> None:
        """Initialise as released: N(0, 0.01) in the stem and the classifier, N(0, 1 / weight.shape[1]) elsewhere."""
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear) or (name.startswith("first_conv") and isinstance(layer, nn.Conv2d)):
                nn.init.normal_(layer.weight, 0.0, 0.01)
            elif isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 1.0 / layer.weight.shape[1])


def _read(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """Read a torch checkpoint without running code from it. OSError if there is none, ValueError if it is no such."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is no checkpoint that can be read with weights_only=True: {reason}") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}: expected a state dict")
    return content


class ShuffleNetSupernet(Supernet):
    """The supernet over `ShuffleNetOneShot`, channels last, with the released code's parameter names."""

    def __init__(self, name: str, num_classes: int, image_size: int, in_channels: int, seed: int) -> None:
        network = ShuffleNetOneShot(SPECS[name], num_classes, image_size, in_channels)
        super().__init__(network, input_shape=(in_channels, image_size, image_size), name=name)
        initialize(network, seed)
        channels_last(self)

    def load_official(self, checkpoint: Mapping[str, Any] | str | os.PathLike[str]) -> None:
        """Load the released supernet's weights strictly; afterwards `net(x, arch)` computes what its model does.

        Takes a state dict, a mapping that holds one under "state_dict", or the path of such a checkpoint, which is read
        with `weights_only=True`. Keys may carry DataParallel's "module." prefix. Raises ValueError, with nothing
        loaded, where a key is missing or unknown or a shape differs.
        """
        content = checkpoint if isinstance(checkpoint, Mapping) else _read(checkpoint)
        state = content.get("state_dict", content)
        if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
            raise ValueError("checkpoint holds no state dict: expected names and tensors, or these under 'state_dict'")
        state = {key.removeprefix("module."): value for key, value in state.items()}
        own = self.state_dict()
        problems = [f"missing {k}" for k in own if k not in state] + [f"unknown {k}" for k in state if k not in own]
        problems += [
            f"{k} has shape {tuple(state[k].shape)}, expected {tuple(v.shape)}"
            for k, v in own.items()
            if k in state and state[k].shape != v.shape
        ]
        if problems:
            more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
            raise ValueError(f"checkpoint does not fit {self.name}: {'; '.join(problems[:5])}{more}")
        self.load_state_dict(state)
