"""What a search's records say beyond the best of them: the front, its growth, how choices spread, what they matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spos.pareto import front, hypervolume

Record = Mapping[str, Any]


def pareto(candidates: Sequence[Record], cost: str) -> list[Record]:
    """Return the candidates that none beats in accuracy or cost and matches in both, the cheapest first.

    One of several with the same accuracy and the same cost.
    """
    points = [(-c["accuracy"], float(c[cost])) for c in candidates]
    different = {points[i]: candidates[i] for i in reversed(front(points))} if points else {}
    return sorted(different.values(), key=lambda c: float(c[cost]))


def hypervolume_curve(
    candidates: Sequence[Record], cost: str, box: Sequence[float], most_images: int = 0
) -> list[float]:
    """Return, after each evaluation, the share of `box` that the front dominates.

    box: lowest and highest accuracy, lowest and highest cost, the reference point being the worst of both. most_images:
    candidates that were scored on fewer count as evaluations, and are on no front.
    """
    worst, best, cheapest, dearest = box
    whole = (best - worst) * (dearest - cheapest)
    kept: list[tuple[float, float]] = []
    curve: list[float] = []
    for candidate in candidates:
        point = (-candidate["accuracy"], float(candidate[cost]))
        dropped = (candidate.get("images") or most_images) < most_images
        if dropped or (curve and any(a <= point[0] and b <= point[1] for a, b in kept)):
            curve.append(curve[-1] if curve else 0.0)
            continue
        kept = [p for p in kept if not (point[0] <= p[0] and point[1] <= p[1])] + [point]
        curve.append(hypervolume(kept, (-worst, dearest)) / whole if whole > 0 else 0.0)
    return curve


def spread(candidates: Sequence[Record], sizes: Sequence[int]) -> NDArray[np.float64]:
    """Return [generations, decisions]: how many options are in use, as a share of those on offer.

    The options in use are counted by the exponential of their shares' entropy (the Hill number of order 1), from which
    chance makes a little less than all of them. 0 is one option for all candidates of a generation, 1 all alike often.
    """
    generations = sorted({c["generation"] for c in candidates})
    found = np.zeros((len(generations), len(sizes)))
    for row, number in enumerate(generations):
        archs = [c["arch"] for c in candidates if c["generation"] == number]
        for position, size in enumerate(sizes):
            counts = np.bincount([arch[position] for arch in archs], minlength=size)
            shares = counts[counts > 0] / counts.sum()
            in_use = np.exp(-(shares * np.log(shares)).sum())
            found[row, position] = min(1.0, (in_use - 1) / (size - 1)) if size > 1 else 0.0
    return found


@dataclass(frozen=True)
class Effect:
    """Of an option: candidates that take it, their mean accuracy less that of all, and the standard error of that."""

    count: int
    mean: float
    error: float


def effects(candidates: Sequence[Record], sizes: Sequence[int]) -> list[list[Effect]]:
    """Return the marginal effect of each option of each decision on the accuracy.

    Over the candidates that were drawn at random, each architecture once: in those that evolution has bred, good
    choices come together, and each would be given credit for the others. Those that were dropped from a race count with
    the images they were scored on: without them only the good would be left.
    """
    drawn = {tuple(c["arch"]): c["accuracy"] for c in candidates if c["origin"] == "random"}
    if not drawn:
        return []
    archs, accuracy = np.array(list(drawn)), np.array(list(drawn.values()), dtype=float)
    found = []
    for position, size in enumerate(sizes):
        row = []
        for option in range(size):
            taken = accuracy[archs[:, position] == option]
            if len(taken):
                error = float(taken.std(ddof=1) / len(taken) ** 0.5) if len(taken) > 1 else float("nan")
                row.append(Effect(len(taken), float(taken.mean() - accuracy.mean()), error))
            else:
                row.append(Effect(0, float("nan"), float("nan")))
        found.append(row)
    return found
