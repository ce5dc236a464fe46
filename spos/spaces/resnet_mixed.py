"""Bit widths and channel numbers of ResNet searched together: the mixed-precision space of Single Path One-Shot NAS
(arXiv 1904.00420, section 4.3).

Each residual block has two decisions: the pair (w_bits, a_bits) of its convolutions, the 1×1 of its shortcut included,
and the ratio by which the channels of its first convolution differ from the block's. The first convolution, the
classifier and the identity around each block stay in full precision. Module names and, apart from the clips and the
widest channel numbers, shapes are torchvision's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spos.bits import SEARCHED
from spos.choices import BitsChoice, WidthChoice
from spos.modules import channels_last, initialize
from spos.quantized import CLIP, SlicedQuantizedConv2d
from spos.sliced import SlicedBatchNorm2d
from spos.spaces.shufflenet_channels import check_widths
from spos.supernet import Supernet

RATIOS = (0.5, 1.0, 1.5)
# Up to this size the stem keeps the resolution, as is usual for images of 32 pixels.
SMALL_IMAGE = 64


@dataclass(frozen=True)
class Spec:
    """Channels of the `stem`; each stage's (channels, number of blocks, stride of the first of them).

    `clip` is where activations are clipped before training.
    """

    stem: int
    stages: tuple[tuple[int, int, int], ...]
    clip: float = CLIP


SPECS = {
    "resnet18-mixed": Spec(64, ((64, 2, 1), (128, 2, 2), (256, 2, 2), (512, 2, 2))),
    "resnet34-mixed": Spec(64, ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))),
    # Every stage halves the map, so that an epoch of CIFAR-10 takes seconds on a CPU. PACT's first clip, 10, gives most
    # inputs the code 0 until it has shrunk, which takes epochs: of 10, 6, 3 and 1.5, after 300 steps of 64 images,
    # 3 had learned most at 2 and at 4 bits.
    "resnet-mixed-small": Spec(16, ((16, 2, 2), (32, 3, 2), (64, 3, 2)), clip=3.0),
}


class MixedBlock(nn.Module):
    """One residual block: [N, inputs, H, W] to [N, outputs, H / stride, W / stride], two 3×3 convolutions and a sum.

    Where the shapes of both sides differ, a 1×1 convolution is the shortcut; else it is the input as it is, in full
    precision. `offered`, `ratios`, `share_clip` and `initial_clip` are those of `build`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        offered: str | Sequence[str | Sequence[int]],
        ratios: Sequence[float],
        share_clip: bool,
        initial_clip: float,
    ) -> None:
        super().__init__()
        self.bits = BitsChoice(offered)
        self.width = width = WidthChoice.scaled(outputs, ratios)
        common = {"bias": False, "bits": self.bits, "share_clip": share_clip, "initial_clip": initial_clip}
        self.conv1 = SlicedQuantizedConv2d(inputs, width, 3, stride, 1, **common)  # type: ignore[arg-type]
        self.bn1 = SlicedBatchNorm2d(width, affine=False)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = SlicedQuantizedConv2d(width, outputs, 3, 1, 1, **common)  # type: ignore[arg-type]
        self.bn2 = nn.BatchNorm2d(outputs, affine=False)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            shortcut = SlicedQuantizedConv2d(inputs, outputs, 1, stride, 0, **common)  # type: ignore[arg-type]
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs, affine=False))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.downsample is None else self.downsample(x)
        out: Tensor = self.relu(y)
        return out


class MixedResNet(nn.Module):
    """The network around the residual blocks: stem, four stages (three of the small one), average pool, classifier.

    `num_classes` is at least 2, `image_size` at least 8 pixels: ValueError otherwise.
    """

    def __init__(
        self,
        spec: Spec,
        num_classes: int,
        image_size: int,
        in_channels: int,
        *,
        offered: str | Sequence[str | Sequence[int]] = SEARCHED,
        ratios: Sequence[float] = RATIOS,
        share_clip: bool = False,
        initial_clip: float = CLIP,
    ) -> None:
        super().__init__()
        for label, value, least in (("num_classes", num_classes, 2), ("image_size", image_size, 8)):
            if value < least:
                raise ValueError(f"{label} = {value!r}: expected an integer of at least {least}")
        if in_channels < 1:
            raise ValueError(f"in_channels = {in_channels!r}: expected a positive integer")
        small = image_size <= SMALL_IMAGE
        kernel, stride = (3, 1) if small else (7, 2)
        self.conv1 = nn.Conv2d(in_channels, spec.stem, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(spec.stem, affine=False)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        self.stage_count = len(spec.stages)
        width = spec.stem
        for number, (channels, count, first) in enumerate(spec.stages, start=1):
            blocks = []
            for index in range(count):
                blocks.append(
                    MixedBlock(width, channels, 1 if index else first, offered, ratios, share_clip, initial_clip)
                )
                width = channels
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for number in range(1, self.stage_count + 1):
            x = self.get_submodule(f"layer{number}")(x)
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits

    def stages(self) -> list[nn.Module]:
        """Return what `forward` calls one after another, for `spos.prefix_sharing`."""
        blocks = [self.get_submodule(f"layer{number}") for number in range(1, self.stage_count + 1)]
        return [self.conv1, self.bn1, self.relu, self.maxpool, *blocks, self.avgpool, nn.Flatten(1), self.fc]

    def init_weights(self) -> None:
        """Initialise convolutions as torchvision does, N(0, 2 / (outputs · k²)), at the widest for all widths."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def build(
    name: str,
    num_classes: int,
    image_size: int,
    in_channels: int,
    seed: int,
    bits: str | Sequence[str | Sequence[int]] | None,
    widths: Sequence[float] | None,
    share_clip: bool,
    initial_clip: float | None,
) -> Supernet:
    """Build the supernet, channels last, with the pairs of bits and the ratios offered; see `spos.spaces.get`."""
    network = MixedResNet(
        SPECS[name],
        num_classes,
        image_size,
        in_channels,
        offered=SEARCHED if bits is None else bits,
        ratios=RATIOS if widths is None else check_widths(widths),
        share_clip=share_clip,
        initial_clip=SPECS[name].clip if initial_clip is None else initial_clip,
    )
    net = Supernet(network, input_shape=(in_channels, image_size, image_size), name=name)
    initialize(network, seed)
    channels_last(net)
    return net
