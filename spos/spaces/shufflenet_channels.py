"""Operators and channel numbers of Single Path One-Shot NAS searched together (arXiv 1904.00420, sections 3.4 and 4.2).

Each block of the ShuffleNet V2 space has a second decision: the ratio by which the channels between the convolutions of
its main branch differ from half of its outputs. What a block takes in and gives out stays as it is, so blocks of all
widths fit together. Weights are allocated for the widest and used by their leading parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from spos.choices import ChoiceBlock, WidthChoice
from spos.modules import channels_last, initialize
from spos.spaces.shufflenet import CHOICES, SPECS, ShuffleBlock, ShuffleNetOneShot
from spos.supernet import Supernet

RATIOS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0)
CHANNEL_SPECS = {
    "shufflenet-oneshot-channels": SPECS["shufflenet-oneshot"],
    "shufflenet-oneshot-channels-small": SPECS["shufflenet-oneshot-small"],
}


def build(
    name: str,
    num_classes: int,
    image_size: int,
    in_channels: int,
    seed: int,
    operators: Sequence[str] | None,
    widths: Sequence[float] | None,
) -> Supernet:
    """Build the supernet, channels last, with the operators and ratios offered; see `spos.spaces.get`."""
    offered = CHOICES if operators is None else _check_operators(operators)
    ratios = RATIOS if widths is None else check_widths(widths)

    def make_block(number: int, inputs: int, outputs: int, stride: int) -> nn.Module:
        mid = WidthChoice.scaled(outputs // 2, ratios, decision=f"features.{number}.width")
        return ChoiceBlock({o: ShuffleBlock(o, inputs, outputs, stride, mid) for o in offered})

    network = ShuffleNetOneShot(CHANNEL_SPECS[name], num_classes, image_size, in_channels, make_block)
    net = Supernet(network, input_shape=(in_channels, image_size, image_size), name=name)
    initialize(network, seed)
    channels_last(net)
    return net


def _check_operators(operators: Sequence[str]) -> tuple[str, ...]:
    """Return the operators in the space's order."""
    if isinstance(operators, str) or not operators or len(set(operators)) < len(operators):
        raise ValueError(f"operators = {operators!r}: expected different ones of {', '.join(CHOICES)}")
    if unknown := [o for o in operators if o not in CHOICES]:
        raise ValueError(f"operators has {unknown[0]!r}: expected some of {', '.join(CHOICES)}")
    return tuple(o for o in CHOICES if o in operators)


def check_widths(widths: Sequence[float]) -> tuple[float, ...]:
    """Return the ratios from narrow to wide."""
    numbers = [w for w in widths if isinstance(w, (int, float)) and not isinstance(w, bool) and 0 < w < math.inf]
    if not numbers or len(numbers) < len(widths) or len(set(numbers)) < len(numbers):
        raise ValueError(f"widths = {widths!r}: expected different positive ratios such as (0.6, 0.8, 1.0)")
    return tuple(sorted(map(float, numbers)))
