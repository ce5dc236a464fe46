"""Fronts, crowding and hypervolume against brute force and hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest

from spos.pareto import crowding, front, fronts, hypervolume


def dominates(one, other) -> bool:
    return all(one <= other) and any(one < other)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("objectives", [2, 3])
def test_fronts_peel_off_what_nothing_left_dominates(seed: int, objectives: int) -> None:
    points = np.random.default_rng(seed).integers(0, 6, (40, objectives))
    left, expected = set(range(40)), []
    while left:
        best = [i for i in sorted(left) if not any(dominates(points[j], points[i]) for j in left)]
        expected.append(best)
        left -= set(best)
    assert fronts(points.tolist()) == expected and front(points) == expected[0]
    assert front([]) == [] and fronts([]) == []


def test_violations_count_before_objectives() -> None:
    points = [(0, 0), (9, 9), (1, 1), (8, 8), (5, 5)]
    assert fronts(points, [2.0, 0.0, 1.0, 0.0, 1.0]) == [[3], [1], [2, 4], [0]]
    with pytest.raises(ValueError, match="violations has 1 entries: expected 5"):
        fronts(points, [0.0])


def test_crowding_is_the_share_of_the_range_between_neighbours() -> None:
    assert crowding([(0, 10), (1, 6), (3, 5), (10, 0)]) == [np.inf, 0.3 + 0.5, 0.9 + 0.6, np.inf]
    assert crowding([(2, 2)]) == [np.inf] and crowding([]) == []
    assert crowding([(1, 0), (1, 0), (1, 0)])[1] == 0  # no range, no distance


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_hypervolume_is_the_number_of_dominated_cells(objectives: int) -> None:
    """Of integer points: unit cells are counted one by one."""
    for seed in range(8):
        points = np.random.default_rng(seed).integers(0, 7, (9, objectives))
        cells = np.stack(np.meshgrid(*[np.arange(5)] * objectives, indexing="ij"), -1).reshape(-1, objectives)
        expected = sum(bool((points <= cell).all(1).any()) for cell in cells)
        assert hypervolume(points.tolist(), [5] * objectives) == expected
    assert hypervolume([], [1.0] * objectives) == 0.0
