"""Racing drops a candidate when it is as clear as was asked for, and changes nothing of those that stay."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from math import comb

import numpy as np
import pytest
import torch
from torch import nn

import spos
from spos.prefix_sharing import Trie
from spos.score_store import SCORING

from .conftest import SEARCH, TRAIN, make_data, make_module

RACING = dataclasses.replace(
    SEARCH, population=12, generations=4, mutations=4, crossovers=4, validation_images=0, eval_batch_size=10, racing=0.9
)


def deep_module(width: int = 6) -> nn.Module:
    """A chain with 4^5 paths, of which some are far better than others."""

    def conv(kernel: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(width))

    def block() -> spos.ChoiceBlock:
        return spos.ChoiceBlock({"conv3": conv(3), "conv1": conv(1), "relu": nn.ReLU(), "skip": nn.Identity()})

    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))
    return nn.Sequential(stem, *(block() for _ in range(5)), head)


@pytest.fixture(scope="module")
def trained() -> spos.Supernet:
    net = spos.Supernet(deep_module(), input_shape=(1, 8, 8))
    spos.train_supernet(net, make_data(), config=dataclasses.replace(TRAIN, steps=12))
    return net


@pytest.fixture
def data() -> spos.Data:
    return make_data(images=1200)


@pytest.mark.parametrize(("batches", "bar"), [([5] * 8, 0.5), ([7, 7, 7, 7, 2], 0.9), ([16, 16], 0.05), ([9], 0.5)])
def test_limits_are_the_exact_tails(batches: list[int], bar: float) -> None:
    images, confidence = sum(batches), 0.9
    share, good = (1 - confidence) / max(1, len(batches) - 1), int(np.ceil(bar * images))
    limits = spos.Race(bar, confidence).limits(batches)
    assert limits[-1] == -1 and len(limits) == len(batches)

    def tail(drawn: int, x: int) -> float:
        ways = sum(comb(good, i) * comb(images - good, drawn - i) for i in range(x + 1) if drawn - i <= images - good)
        return ways / comb(images, drawn)

    for seen, limit in zip(itertools.accumulate(batches[:-1]), limits, strict=False):
        assert tail(seen, limit) <= share < tail(seen, limit + 1)


def test_a_candidate_that_reaches_the_bar_is_dropped_as_seldom_as_promised() -> None:
    rng, batches, confidence = np.random.default_rng(0), [16] * 10, 0.9
    race, bounds = spos.Race(0.5, confidence), np.arange(0, 160, 16)

    def dropped(right: int) -> float:
        limits = np.array(race.limits(batches))
        lost = 0
        for _ in range(2000):
            answers = rng.permutation(np.arange(160) < right)
            lost += bool((np.cumsum(np.add.reduceat(answers.astype(int), bounds)) <= limits).any())
        return lost / 2000

    assert 0 < dropped(80) <= 1 - confidence + 0.02
    assert dropped(40) > 0.99


@pytest.mark.parametrize("share", [True, False])
def test_those_that_stay_score_as_ever(trained: spos.Supernet, data: spos.Data, share: bool) -> None:
    rng = spos.generator(0, "archs")
    archs = list({trained.space.sample(rng): None for _ in range(14)})
    batches = data.calibration_batches(48, 16, 0), data.validation_batches(0, 10, 0)
    whole = spos.evaluate_population(trained, archs, *batches)
    bar = float(np.median([s.accuracy for s in whole]))
    raced = spos.evaluate_population(trained, archs, *batches, race=spos.Race(bar, 0.9), share_prefixes=share)
    assert 0 < sum(one.images < full.images for one, full in zip(raced, whole, strict=True)) < len(archs)
    for one, full in zip(raced, whole, strict=True):
        assert one == full if one.images == full.images else one.accuracy < bar


def test_dropped_candidates_are_not_run_any_more(data: spos.Data) -> None:
    net = spos.Supernet(make_module(), input_shape=(1, 8, 8)).eval()
    archs = [(a, b, c) for a in range(3) for b in range(2) for c in range(2)]
    trie = Trie(net, [net.space.arch(a) for a in archs])
    x = data.validation_batches(10, 10, 0)[0][0]
    trie.drop({i for i, arch in enumerate(archs) if arch[0] != 1 or arch[1] == 1})
    ends: list[int] = []
    trie.walk(x, lambda candidates, _: ends.extend(candidates))
    assert [archs[i] for i in ends] == [(1, 0, 0), (1, 0, 1)]
    assert trie.passes == 1 + 1 + 1 + 2
    trie.drop(set(ends))
    trie.walk(x, lambda *_: pytest.fail("nothing is left"))


def test_a_search_keeps_its_best_and_says_what_it_saved(trained: spos.Supernet, data: spos.Data, tmp_path) -> None:
    raced = spos.evolve(trained, data, config=RACING, run=tmp_path)
    plain = spos.evolve(trained, data, config=dataclasses.replace(RACING, racing=0.0))
    total = len(data.validation)
    assert {c.images for c in plain.history} == {total}
    dropped = [c for c in raced.history if c.images != total]
    assert dropped and all(c.generation > 0 for c in dropped)
    assert [c.arch for c in raced.top] == [c.arch for c in plain.top]
    assert not {c.arch for c in dropped} & {c.arch for c in raced.pareto}
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["dropped"] == len(dropped)
    assert result["validation_share"] == pytest.approx(np.mean([c.images for c in raced.history]) / total)


def test_a_race_goes_on_where_it_was_stopped(trained: spos.Supernet, data: spos.Data, tmp_path) -> None:
    whole = spos.evolve(trained, data, config=RACING, run=tmp_path / "whole")
    lines = (tmp_path / "whole" / "evolution.jsonl").read_bytes().splitlines(keepends=True)
    for kept in (0, 11, 17, 30):
        folder = tmp_path / str(kept)
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "result.json").unlink()
        (folder / "evolution.jsonl").write_bytes(b"".join(lines[:kept]))
        again = spos.evolve(trained, data, config=RACING, run=folder)
        assert [dataclasses.replace(c, seconds=0) for c in again.history] == [
            dataclasses.replace(c, seconds=0) for c in whole.history
        ]


def test_other_searches_take_over_whole_scores_only(trained: spos.Supernet, data: spos.Data, tmp_path) -> None:
    raced = spos.evolve(trained, data, config=RACING, run=tmp_path / "raced")
    again = spos.evolve(
        trained,
        data,
        config=dataclasses.replace(RACING, racing=0.0),
        run=tmp_path / "plain",
        reuse=[tmp_path / "raced"],
    )
    total = len(data.validation)
    assert (tmp_path / "raced" / f"{SCORING}.json").exists()
    assert any(c.reused for c in again.history) and {c.images for c in again.history} == {total}
    partial = {c.arch for c in raced.history if c.images != total}
    assert partial and not partial & {c.arch for c in again.history if c.reused}


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"racing": 1.0}, "racing = 1.0: expected a confidence from 0.5, below 1"), ({"racing": -0.1}, "racing"),
     ({"racing": 0.9, "method": "nsga2"}, "racing = 0.9: expected 0, because method = 'nsga2'")],
)  # fmt: skip
def test_what_no_race_is_about_is_refused(changes: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        spos.SearchConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("bar", "confidence"), [(1.5, 0.9), (0.5, 1.0), (float("nan"), 0.9)])
def test_a_race_says_what_it_expects(bar: float, confidence: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        spos.Race(bar, confidence)
