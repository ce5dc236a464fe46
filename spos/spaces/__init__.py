"""Ready-made search spaces by name: `spos.spaces.get("shufflenet-oneshot", num_classes=10, image_size=32)`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from spos.spaces import shufflenet_channels
from spos.spaces.shufflenet import SPECS, ShuffleNetOneShot, ShuffleNetSupernet
from spos.spaces.shufflenet_channels import CHANNEL_SPECS
from spos.supernet import Supernet

__all__ = ["ShuffleNetOneShot", "ShuffleNetSupernet", "get", "names"]


def names() -> tuple[str, ...]:
    """Return the names that `get` accepts."""
    return (*SPECS, *CHANNEL_SPECS)


def get(
    name: str,
    *,
    num_classes: int = 1000,
    image_size: int = 224,
    in_channels: int = 3,
    seed: int = 0,
    operators: Sequence[str] | None = None,
    widths: Sequence[float] | None = None,
) -> Supernet:
    """Build a supernet with weights initialised from `seed`.

    `image_size` is in pixels. `operators` and `widths` narrow down what the decisions of a "-channels" space offer:
    `operators=("choice_3",)` leaves the channels alone to be searched, `widths=(1.0,)` the operators. Widths are ratios
    to half of a block's outputs, by default 0.2, 0.4, …, 2.0; any positive ones may be given. ValueError names what is
    not accepted, and for an unknown space the nearest known one.
    """
    if name in CHANNEL_SPECS:
        return shufflenet_channels.build(name, num_classes, image_size, in_channels, seed, operators, widths)
    if name not in SPECS:
        near = difflib.get_close_matches(name, names(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"space {name!r} is unknown: expected one of {', '.join(names())}{hint}")
    for label, given in (("operators", operators), ("widths", widths)):
        if given is not None:
            raise ValueError(f"{label} = {given!r}: only {' and '.join(CHANNEL_SPECS)} take it, not {name}")
    return ShuffleNetSupernet(name, num_classes, image_size, in_channels, seed)
