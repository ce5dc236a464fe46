"""Candidates that cannot be among the best any more are not scored to the end.

Validation images come in a random order that is the same for all, so the first n of them are a sample of the N without
replacement: of a candidate that classifies M of all N right, the number that it classifies right among them has a
hypergeometric distribution. A candidate is out of the race when, were it as good as the `keep`-th best so far, it would
have had so few right with a probability below 1 - `confidence`, shared equally among the checks, one after each batch.
(Maron and Moore, "Hoeffding Races", 1993, with exact tails in place of Hoeffding's bound.)

The bar is set by whole generations before, so that what a candidate scores depends on no other of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Race:
    """bar: the accuracy on all validation images that a candidate has to reach. confidence: of dropping none that does,
    for each candidate, from 0.5, below 1.
    """

    bar: float
    confidence: float

    def __post_init__(self) -> None:
        if not 0 <= self.bar <= 1:
            raise ValueError(f"bar = {self.bar!r}: expected an accuracy from 0 to 1")
        if not 0.5 <= self.confidence < 1:
            raise ValueError(f"confidence = {self.confidence!r}: expected a probability from 0.5, below 1")

    @classmethod
    def among(cls, accuracies: Sequence[float], keep: int, confidence: float) -> Race | None:
        """Return the race for the `keep` best places, where so many have been taken already."""
        return cls(sorted(accuracies, reverse=True)[keep - 1], confidence) if len(accuracies) >= keep else None

    def limits(self, batches: Sequence[int]) -> list[int]:
        """Return, for each of the batches of so many images, the most right so far with which a candidate is out.

        -1 where it cannot be told yet; after the last batch nothing needs to be.
        """
        images, checks = sum(batches), len(batches) - 1
        needed = int(np.ceil(self.bar * images - 1e-9))
        share = (1 - self.confidence) / max(1, checks)
        seen = np.cumsum(batches[:-1], dtype=np.int64)
        return [_most_unlikely(images, needed, int(n), share) for n in seen] + [-1]


def _most_unlikely(images: int, good: int, drawn: int, probability: float) -> int:
    """Return the greatest x so that at most x of `drawn` are good with at most `probability`; -1 if there is none."""
    low, high = max(0, drawn - (images - good)), min(drawn, good)
    x = np.arange(low, high + 1)
    logs = _log_choose(images, good, drawn, x)
    tail = np.cumsum(np.exp(logs))
    return int(low + np.searchsorted(tail, probability, side="right")) - 1


def _log_choose(images: int, good: int, drawn: int, x: NDArray[np.int64]) -> NDArray[np.float64]:
    """Logarithm of the hypergeometric probability of x."""
    log = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, images + 1)))])  # of factorials

    def choose(n: int, k: NDArray[np.int64] | int) -> NDArray[np.float64]:
        return np.asarray(log[n] - log[k] - log[n - k])

    return choose(good, x) + choose(images - good, drawn - x) - choose(images, drawn)
