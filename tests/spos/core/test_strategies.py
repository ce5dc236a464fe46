"""Searches that are asked and told: the paper's, aging evolution, NSGA-II and random search, driven by hand."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

import spos
from spos.nsga2 import objective_of
from spos.pareto import front
from spos.space import Arch, Decision, SearchSpace
from spos.strategies import Strategy
from spos.variation import draw_random, propose

from .channels_support import small_net
from .conftest import SEARCH, make_data, make_module
from .mixed_support import small_net as mixed_net

SPACE = SearchSpace([Decision(str(i), "operator", ("a", "b", "c", "d")) for i in range(12)])
CONFIG = spos.SearchConfig(population=20, generations=8, mutations=10, crossovers=10, parents=5, sample_size=6)
ALL = (spos.Evolution, spos.AgingEvolution, spos.RandomSearch, spos.NSGA2)


def distance(arch: Arch) -> float:
    """To be found: all 3."""
    return sum(arch) / (3 * len(arch))


def cheapness(arch: Arch) -> float:
    return float(sum(a * (i + 1) for i, a in enumerate(arch)))


def make(kind: type[Strategy], space=SPACE, config: spos.SearchConfig = CONFIG, **options) -> Strategy:
    if kind is spos.NSGA2:
        options.setdefault("objectives", ("accuracy", cheapness))
    return kind(space, config=config, **options)


@cache
def net_of_widths() -> spos.Supernet:
    """One for all tests: measuring its costs takes a second."""
    return small_net()


def drive(search: Strategy, score=distance) -> Strategy:
    while archs := search.ask():
        search.tell(archs, [score(arch) for arch in archs])
    return search


@pytest.mark.parametrize("kind", ALL)
def test_what_is_asked_for_follows_from_seed_and_scores_alone(kind) -> None:
    """Not from the order of telling, nor from asking again."""
    plain = drive(make(kind))
    assert len(plain.history) == len({t.arch for t in plain.history}) == CONFIG.evaluations
    other = make(kind)
    rng = np.random.default_rng(0)
    while archs := other.ask():
        assert other.ask() == archs
        some = [archs[i] for i in rng.permutation(len(archs))[: max(1, len(archs) // 3)]]
        other.tell(some, [distance(a) for a in some])
        assert set(other.ask()).isdisjoint(some) or other.number > 0
    assert other.history == plain.history and other.best == plain.best
    assert [t.arch for t in drive(make(kind, seed=1)).history] != [t.arch for t in plain.history]


def test_evolution_is_the_papers_and_what_it_was() -> None:
    """Written out once more: a random population, then mutations and crossovers of the best of all so far."""
    search, history = drive(make(spos.Evolution, seed=3)), {}
    for number in range(CONFIG.generations + 1):
        rng = spos.generator(3, "evolution", number)
        if number == 0:
            drawn = [(a, "random") for a in draw_random(SPACE, CONFIG.population, set(), lambda _: True, rng)]
        else:
            parents = sorted(history, key=lambda a: (-distance(a), tuple(a)))[: CONFIG.parents]
            drawn = propose(SPACE, parents, set(history), lambda _: True, CONFIG, rng)
        told = [t for t in search.history if t.generation == number]
        assert [(t.arch, t.origin) for t in told] == drawn
        history |= dict(drawn)
    assert search.best.accuracy > drive(make(spos.RandomSearch, seed=3)).best.accuracy


@pytest.mark.parametrize("method", ["evolution", "nsga2", "aging"])
def test_evolve_is_the_same_search_with_a_supernets_scores(method: str, net, data) -> None:
    config = dataclasses.replace(SEARCH, method=method, objectives=("accuracy", "params"))
    found = spos.evolve(net, data, config=config, seed=2)
    kinds = {"evolution": spos.Evolution, "nsga2": spos.NSGA2, "aging": spos.AgingEvolution}
    search = kinds[method](net, config=config, seed=2)
    scores = {c.arch: c for c in found.history}
    while archs := search.ask():
        search.tell(archs, [scores[a] for a in archs])
    assert [(t.arch, t.generation, t.origin) for t in search.history] == [
        (c.arch, c.generation, c.origin) for c in found.history
    ]
    points = [(-c.accuracy, c.params) for c in found.history]
    assert {c.arch for c in found.pareto} == {found.history[i].arch for i in front(points)}
    accuracies = [c.accuracy for c in found.pareto]
    assert accuracies == sorted(accuracies, reverse=True) and found.best.accuracy == accuracies[0]
    if method == "nsga2":
        assert {t.arch for t in search.pareto} == {c.arch for c in found.pareto}


def test_aging_evolution_changes_one_decision_of_a_living_parent() -> None:
    """With one child a generation, as in the paper: the population is the newest, whatever they score."""
    config = dataclasses.replace(CONFIG, generations=60, mutations=1, crossovers=0, population=10, sample_size=4)
    history = drive(make(spos.AgingEvolution, config=config)).history
    children = [t for t in history if t.origin == "mutation"]
    assert len(history) == 70 and len(children) > 55
    for child in children:
        alive = history[: history.index(child)][-10:]
        assert any(sum(a != b for a, b in zip(child.arch, t.arch, strict=True)) == 1 for t in alive)
    assert max(t.accuracy for t in history[-10:]) > max(t.accuracy for t in history[:10])


def test_aging_evolution_draws_tournaments() -> None:
    """The larger the sample, the better the parent: with all of them it is nearly always the best one."""

    def near_best(sample: int) -> int:
        config = dataclasses.replace(CONFIG, generations=1, mutations=40, crossovers=0, sample_size=sample)
        history = drive(make(spos.AgingEvolution, config=config)).history
        best = min(history[:20], key=lambda t: t.key).arch
        return sum(sum(a != b for a, b in zip(t.arch, best, strict=True)) == 1 for t in history[20:])

    assert near_best(200) >= 36 > 12 > near_best(1)


def test_nsga2_finds_more_of_the_front_than_random_search() -> None:
    """Of two objectives against each other, where every architecture that spends on the cheapest is on the front."""
    from spos.pareto import hypervolume

    def volume(search: Strategy) -> float:
        points = [(-t.accuracy, cheapness(t.arch)) for t in search.history]
        return hypervolume(points, (0.0, 250.0))

    found = drive(make(spos.NSGA2))
    assert volume(found) > 1.05 * volume(drive(make(spos.RandomSearch)))
    points = [found.point(t) for t in found.history]
    assert points[0] == (-found.history[0].accuracy, cheapness(found.history[0].arch))
    assert found.pareto == [found.history[i] for i in front(points)] and len(found.pareto) > 5


def test_nsga2_keeps_the_best_by_front_then_crowding() -> None:
    config = dataclasses.replace(CONFIG, population=4, generations=1, mutations=3, crossovers=0)
    search = make(spos.NSGA2, config=config, objectives=("accuracy", lambda arch: costs[arch]))
    first = search.ask()
    costs = dict(zip(first, (1.0, 2.0, 3.0, 9.0), strict=True))
    search.tell(first, [0.1, 0.2, 0.25, 0.9])
    second = search.ask()
    costs |= dict(zip(second, (9.5, 2.1, 5.0), strict=True))
    search.tell(second, [0.8, 0.21, 0.5])  # beaten by the last of the first; crowded; in between
    kept = [t.arch for t in search._survivors]
    assert kept == [first[0], first[3], second[2], first[2]]


def test_what_is_told_to_be_infeasible_comes_last() -> None:
    search = make(spos.NSGA2, config=dataclasses.replace(CONFIG, population=4, generations=1))
    archs = search.ask()
    search.tell(archs, [0.9, 0.1, 0.8, 0.2], [1.0, 0.0, 0.5, 0.0])
    assert search.best.arch == archs[3] and {t.arch for t in search.pareto} <= {archs[1], archs[3]}
    assert [t.arch for t in search._survivors][2:] == [archs[2], archs[0]]


@pytest.mark.parametrize("kind", ALL)
def test_a_tight_budget_is_searched_by_all(kind) -> None:
    """One in thousands: every candidate meets it, and children are bred, not only drawn."""
    net = net_of_widths()
    low, high = spos.flops.range(net)
    tight = spos.flops <= low + 0.06 * (high - low)
    assert spos.profile(net, [tight]).feasible_fraction < 1e-4
    options = {"objectives": ("accuracy", "params")} if kind is spos.NSGA2 else {}
    search = kind(net, constraints=[tight], config=CONFIG, **options)
    drive(search, lambda arch: -float(spos.params(net, arch)))
    assert len(search.history) == CONFIG.evaluations and all(
        tight.allows(spos.flops(net, t.arch)) for t in search.history
    )
    origins = Counter(t.origin for t in search.history)
    assert kind is spos.RandomSearch or origins["random"] < 0.35 * CONFIG.evaluations


@pytest.mark.parametrize("kind", [spos.Evolution, spos.NSGA2])
def test_children_are_repaired_where_trying_hardly_ever_meets_a_budget(kind) -> None:
    """A window of a thousandth: without repair nearly all of a generation is drawn at random."""
    net = net_of_widths()
    middle = sum(spos.flops.range(net)) / 2
    window = [spos.flops >= middle, spos.flops <= 1.001 * middle]
    drawn = []
    for repair in (True, False):
        config = dataclasses.replace(CONFIG, repair=repair, objectives=("accuracy", "params"))
        search = drive(kind(net, constraints=window, config=config), lambda arch: -float(spos.params(net, arch)))
        assert all(bound.allows(spos.flops(net, t.arch)) for t in search.history for bound in window)
        drawn.append(sum(t.origin == "random" for t in search.history) - CONFIG.population)
    assert drawn[0] < 60 < 120 < drawn[1]


def test_objectives_are_names_costs_and_functions() -> None:
    net = mixed_net()
    arch = net.space.sample(spos.generator(0, "objective"))
    assert objective_of("accuracy", net) is None
    assert objective_of("bitops", net)(arch) == objective_of(spos.bitops, net)(arch) == spos.bitops(net, arch)
    search = spos.NSGA2(
        net, objectives=("accuracy", spos.flops, "bitops"), config=dataclasses.replace(CONFIG, generations=2)
    )
    drive(search, lambda arch: 1.0)
    assert all(len(search.point(t)) == 3 for t in search.pareto)


def test_errors_name_what_is_accepted() -> None:
    with pytest.raises(TypeError, match=r"space is a str: expected a spos\.Supernet or a spos\.SearchSpace"):
        spos.Evolution("net")
    with pytest.raises(ValueError, match="constraints on a SearchSpace"):
        spos.Evolution(SPACE, constraints=[spos.flops <= 1])
    with pytest.raises(spos.UnsatisfiableError, match="flops <= 1 cannot be met"):
        spos.Evolution(net_of_widths(), constraints=[spos.flops <= 1])
    with pytest.raises(ValueError, match=r"objectives = .*: expected two or more"):
        spos.NSGA2(SPACE, objectives=("accuracy",))
    with pytest.raises(ValueError, match=r"objective 'speed': expected 'accuracy', a cost .*flops.*, or a function"):
        spos.NSGA2(net_of_widths(), objectives=("accuracy", "speed"))
    with pytest.raises(ValueError, match="objective 'flops' for a SearchSpace"):
        spos.NSGA2(SPACE)
    search = make(spos.Evolution)
    with pytest.raises(ValueError, match="nothing was told yet"):
        _ = search.best
    first, second = search.ask()[:2]
    for archs, scores, words in (
        ([first], [], "1 architectures, 0 scores and 0 violations: expected one score"),
        ([first, first], [1.0, 1.0], "was told already"),
        ([first], [float("nan")], "score nan of .*: expected a finite number"),
        ([Arch([9] * 12)], [1.0], "arch entry 9"),
    ):
        with pytest.raises(ValueError, match=words):
            search.tell(archs, scores)
    search.tell([first], [0.5])
    with pytest.raises(ValueError, match="was told already: expected one of ask"):
        search.tell([second, first], [0.5, 0.5])
    assert len(search.ask()) == CONFIG.population - 1  # nothing of a refused call is kept
    stranger = next(a for a in SPACE.enumerate() if a not in search.proposed())
    with pytest.raises(ValueError, match="was not asked for"):
        search.tell([stranger], [0.5])
    for field, value in (("method", "annealing"), ("objectives", ("accuracy",)), ("sample_size", 0)):
        with pytest.raises(ValueError, match=f"SearchConfig.{field} = "):
            spos.SearchConfig(**{field: value})


@pytest.mark.parametrize("kind", ALL)
def test_a_small_space_ends_the_search(kind) -> None:
    space = SearchSpace([*SPACE.decisions[:2], Decision("one", "operator", ("only",))])
    search = drive(make(kind, space, allowed=lambda arch: arch[0] != 2))
    assert {t.arch for t in search.history} == {a for a in space.enumerate() if a[0] != 2}
    assert search.ask() == [] and [t.generation for t in search.history] == sorted(t.generation for t in search.history)
    assert all(b.generation - a.generation <= 1 for a, b in pairwise(search.history))


def scored_by_hash(net, archs, calibration, validation, *, on_score, **_) -> None:
    images = sum(len(y) for _, y in validation)
    for arch in archs:
        digest = int(hashlib.sha256(str(tuple(arch)).encode()).hexdigest(), 16)
        on_score(arch, spos.Score(digest % 97 / 97, 1.0, 1.0, images))


def test_the_front_is_in_the_result_of_a_run(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("spos.evolution.evaluate_population", scored_by_hash)
    net = spos.Supernet(make_module(), input_shape=(1, 8, 8))
    found = spos.evolve(net, make_data(), config=SEARCH, run=tmp_path)
    with spos.RunDirectory.open(tmp_path, read_only=True) as run:
        result = run.read_json("result")
    assert result["objectives"] == ["accuracy", "flops"]
    assert [tuple(arch) for arch in result["pareto"]] == [c.arch for c in found.pareto]


@pytest.mark.parametrize("kind", ALL)
def test_constraints_that_cannot_be_met_together_are_said(kind: type[Strategy]) -> None:
    net = spos.Supernet(make_module(), input_shape=(1, 8, 8))
    (least, _), (_, most) = spos.flops.range(net), spos.params.range(net)
    constraints = [spos.flops <= least, spos.params >= most]
    search = kind(net, constraints=constraints, config=dataclasses.replace(SEARCH, population=4))
    with pytest.raises(spos.UnsatisfiableError, match=r"none of 2,000 random .* reaches flops from .*; params from"):
        search.ask()
    nobody = make(kind, allowed=lambda arch: False)
    with pytest.raises(spos.UnsatisfiableError, match=r"allowed: none of .* random architectures meets this$"):
        nobody.ask()


@pytest.mark.parametrize("score", [None, "0.5", [0.5]])
def test_a_score_is_a_number(score: object) -> None:
    search = make(spos.Evolution)
    archs = search.ask()
    with pytest.raises(TypeError, match=r"score .* of Arch\(.*: expected a number or a Score"):
        search.tell(archs, [score] * len(archs))
