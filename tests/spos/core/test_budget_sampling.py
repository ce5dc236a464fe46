"""Exact draws within a budget: all that meet it, each alike often, none other; counted, not tried."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

import spos
from spos.budget_sampling import BudgetSampler
from spos.cost_table import CostTable
from spos.costs import reachable, sampler
from spos.space import Decision, SearchSpace
from spos.variation import draw_random

from .channels_support import own_net
from .conftest import SEARCH, make_data, make_module
from .mixed_support import small_net

SPACE = SearchSpace(
    [Decision(name, "operator", tuple("abc"[:n])) for name, n in zip("uvwx", (3, 2, 3, 2), strict=True)]
)


def table(seed: int, step: int = 1) -> CostTable:
    """Costs of single decisions and of two that meet, some alike, one decision without any."""
    rng = np.random.default_rng(seed)
    found = CostTable(SPACE)
    found.add({}, 1000)
    for position in (0, 1):
        for option in range(SPACE.decisions[position].drawn):
            found.add({position: option}, step * int(rng.integers(0, 6)))
    for one, other in itertools.product(range(2), range(3)):
        found.add({1: one, 2: other}, step * int(rng.integers(0, 9)))
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("step", [1, 7])
def test_numbers_are_the_architectures_within_the_bounds(seed: int, step: int) -> None:
    costs = table(seed, step)
    every = {arch: costs(arch) for arch in SPACE.enumerate()}
    low, high = min(every.values()), max(every.values())
    bounds = [None, low - 1, low, low + 1, (low + high) // 2, high - 1, high, high + 1]
    for least, most in itertools.product(bounds, bounds):
        exact = BudgetSampler(SPACE, costs, low=least, high=most)
        expected = {a for a, c in every.items() if (least is None or c >= least) and (most is None or c <= most)}
        assert exact.count == len(expected)
        assert {exact.arch(i) for i in range(exact.count)} == expected
        for number in (-1, exact.count):
            with pytest.raises(IndexError, match="expected 0 to"):
                exact.arch(number)


def test_draws_are_uniform() -> None:
    costs = table(1)
    every = sorted(costs(arch) for arch in SPACE.enumerate())
    exact = BudgetSampler(SPACE, costs, low=every[4], high=every[-8])
    rng = np.random.default_rng(0)
    found = Counter(exact.sample(rng) for _ in range(200 * exact.count))
    assert len(found) == exact.count > 10
    assert chisquare(list(found.values())).pvalue > 1e-4


def test_counts_of_more_than_64_bits_are_exact() -> None:
    """40 decisions of 8 options that cost 0 to 7: the ways to a sum are coefficients of a polynomial."""
    space = SearchSpace([Decision(f"d{i}", "operator", tuple("abcdefgh")) for i in range(40)])
    costs = CostTable(space)
    for position, option in itertools.product(range(40), range(8)):
        costs.add({position: option}, 3 * option)
    ways = [1]
    for _ in range(40):
        ways = [sum(ways[max(0, r - 7) : r + 1]) for r in range(len(ways) + 7)]
    for low, high in ((None, 3), (90, 93), (None, 419), (417, 423)):
        first = 0 if low is None else low // 3
        assert BudgetSampler(space, costs, low=low, high=high).count == sum(ways[first : high // 3 + 1])
    rare = BudgetSampler(space, costs, high=3)
    assert rare.count == 41 and all(costs(rare.arch(i)) <= 3 for i in range(41))  # of 8⁴⁰
    whole = BudgetSampler(space, costs)
    assert whole.count == 8**40 and whole.arch(whole.count - 1) != whole.arch(0)


@pytest.mark.parametrize("make", [own_net, small_net, lambda: spos.Supernet(make_module(), input_shape=(1, 8, 8))])
@pytest.mark.parametrize("cost", [spos.flops, spos.params])
def test_costs_of_networks(make, cost) -> None:
    net = make()
    costs = cost.table(net)
    low, high = costs.range()
    bound = (low + high) // 2
    exact = BudgetSampler(net.space, costs, high=bound)
    rng = np.random.default_rng(0)
    assert all(costs(exact.sample(rng)) <= bound for _ in range(50))
    above = BudgetSampler(net.space, costs, low=bound + 1)
    assert exact.count + above.count == net.space.size()
    if net.space.size() < 5000:
        assert exact.count == sum(costs(arch) <= bound for arch in net.space.enumerate())


def test_a_budget_that_few_meet_is_searched_at_once() -> None:
    """One in 10⁸: rejection would hardly find it."""
    net, data = small_net(), make_data()
    low, _ = spos.bitops.range(net)
    constraints = [spos.bitops <= low * 1.3]
    found = spos.profile(net, constraints)
    assert 0 < found.feasible_fraction < 1e-7 and found.draws == 0
    history = spos.evolve(net, data, constraints=constraints, config=SEARCH).history
    assert len(history) >= SEARCH.population and all(c.bitops <= low * 1.3 for c in history)


def test_bounds_that_nothing_lies_within_are_refused_up_front() -> None:
    net = spos.Supernet(make_module(), input_shape=(1, 8, 8))
    costs = sorted({spos.flops(net, arch) for arch in net.space.enumerate()})
    gap = next(a for a, b in itertools.pairwise(costs) if b - a > 2)
    with pytest.raises(spos.UnsatisfiableError, match="no architecture lies within, though custom reaches flops from"):
        spos.evolve(net, make_data(), constraints=[spos.flops >= gap + 1, spos.flops <= gap + 2], config=SEARCH)


def test_the_tightest_cost_is_drawn_from_and_the_others_are_tried() -> None:
    net = small_net()
    flops, params = (cost.table(net).range() for cost in (spos.flops, spos.params))
    loose, tight = spos.flops <= flops[1] - 1, spos.params <= params[0] + (params[1] - params[0]) // 10
    ranges, exact = reachable(net, [loose, tight])
    assert exact is not None and set(ranges) == {"flops", "params"}
    assert exact.count == BudgetSampler(net.space, spos.params.table(net), high=int(tight.bound)).count
    found = spos.profile(net, [loose, tight], draws=200)
    assert found.draws == 200 and found.feasible_fraction == pytest.approx(exact.count / net.space.size(), rel=0.05)
    assert sampler(net, []) is None
    infinite = sampler(net, [spos.flops <= float("inf")])
    assert infinite is not None and infinite.count == net.space.size()


def test_the_last_ones_within_a_budget_are_found() -> None:
    costs = table(2)
    exact = BudgetSampler(SPACE, costs, high=sorted(costs(a) for a in SPACE.enumerate())[9])
    found = draw_random(SPACE, 99, set(), lambda _: True, np.random.default_rng(0), exact)
    assert len(found) == len(set(found)) == exact.count


def test_what_cannot_be_counted_says_why() -> None:
    with pytest.raises(ValueError, match=r"counting takes .* GB: expected at most 0\.0"):
        BudgetSampler(SPACE, table(0), memory=16)
    with pytest.raises(ValueError, match="no architecture lies within the bounds"):
        BudgetSampler(SPACE, table(0), high=3).sample(np.random.default_rng(0))
    wide = SearchSpace([Decision(f"d{i}", "operator", tuple("abcdefgh")) for i in range(8)])
    chained = CostTable(wide)
    for position in range(7):
        chained.add({position: 0, position + 1: 0}, 1)
    with pytest.raises(ValueError, match=r"d0, d1, d2, d3 and others meet in 16,777,216 combinations"):
        BudgetSampler(wide, chained)
