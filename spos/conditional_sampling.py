"""Exact uniform draws within a budget where most decisions are made already, as in a child of known parents.

Counting over the whole lattice of costs, as `spos.budget_sampling` does, would take too long for each child. With few
decisions open, all sums of one half of them are listed, and for each the other half's sums that bring it within the
bounds are counted by bisection (Horowitz and Sahni, "Computing partitions with applications to the knapsack problem",
1974).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from spos.budget_sampling import BudgetSampler
from spos.space import Arch

# Sums that are listed for each half.
_LARGEST_HALF = 1 << 16


def draw_conditional(exact: BudgetSampler, options: Sequence[Sequence[int]], rng: np.random.Generator) -> Arch | None:
    """Draw uniformly among the architectures within the bounds of `exact` that take one of `options` at each position.

    None where there is none. Where more sums would have to be listed than are kept, some decisions, by chance, are
    drawn freely first, and the rest is uniform given these.
    """
    choices = [int(given[0]) for given in options]
    constant, parts = 0, []
    for component in exact.components:
        given = [list(options[p]) for p in component.scope]
        costs = component.costs[np.ix_(*given)] if given else component.costs
        if costs.size == 1:
            constant += int(costs.ravel()[0])
        else:
            parts.append((component.scope, given, costs))
    halves: list[list[int]] = [[], []]
    for index in rng.permutation(len(parts)).tolist():
        scope, given, costs = parts[index]
        half = min(halves, key=lambda members: prod(parts[i][2].size for i in members))
        if prod(parts[i][2].size for i in half) * costs.size <= _LARGEST_HALF:
            half.append(index)
        else:
            place = int(rng.integers(costs.size))
            constant += int(costs.ravel()[place])
            _take(choices, scope, given, costs.shape, place)
    sums = [_sums([parts[i][2] for i in half]) for half in halves]
    order = np.argsort(sums[1], kind="stable")
    ordered = sums[1][order]
    low, high = exact.bounds
    first = np.searchsorted(ordered, low - constant - sums[0], side="left")
    counts = np.searchsorted(ordered, high - constant - sums[0], side="right") - first
    ends = np.cumsum(counts)
    if ends[-1] == 0:
        return None
    number = int(rng.integers(ends[-1]))
    one = int(np.searchsorted(ends, number, side="right"))
    other = int(order[first[one] + number - (ends[one] - counts[one])])
    for half, place in zip(halves, (one, other), strict=True):
        shape = [parts[i][2].size for i in half]
        for index, inside in zip(half, np.unravel_index(place, shape) if half else (), strict=True):
            scope, given, costs = parts[index]
            _take(choices, scope, given, costs.shape, int(inside))
    return Arch(choices)


def _sums(costs: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the sum of each combination, the last part's index fastest."""
    found: NDArray[np.int64] = np.zeros(1, np.int64)
    for each in costs:
        found = (found[:, None] + each.ravel()).ravel()
    return found


def _take(
    choices: list[int], scope: Sequence[int], given: Sequence[Sequence[int]], shape: Sequence[int], place: int
) -> None:
    for position, options, index in zip(scope, given, np.unravel_index(place, shape), strict=True):
        choices[position] = options[int(index)]
