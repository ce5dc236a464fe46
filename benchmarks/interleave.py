"""Fair timing of alternatives on a machine that is not quiet: one after another in each round, never one block each.

A candidate's turn is two calls of which the second is timed, so that it meets caches that it filled itself and not what
its predecessor left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import quantiles


@dataclass(frozen=True)
class Spread:
    """Median and the 20 % and 80 % quantiles of some times, in seconds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: list[float]) -> Spread:
        if len(seconds) < 2:
            return cls(seconds[0], seconds[0], seconds[0])
        cuts = quantiles(seconds, n=10, method="inclusive")
        return cls(cuts[4], cuts[1], cuts[7])


@dataclass
class Interleaved:
    """Candidates by name, timed in turn. Call `round()` as often as wanted; the first rounds may be dropped.

    pause, warm_up: seconds of rest before each turn, and of calls before the one that is timed, for candidates with
    thread pools of their own: idle threads go on spinning for a while, on the cores of whoever is next, and a
    pool that has rested needs some calls until its threads spin again.
    """

    candidates: dict[str, Callable[[], object]]
    pause: float = 0.0
    warm_up: float = 0.0
    times: dict[str, list[float]] = field(init=False)

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.times = {name: [] for name in self.candidates}

    def round(self) -> None:
        for name, candidate in self.candidates.items():
            time.sleep(self.pause)
            end = time.perf_counter() + self.warm_up
            candidate()
            while time.perf_counter() < end:
                candidate()
            start = time.perf_counter()
            candidate()
            self.times[name].append(time.perf_counter() - start)

    def rounds_in(self, seconds: float, least: int = 15, most: int = 200) -> int:
        """Return how many rounds fit into `seconds`, from one round that warms everything up and one that is timed."""
        self.round()
        start = time.perf_counter()
        self.round()
        rounds = int(seconds / (time.perf_counter() - start))
        self.forget()
        return min(most, max(least, rounds))

    def spreads(self) -> dict[str, Spread]:
        return {name: Spread.of(times) for name, times in self.times.items()}


def geometric_mean(ratios: Iterable[float]) -> float:
    logarithms = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logarithms) / len(logarithms))
