"""Draws within a budget where most decisions are made: exactly uniform among what is left, against enumeration."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

import spos
from spos import conditional_sampling
from spos.budget_sampling import BudgetSampler
from spos.conditional_sampling import draw_conditional
from spos.variation import mutate, repaired

from .channels_support import small_net
from .test_budget_sampling import SPACE, table


def allowed(exact: BudgetSampler, costs, options) -> list[spos.Arch]:
    low, high = exact.bounds
    return [spos.Arch(a) for a in itertools.product(*options) if low <= costs(a) <= high]


@pytest.mark.parametrize("seed", range(6))
def test_draws_are_uniform_among_what_is_left(seed: int) -> None:
    """Also where two decisions meet in one term, and where nothing or everything is open."""
    costs, rng = table(seed, 3), np.random.default_rng(seed)
    every = sorted(costs(arch) for arch in SPACE.enumerate())
    exact = BudgetSampler(SPACE, costs, low=every[4], high=every[-9])
    sizes = [d.drawn for d in SPACE.decisions]
    cases = [[list(range(n)) for n in sizes]]
    cases += [[sorted(rng.permutation(n)[: 1 + int(rng.integers(n))].tolist()) for n in sizes] for _ in range(12)]
    for options in cases:
        left = allowed(exact, costs, options)
        found = Counter(draw_conditional(exact, options, rng) for _ in range(60 * max(1, len(left))))
        assert set(found) == (set(left) or {None})
        assert len(found) == 1 or chisquare(list(found.values())).pvalue > 1e-5


def test_too_many_sums_are_cut_and_bounds_still_hold(monkeypatch) -> None:
    monkeypatch.setattr(conditional_sampling, "_LARGEST_HALF", 3)
    costs, rng = table(1), np.random.default_rng(0)
    every = sorted(costs(arch) for arch in SPACE.enumerate())
    exact = BudgetSampler(SPACE, costs, high=every[9])
    found = {draw_conditional(exact, [range(d.drawn) for d in SPACE.decisions], rng) for _ in range(400)} - {None}
    assert len(found) == exact.count and all(costs(arch) <= every[9] for arch in found)


def test_a_repaired_child_is_what_trying_again_would_end_with() -> None:
    """A mutation whose redrawn decisions are known, tried until it fits, against the repaired one: the same shares."""
    costs, rng = table(4), np.random.default_rng(0)
    every = sorted(costs(arch) for arch in SPACE.enumerate())
    exact = BudgetSampler(SPACE, costs, high=every[len(every) // 3])
    parent = exact.arch(exact.count // 2)
    one = Counter(repaired(parent, parent, SPACE, rng, exact, 1.0) for _ in range(4000))
    other: Counter = Counter()
    while other.total() < 4000:
        child = mutate(parent, SPACE, rng, 1.0)
        other[child] += costs(child) <= exact.bounds[1]
    shares = [[counts[a] for a in one] for counts in (one, other)]
    assert (
        set(one) == set(+other) and np.abs(np.diff(np.array(shares), axis=0)).max() < 5 * (2 * 4000 / len(one)) ** 0.5
    )
    assert repaired(parent, parent, SPACE, rng, exact, 0.0) == parent
    assert repaired(parent, parent, SPACE, rng, None, 0.5) is None


def test_children_keep_a_budget_that_few_meet() -> None:
    net = small_net()
    low, high = spos.flops.range(net)
    exact = BudgetSampler(net.space, spos.flops.table(net), high=int(low + 0.02 * (high - low)))
    rng = np.random.default_rng(0)
    for _ in range(20):
        one, other = exact.sample(rng), exact.sample(rng)
        child = repaired(one, other, net.space, rng, exact, 0.2)
        assert child is not None and spos.flops(net, child) <= exact.bounds[1]
        both = repaired(one, other, net.space, rng, exact, 0.0)
        assert both is not None and all(c in (a, b) for a, b, c in zip(one, other, both, strict=True))
