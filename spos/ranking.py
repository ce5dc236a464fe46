"""The one order of candidates: by accuracy, then loss, then architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RankingKey = tuple[float, float, tuple[int, ...]]


def ranking_key(record: Mapping[str, Any]) -> RankingKey:
    """Sort key, best first, of a candidate's record with "accuracy", "loss" and "arch"."""
    return -record["accuracy"], record["loss"], tuple(record["arch"])
