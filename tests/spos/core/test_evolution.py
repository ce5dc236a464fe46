from __future__ import annotations

import dataclasses
import re
from collections import Counter

import numpy as np
import pytest

import spos
from spos.evolution import rank
from spos.space import Decision, SearchSpace
from spos.variation import crossover, draw_random, mutate, propose

from .conftest import SEARCH

SPACE = SearchSpace([Decision(str(i), "operator", ("a", "b", "c", "d")) for i in range(20)])


def anything(arch) -> bool:
    return True


def config(**changes) -> spos.SearchConfig:
    return dataclasses.replace(SEARCH, **changes)


def test_defaults_are_the_papers():
    settings = spos.SearchConfig()
    assert (settings.population, settings.generations, settings.mutations, settings.crossovers) == (50, 20, 25, 25)
    assert (settings.parents, settings.mutation_probability, settings.evaluations) == (10, 0.1, 1050)


def test_mutation_redraws_each_decision_with_its_probability():
    rng = np.random.default_rng(0)
    parent = SPACE.sample(rng)
    changed = [sum(a != b for a, b in zip(mutate(parent, SPACE, rng, 0.1), parent, strict=True)) for _ in range(4000)]
    assert np.mean(changed) == pytest.approx(20 * 0.1 * 3 / 4, rel=0.05)  # a redraw hits the old option in 1 of 4
    everywhere = Counter(mutate(parent, SPACE, rng, 1.0)[7] for _ in range(4000))
    assert min(everywhere.values()) > 850


def test_crossover_takes_each_decision_from_either_parent():
    rng = np.random.default_rng(0)
    one, other = SPACE.arch([0] * 20), SPACE.arch([1] * 20)
    children = np.array([crossover(one, other, rng) for _ in range(2000)])
    assert np.allclose(children.mean(0), 0.5, atol=0.05) and crossover(one, one, rng) == one


def test_a_generation_has_the_asked_numbers_and_no_duplicates():
    rng = np.random.default_rng(0)
    parents = [SPACE.sample(rng) for _ in range(10)]
    seen = {SPACE.sample(rng) for _ in range(100)} | set(parents)
    even = [a for a in (SPACE.sample(rng) for _ in range(300)) if sum(a) % 2 == 0]
    children = propose(SPACE, parents, seen, lambda a: sum(a) % 2 == 0, spos.SearchConfig(), rng)
    archs = [a for a, _ in children]
    assert Counter(o for _, o in children) == {"mutation": 25, "crossover": 25} and len(even) > 100
    assert len(set(archs)) == 50 and not seen & set(archs) and all(sum(a) % 2 == 0 for a in archs)


def test_what_operators_cannot_deliver_is_filled_at_random():
    rng = np.random.default_rng(0)
    parent = SPACE.sample(rng)
    children = propose(SPACE, [parent], {parent}, anything, spos.SearchConfig(), rng)
    origins = Counter(o for _, o in children)
    assert len(children) == 50 and origins["crossover"] == 0 and origins["random"] >= 25


def test_a_small_space_is_exhausted_exactly_and_then_the_search_ends():
    space = SearchSpace(SPACE.decisions[:3])
    rng = np.random.default_rng(0)
    allowed = [a for a in space.enumerate() if a[0] != 2]
    found = draw_random(space, 60, set(), lambda a: a[0] != 2, rng)
    assert sorted(found) == allowed
    assert draw_random(space, 5, set(found), lambda a: a[0] != 2, rng) == []
    rare = draw_random(SearchSpace(SPACE.decisions[:8]), 1, set(), lambda a: a == (3,) * 8, rng)
    assert rare == [(3,) * 8]


def test_random_draws_are_uniform_among_the_allowed():
    space = SearchSpace(SPACE.decisions[:2])
    rng = np.random.default_rng(0)
    counts = Counter(draw_random(space, 1, set(), lambda a: sum(a) < 5, rng)[0] for _ in range(6500))
    assert len(counts) == 13 and sum((n - 500) ** 2 / 500 for n in counts.values()) < 32.9  # 99.9%, 12 degrees


def test_rank_is_by_accuracy_then_loss():
    def candidate(index, accuracy, loss):
        return spos.Candidate(index, 0, spos.Arch((index,)), accuracy, 1.0, loss, 0, 0, "random", 0.0)

    worst, tie, best, second = (
        candidate(0, 0.1, 0.0),
        candidate(1, 0.5, 2.0),
        candidate(2, 0.9, 9.0),
        candidate(3, 0.5, 1.0),
    )
    assert rank([worst, tie, best, second]) == [best, second, tie, worst]


def test_search_scores_every_generation_and_returns_the_best_of_all(net, data):
    result = spos.evolve(net, data, config=SEARCH)
    history = result.history
    assert [c.index for c in history] == list(range(SEARCH.evaluations)) and len({c.arch for c in history}) == 10
    assert Counter(c.generation for c in history) == {0: 4, 1: 3, 2: 3}
    assert result.best == rank(history)[0] and result.top == tuple(rank(history)[:2])
    scores = spos.evaluate_population(
        net, [c.arch for c in history], data.calibration_batches(48, 128, 0), data.validation_batches(0, 128, 0)
    )
    assert [(s.accuracy, s.loss) for s in scores] == [(c.accuracy, c.loss) for c in history]
    assert all(c.flops == spos.flops(net, c.arch) and c.params == spos.params(net, c.arch) for c in history)


def test_the_last_generation_counts(net, data, monkeypatch):
    """A candidate that is best and comes last is the one returned."""
    scored = []

    def evaluate(net, archs, calibration, validation, *, on_score, **_):
        for arch in archs:
            scored.append(arch)
            on_score(arch, spos.Score(len(scored) / 100, 1.0, 1.0, 10))

    monkeypatch.setattr("spos.evolution.evaluate_population", evaluate)
    result = spos.evolve(net, data, config=SEARCH)
    assert result.best.arch == scored[-1] and result.best.generation == SEARCH.generations


def test_parents_are_the_best_of_all_generations_so_far(net, data, monkeypatch):
    parents = []
    plain = propose

    def spy(space, given, *rest):
        parents.append(tuple(given))
        return plain(space, given, *rest)

    monkeypatch.setattr("spos.strategies.propose", spy)
    result = spos.evolve(net, data, config=SEARCH)
    for number, given in enumerate(parents):
        before = [c for c in result.history if c.generation <= number]
        assert given == tuple(c.arch for c in rank(before)[:2])
    assert len(parents) == 2


def test_budgets_hold_for_every_candidate(net, data):
    low, high = spos.flops.table(net).range()
    bound, floor = (low + high) // 2, spos.params.table(net).range()[0] + 1
    for search in (spos.evolve, spos.random_search):
        result = search(net, data, constraints=[spos.flops <= bound, spos.params >= floor], config=SEARCH)
        assert all(spos.flops(net, c.arch) <= bound and spos.params(net, c.arch) >= floor for c in result.history)
        as_settings = search(net, data, config=config(max_flops=bound, min_params=floor))
        assert [c.arch for c in as_settings.history] == [c.arch for c in result.history]


def test_unsatisfiable_budgets_are_refused_before_anything_runs(net, data, tmp_path, monkeypatch):
    monkeypatch.setattr("spos.evolution.evaluate_population", None)
    low, high = spos.flops.table(net).range()
    with pytest.raises(spos.UnsatisfiableError, match=f"reaches flops from {low:,} to {high:,}"):
        spos.evolve(net, data, constraints=[spos.flops <= low - 1], config=SEARCH, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    _, most = spos.params.table(net).range()
    with pytest.raises(spos.UnsatisfiableError, match="none of 2,000 random architectures meets this"):
        spos.evolve(net, data, constraints=[spos.flops <= low, spos.params >= most], config=SEARCH)


def test_search_stops_when_the_space_is_exhausted(net, data):
    result = spos.evolve(net, data, config=config(generations=30))
    assert sorted(c.arch for c in result.history) == list(net.space.enumerate())


def test_random_search_has_the_same_budget_and_other_draws(net, data):
    result = spos.random_search(net, data, config=SEARCH)
    assert len({c.arch for c in result.history}) == SEARCH.evaluations
    assert {c.origin for c in result.history} == {"random"}
    again = spos.random_search(net, data, config=SEARCH)
    assert [c.arch for c in again.history] == [c.arch for c in result.history]
    other = spos.random_search(net, data, config=SEARCH, seed=1)
    assert [c.arch for c in other.history] != [c.arch for c in result.history]


def test_both_searches_share_a_run_and_a_finished_one_is_not_run_again(net, data, tmp_path, monkeypatch):
    first = spos.evolve(net, data, config=SEARCH, run=tmp_path)
    second = spos.random_search(net, data, config=SEARCH, run=tmp_path)
    monkeypatch.setattr("spos.evolution.evaluate_population", lambda *a, **k: None)
    assert spos.evolve(net, data, config=SEARCH, run=tmp_path) == first
    assert spos.random_search(net, data, config=SEARCH, run=tmp_path) == second
    with spos.RunDirectory.open(tmp_path, read_only=True) as run:
        assert run.read_json("result")["best"]["arch"] == list(first.best.arch)
        assert run.read_json("result-random")["evaluations"] == SEARCH.evaluations


def test_another_search_is_not_continued(net, data, tmp_path):
    spos.evolve(net, data, config=SEARCH, run=tmp_path)
    with pytest.raises(ValueError, match="another config"):
        spos.evolve(net, data, config=SEARCH, seed=1, run=tmp_path)
    with pytest.raises(ValueError, match="another constraints"):
        spos.evolve(net, data, constraints=[spos.flops <= 1e9], config=SEARCH, run=tmp_path)
    net.module.stem[0].weight.data.add_(1)
    with pytest.raises(ValueError, match="another weights"):
        spos.evolve(net, data, config=SEARCH, run=tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("population", 0),
        ("population", 2.5),
        ("population", True),
        ("mutation_probability", 0.0),
        ("mutation_probability", None),
        ("parents", "ten"),
        ("parents", 0),
        ("generations", -1),
        ("generations", 1.5),
        ("eval_batch_size", 1.5),
        ("calibration_images", "all"),
        ("repair", "no"),
        ("racing", 0.3),
        ("racing", "0.99"),
        ("objectives", ("accuracy", "speed")),
        ("objectives", ("accuracy", ["flops"])),
        ("max_flops", -1.0),
        ("max_flops", None),
        ("min_latency", "1"),
    ],
)
def test_bad_settings_are_named(field, value):
    with pytest.raises(ValueError, match=re.escape(f"SearchConfig.{field} = {value!r}: expected")):
        config(**{field: value})


@pytest.mark.parametrize("method", ["evolution", "nsga2", "aging"])
@pytest.mark.parametrize(("objective", "message"), [("latency", "no table of latencies"), ("bitops", "no quantized")])
def test_an_objective_that_is_not_known_is_said_first(monkeypatch, net, data, method, objective, message):
    monkeypatch.setattr("spos.evolution.evaluate_population", lambda *_, **__: pytest.fail("scored something"))
    with pytest.raises(ValueError, match=message):
        spos.evolve(net, data, config=config(method=method, objectives=("accuracy", objective)))


def test_a_seed_may_be_numpys(net, data, tmp_path):
    by_numpy = spos.evolve(net, data, config=SEARCH, seed=np.int64(3), run=tmp_path)
    assert by_numpy.best.arch == spos.evolve(net, data, config=SEARCH, seed=3).best.arch
