"""Ready-made search spaces by name: `spos.spaces.get("shufflenet-oneshot", num_classes=10, image_size=32)`."""

from __future__ import annotations

import difflib

from spos.spaces.shufflenet import SPECS, ShuffleNetOneShot, ShuffleNetSupernet
from spos.supernet import Supernet

__all__ = ["ShuffleNetOneShot", "ShuffleNetSupernet", "get", "names"]


def names() -> tuple[str, ...]:
    """Return the names that `get` accepts."""
    return tuple(SPECS)


def get(name: str, *, num_classes: int = 1000, image_size: int = 224, in_channels: int = 3, seed: int = 0) -> Supernet:
    """Build a supernet with weights initialised from `seed`.

    `image_size` is in pixels. ValueError names an unknown space and the nearest known one.
    """
    if name not in SPECS:
        near = difflib.get_close_matches(name, SPECS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"space {name!r} is unknown: expected one of {', '.join(SPECS)}{hint}")
    return ShuffleNetSupernet(name, num_classes, image_size, in_channels, seed)
