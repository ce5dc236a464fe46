"""The bounds that settings name, as constraints."""

from __future__ import annotations

from typing import Any

from spos.costs import Constraint, bitops, flops, latency, params, peak_memory


def bounds_of(config: Any) -> list[Constraint]:
    """Return the bounds `max_<cost>` and `min_<cost>` that a section of settings has as constraints; 0 is none."""
    found = []
    for cost in (flops, params, bitops, latency, peak_memory):
        high, low = (getattr(config, f"{side}_{cost.name}", 0) for side in ("max", "min"))
        found += [cost <= high] if high > 0 else []
        found += [cost >= low] if low > 0 else []
    return found
