"""Ready-made search spaces by name: `spos.spaces.get("shufflenet-oneshot", num_classes=10, image_size=32)`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from spos.spaces import resnet_mixed, shufflenet_channels
from spos.spaces.resnet_mixed import SPECS as MIXED_SPECS
from spos.spaces.resnet_mixed import MixedResNet
from spos.spaces.shufflenet import SPECS, ShuffleNetOneShot, ShuffleNetSupernet
from spos.spaces.shufflenet_channels import CHANNEL_SPECS
from spos.supernet import Supernet

__all__ = ["MixedResNet", "ShuffleNetOneShot", "ShuffleNetSupernet", "get", "names"]


def names() -> tuple[str, ...]:
    """Return the names that `get` accepts."""
    return (*SPECS, *CHANNEL_SPECS, *MIXED_SPECS)


def get(
    name: str,
    *,
    num_classes: int = 1000,
    image_size: int = 224,
    in_channels: int = 3,
    seed: int = 0,
    operators: Sequence[str] | None = None,
    widths: Sequence[float] | None = None,
    bits: str | Sequence[str | Sequence[int]] | None = None,
    share_clip: bool = False,
    initial_clip: float | None = None,
) -> Supernet:
    """Build a supernet with weights initialised from `seed`.

    `image_size` is in pixels. The rest narrows down or widens what the decisions of a space offer, where it has them:

    `operators`: of a "-channels" space; `operators=("choice_3",)` leaves the channels alone to be searched.
    `widths`: of a "-channels" or a mixed space, `widths=(1.0,)` leaves the channels as they are. Ratios to half of a
        block's outputs, by default 0.2, 0.4, …, 2.0, or, mixed, to a block's outputs, by default 0.5, 1.0 and 1.5.
    `bits`: of a mixed space, pairs (w_bits, a_bits) or labels such as "w2a4"; "any" for all of 1 to 8. By default those
        of arXiv 1904.00420. Other pairs may be in an architecture, but no search draws them.
    `share_clip`, `initial_clip`: of a mixed space, see `spos.SlicedQuantizedConv2d`.

    ValueError names what is not accepted, and for an unknown space the nearest known one.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"space {name!r} is unknown: expected one of {', '.join(names())}{hint}")
    takers = {
        "operators": (operators, CHANNEL_SPECS.keys()),
        "widths": (widths, CHANNEL_SPECS.keys() | MIXED_SPECS.keys()),
        "bits": (bits, MIXED_SPECS.keys()),
        "share_clip": (share_clip or None, MIXED_SPECS.keys()),
        "initial_clip": (initial_clip, MIXED_SPECS.keys()),
    }
    for label, (given, accepted) in takers.items():
        if given is not None and name not in accepted:
            known = " and ".join(n for n in names() if n in accepted)
            raise ValueError(f"{label} = {given!r}: only {known} take it, not {name}")
    if name in CHANNEL_SPECS:
        return shufflenet_channels.build(name, num_classes, image_size, in_channels, seed, operators, widths)
    if name in MIXED_SPECS:
        return resnet_mixed.build(
            name, num_classes, image_size, in_channels, seed, bits, widths, share_clip, initial_clip
        )
    return ShuffleNetSupernet(name, num_classes, image_size, in_channels, seed)
