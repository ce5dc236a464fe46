"""What is said of a search's candidates: fronts, hypervolume, spread and effects, on cases worked out by hand."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from spos.report.analysis import effects, hypervolume_curve, pareto, spread


def candidate(accuracy: float, flops: float, arch: tuple[int, ...] = (0,), **facts: Any) -> dict[str, Any]:
    return {"accuracy": accuracy, "flops": flops, "arch": list(arch), "generation": 0, "origin": "random", **facts}


def test_a_front_has_one_of_each_cost_and_the_cheapest_first() -> None:
    given = [(0.5, 3), (0.6, 4), (0.5, 2), (0.4, 2), (0.6, 4), (0.7, 9)]
    members = pareto([candidate(a, c, (i,)) for i, (a, c) in enumerate(given)], "flops")
    assert [(m["accuracy"], m["flops"]) for m in members] == [(0.5, 2), (0.6, 4), (0.7, 9)]
    assert members[1]["arch"] == [1] and pareto([], "flops") == []


def test_hypervolume_grows_to_the_dominated_share_of_the_box() -> None:
    candidates = [candidate(a, c) for a, c in ((0.2, 5.0), (0.0, 1.0), (0.6, 4.0), (0.4, 2.0), (0.3, 3.0))]
    curve = hypervolume_curve(candidates, "flops", (0.0, 1.0, 0.0, 5.0))
    assert curve == pytest.approx([0.0, 0.0, 0.6 / 5, (0.4 * 3 + 0.2 * 1) / 5, (0.4 * 3 + 0.2 * 1) / 5])
    assert hypervolume_curve(candidates, "flops", (0.5, 0.5, 0.0, 5.0)) == [0.0] * 5  # no box, no share


def test_dropped_candidates_are_evaluations_and_on_no_front() -> None:
    given = [(0.9, 1.0, 16), (0.2, 5.0, 64), (0.6, 4.0, 64), (0.8, 1.0, 32)]
    candidates = [candidate(a, c, images=images) for a, c, images in given]
    curve = hypervolume_curve(candidates, "flops", (0.0, 1.0, 0.0, 5.0), 64)
    assert curve == pytest.approx([0.0, 0.0, 0.6 / 5, 0.6 / 5])


def test_spread_is_none_for_one_option_and_whole_for_all_alike() -> None:
    first = [candidate(0.5, 1, arch) for arch in itertools.product(range(3), range(2), range(1))]
    second = [candidate(0.5, 1, (1, option, 0), generation=4) for option in (0, 0, 0, 1)]
    found = spread([*first, *second], [3, 2, 1])
    in_use = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert found == pytest.approx(np.array([[1, 1, 0], [0, in_use - 1, 0]]))


def test_effects_are_over_random_candidates_each_once() -> None:
    def accuracy(arch: tuple[int, ...]) -> float:
        return 0.5 + 0.1 * arch[0] - 0.02 * arch[1]

    every = [candidate(accuracy(a), 1, a) for a in itertools.product(range(2), range(3))]
    bred = [candidate(0.99, 1, (0, 0), origin="mutation"), every[0]]
    found = effects([*every, *bred], [2, 4])
    assert [e.mean for e in found[0]] == pytest.approx([-0.05, 0.05])
    assert [e.mean for e in found[1][:3]] == pytest.approx([0.02, 0.0, -0.02])
    assert [e.count for e in found[1]] == [2, 2, 2, 0] and math.isnan(found[1][3].mean)
    assert found[0][0].error == pytest.approx(0.02 / 3**0.5)
    assert effects(bred[:1], [2, 4]) == []
