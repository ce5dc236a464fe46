"""Pareto dominance among points whose coordinates are all to be small: fronts, crowding, hypervolume."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Point = Sequence[float] | NDArray[np.float64]
Points = Sequence[Point] | NDArray[np.float64]


def front(points: Points) -> list[int]:
    """Return the indices, ascending, of the points that no other dominates; of equal ones all."""
    array = np.asarray(points, dtype=float)
    return [i for i, point in enumerate(array) if not _beaten(array, point)]


def fronts(points: Points, violations: Sequence[float] | None = None) -> list[list[int]]:
    """Sort points into fronts, best first (Deb et al. 2002, section III.A): each is what the ones before leave.

    violations: how far each point is from being feasible, 0 if it is. A feasible point dominates every other, and of
    two that are not, the one that is nearer dominates (their constrained-domination, section VI).
    """
    array = np.asarray(points, dtype=float)
    far = np.zeros(len(array)) if violations is None else np.maximum(np.asarray(violations, dtype=float), 0.0)
    if len(far) != len(array):
        raise ValueError(f"violations has {len(far)} entries: expected {len(array)}, one for each point")
    left = list(range(len(array)))
    found = []
    while left:
        nearest = min(far[i] for i in left)
        rivals = [i for i in left if far[i] == nearest]
        best = rivals if nearest > 0 else [rivals[k] for k in front([array[i] for i in rivals])]
        found.append(best)
        left = [i for i in left if i not in set(best)]
    return found


def crowding(points: Points) -> list[float]:
    """Return each point's crowding distance within its front (Deb et al. 2002, section III.B), infinite at the ends.

    The sum over coordinates of the gap between its two neighbours, as a share of the front's range.
    """
    array = np.asarray(points, dtype=float)
    distance = np.zeros(len(array))
    for column in array.T if len(array) else ():
        order = np.argsort(column, kind="stable")
        distance[order[[0, -1]]] = np.inf
        span = column[order[-1]] - column[order[0]]
        if span > 0:
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / span
    return [float(d) for d in distance]


def hypervolume(points: Points, reference: Point) -> float:
    """Return the volume that `points` dominate, up to `reference`; points beyond it count where they are within.

    Exact, by slicing along one coordinate after another (While et al., "A faster algorithm for calculating
    hypervolume", IEEE Transactions on Evolutionary Computation, 2006): for a few objectives and some hundred points.
    """
    bound = np.asarray(reference, dtype=float)
    inside = [p for p in np.asarray(points, dtype=float).reshape(-1, len(bound)) if (p < bound).all()]
    return _volume(np.array(inside).reshape(-1, len(bound)), bound)


def _volume(points: NDArray[np.float64], bound: NDArray[np.float64]) -> float:
    if len(points) == 0:
        return 0.0
    if len(bound) == 1:
        return float(bound[0] - points.min())
    points = points[np.argsort(points[:, 0], kind="stable")]
    volume, rest = 0.0, points[:, 1:]
    ends = np.append(points[1:, 0], bound[0])
    for count, (start, end) in enumerate(zip(points[:, 0], ends, strict=True), start=1):
        if end > start:
            kept = rest[:count]
            volume += float(end - start) * _volume(kept[front(kept)], bound[1:])
    return volume


def _beaten(array: NDArray[np.float64], point: NDArray[np.float64]) -> bool:
    return bool(((array <= point).all(1) & (array < point).any(1)).any())
