"""A search takes over what another has scored, of the same supernet on the same images, and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os

import pytest
from torch import nn

import spos
from spos.identity import identity_of
from spos.run_directory import RunDirectoryError
from spos.score_store import scores_of

from .conftest import SEARCH, make_data, make_module

MORE = dataclasses.replace(SEARCH, population=6)


def supernet() -> spos.Supernet:
    return spos.Supernet(make_module(), input_shape=(1, 8, 8))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[spos.Arch]:
    """Which architectures are evaluated."""
    found: list[spos.Arch] = []
    plain = spos.evaluate_population

    def evaluate(net, archs, *arguments, **keywords):
        found.extend(archs)
        return plain(net, archs, *arguments, **keywords)

    monkeypatch.setattr("spos.evolution.evaluate_population", evaluate)
    return found


def facts(history) -> list[tuple]:
    return [(c.index, c.generation, c.arch, c.accuracy, c.top5, c.loss, c.flops, c.origin) for c in history]


def test_a_search_of_another_budget_scores_only_what_is_new(tmp_path, scored) -> None:
    first = spos.evolve(supernet(), make_data(), config=MORE, run=tmp_path / "a")
    low, high = spos.flops.range(supernet())
    budget = [spos.flops <= (low + high) / 2]
    alone = spos.evolve(supernet(), make_data(), config=MORE, constraints=budget)
    scored.clear()
    second = spos.evolve(
        supernet(), make_data(), config=MORE, constraints=budget, run=tmp_path / "b", reuse=[tmp_path / "a"]
    )
    known = {c.arch for c in first.history}
    assert {c.arch: (c.accuracy, c.loss) for c in second.history} == {
        c.arch: (c.accuracy, c.loss) for c in alone.history
    }
    assert [c.arch for c in second.history if c.reused] == [c.arch for c in second.history if c.arch in known] != []
    assert set(scored) == {c.arch for c in second.history} - known
    assert second.best.arch == alone.best.arch and all(c.seconds == 0 for c in second.history if c.reused)
    records = [json.loads(line) for line in (tmp_path / "b" / "evolution.jsonl").read_text().splitlines()]
    assert [r["reused"] for r in records] == [c.reused for c in second.history]
    scored.clear()  # what is recorded is enough to go on, whatever became of the other search
    (tmp_path / "a" / "evolution.jsonl").unlink()
    again = spos.evolve(
        supernet(), make_data(), config=MORE, constraints=budget, run=tmp_path / "b", reuse=[tmp_path / "a"]
    )
    assert again == second and scored == []


def test_random_search_in_the_same_run_takes_over_too(tmp_path, scored) -> None:
    first = spos.evolve(supernet(), make_data(), config=MORE, run=tmp_path)
    scored.clear()
    second = spos.random_search(supernet(), make_data(), config=MORE, run=tmp_path)
    assert {c.arch for c in second.history if c.reused} == {c.arch for c in first.history} & {
        c.arch for c in second.history
    }
    assert len(scored) + sum(c.reused for c in second.history) == len(second.history)


@pytest.mark.parametrize("difference", ["weights", "data", "calibration", "validation", "batch", "seed", "versions"])
def test_scores_of_another_supernet_or_other_images_are_not_taken_over(difference, tmp_path, scored) -> None:
    net, config, seed, data = supernet(), MORE, 0, make_data()
    spos.evolve(net, data, config=config, run=tmp_path / "a")
    scored.clear()
    if difference == "weights":
        next(net.parameters()).data.add_(1)
    elif difference == "data":
        data = make_data(images=300)
    elif difference == "calibration":
        config = dataclasses.replace(config, calibration_images=32)
    elif difference == "validation":
        config = dataclasses.replace(config, validation_images=30)
    elif difference == "batch":
        config = dataclasses.replace(config, eval_batch_size=16)
    elif difference == "seed":
        seed = 1
    else:
        path = tmp_path / "a" / "scoring.json"
        path.write_text(path.read_text().replace('"torch": "', '"torch": "old-'))
    found = spos.evolve(net, data, config=config, seed=seed, reuse=[tmp_path / "a", tmp_path / "none"])
    assert not any(c.reused for c in found.history) and len(scored) == len(found.history)


def test_a_search_killed_between_taken_over_scores_goes_on(tmp_path, scored) -> None:
    """Whichever records were written: the rest is taken over or scored, in the same order."""
    spos.evolve(supernet(), make_data(), config=SEARCH, run=tmp_path / "a")
    config = dataclasses.replace(MORE, mutations=1)

    def search():
        return spos.evolve(supernet(), make_data(), config=config, run=tmp_path / "b", reuse=[tmp_path / "a"])

    whole = search()
    assert 0 < sum(c.reused for c in whole.history) < len(whole.history)
    lines = (tmp_path / "b" / "evolution.jsonl").read_text().splitlines(keepends=True)
    for count in range(len(lines)):
        (tmp_path / "b" / "evolution.jsonl").write_text("".join(lines[:count]) + lines[count][:9])
        assert facts(search().history) == facts(whole.history)


def test_a_search_without_a_record_of_how_it_scored_has_no_scores(tmp_path) -> None:
    spos.evolve(supernet(), make_data(), config=SEARCH, run=tmp_path)
    scoring = json.loads((tmp_path / "scoring.json").read_text())
    assert len(scores_of([tmp_path], scoring)) == SEARCH.evaluations
    (tmp_path / "scoring.json").unlink()
    assert scores_of([tmp_path], scoring) == {}


def hold(path: str, ready, go) -> None:
    with spos.RunDirectory.open(path):
        ready.set()
        go.wait(60)


def test_two_searches_on_one_run_directory_are_refused(tmp_path) -> None:
    spos.evolve(supernet(), make_data(), config=SEARCH, run=tmp_path)
    context = multiprocessing.get_context("fork")
    ready, go = context.Event(), context.Event()
    other = context.Process(target=hold, args=(str(tmp_path), ready, go))
    other.start()
    try:
        assert ready.wait(60)
        for search in (spos.evolve, spos.random_search):
            with pytest.raises(RunDirectoryError, match=f"in use by process {other.pid}"):
                search(supernet(), make_data(), config=SEARCH, run=tmp_path)
    finally:
        go.set()
        other.join()
    assert os.path.exists(tmp_path / "result.json")
    spos.random_search(supernet(), make_data(), config=SEARCH, run=tmp_path)


def with_activation(kind: type[nn.Module]) -> spos.Supernet:
    """Networks of equal weights and spaces that compute different things."""
    module = make_module()
    module.head.insert(0, kind())  # type: ignore[union-attr, operator]
    return spos.Supernet(module, input_shape=(1, 8, 8))


def test_scores_of_another_network_are_not_taken_over(tmp_path) -> None:
    spos.evolve(with_activation(nn.ReLU), make_data(), config=MORE, run=tmp_path / "a")
    alone = spos.evolve(with_activation(nn.Tanh), make_data(), config=MORE)
    second = spos.evolve(with_activation(nn.Tanh), make_data(), config=MORE, run=tmp_path / "b", reuse=[tmp_path / "a"])
    assert facts(second.history) == facts(alone.history) and not any(c.reused for c in second.history)
    with pytest.raises(RunDirectoryError, match="another network"):
        spos.evolve(with_activation(nn.Tanh), make_data(), config=MORE, run=tmp_path / "a")


@pytest.mark.parametrize("what", ["threads", "device"])
def test_scores_whose_last_digits_may_differ_are_not_taken_over(tmp_path, what: str) -> None:
    spos.evolve(supernet(), make_data(), config=MORE, run=tmp_path / "a")
    scoring = json.loads((tmp_path / "a" / "scoring.json").read_text())
    assert scores_of([tmp_path / "a"], scoring) and not scores_of([tmp_path / "a"], {**scoring, what: "other"})


def test_what_is_found_later_elsewhere_changes_nothing(tmp_path) -> None:
    """A search that was interrupted goes on with the scores that it took over when it began."""

    class Stop(Exception):
        pass

    def stop(_: str, done: int, *__: object) -> None:
        if done >= 8:
            raise Stop

    whole = spos.evolve(supernet(), make_data(), config=MORE, run=tmp_path / "whole", reuse=[tmp_path / "b"])
    with pytest.raises(Stop):
        spos.evolve(supernet(), make_data(), config=MORE, run=tmp_path / "a", reuse=[tmp_path / "b"], progress=stop)
    spos.evolve(supernet(), make_data(), config=dataclasses.replace(MORE, population=12), run=tmp_path / "b")
    resumed = spos.evolve(supernet(), make_data(), config=MORE, run=tmp_path / "a", reuse=[tmp_path / "b"])
    assert facts(resumed.history) == facts(whole.history) and not any(c.reused for c in resumed.history)


def test_a_run_from_before_a_setting_was_there_goes_on(tmp_path) -> None:
    """What the run was started with says nothing of racing; it is off."""
    later = [field.name for field in dataclasses.fields(spos.SearchConfig) if field.metadata.get("later")]
    assert later == ["racing"]
    settings = dataclasses.asdict(MORE)
    del settings["racing"]
    text = json.dumps([settings, 0], sort_keys=True)
    identity = identity_of(MORE, 0, make_data())
    assert identity["config"] == hashlib.sha256(text.encode()).hexdigest()
    assert identity_of(dataclasses.replace(MORE, racing=0.9), 0, make_data())["config"] != identity["config"]
