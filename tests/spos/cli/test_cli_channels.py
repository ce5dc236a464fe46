"""Channel search from the command line: settings of the space, readable labels, the drawing of widths."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spos import config_file
from spos.run_folder import RunFolder

Command = Callable[..., Any]  # see conftest.py


def settings(**values: object) -> tuple[str, ...]:
    """The options of `section__key=value`."""
    return tuple(w for key, value in values.items() for w in ("--set", f"{key.replace('__', '.')}={value}"))


SPACE = ("--space", "shufflenet-oneshot-channels-small", *settings(data__image_size=8, data__crop_padding=1))
STEPS = settings(train__steps=4, train__batch_size=8, train__lr=0.05, train__log_every=1)
STEPS += settings(retrain__steps=2, retrain__batch_size=8, retrain__calibration_images=16)
BUDGET = ("--population", "4", "--generations", "1")
BUDGET += settings(search__mutations=2, search__crossovers=2, search__calibration_images=8)


def test_from_training_to_the_report(spos: Command, images: Path, tmp_path: Path) -> None:
    widths = settings(space__operators='["choice_x","choice_5"]', space__widths="[1.0, 0.5]")
    warmup = settings(train__width_warmup=0.5, train__width_widening=0.25)
    outcome = spos("train", "run", "--data", images, *SPACE, *widths, *STEPS, *warmup)
    assert outcome.status == 0, outcome.err
    assert "shufflenet-oneshot-channels-small, 16 decisions, 65,536 architectures" in outcome.out
    kept = config_file.load("run/supernet.toml")
    assert kept.space.operators == ("choice_x", "choice_5") and kept.space.widths == (1.0, 0.5)
    records = [json.loads(line) for line in Path("run/supernet/train.jsonl").read_text().splitlines()]
    assert [r["arch"][1::2] for r in records[:2]] == [[1] * 8] * 2

    assert "FLOPs" in spos("search", "run", *BUDGET, "--max-flops", "2e6").out
    best = json.loads(Path("run/search/result.json").read_text())["best"]
    assert best["flops"] <= 2e6
    outcome = spos("latency", "run", "--batch", 1, "--rounds", 1, "--check", 3)
    assert outcome.status == 0, outcome.err
    assert re.search(r"8 blocks, 32 times for 1 images, \d+ threads. Networks, in float on the", outcome.out)
    outcome = spos("search", "run", *BUDGET, "--label", "little", "--max-memory", 9000, "--max-flops", 1e7)
    assert outcome.status == 0, outcome.err
    said = r"budget: peak_memory <= 9000: shufflenet-oneshot-channels-small reaches [\d,]+ to [\d,]+, exactly 0\.\d+ of"
    assert re.search(said, outcome.out) and "random draws meet them at a rate of 1" in outcome.out, outcome.out
    result = json.loads(Path("run/search-little/result.json").read_text())
    assert result["constraints"] == ["flops <= 10000000", "peak_memory <= 9000"]
    outcome = spos("search", "run", *BUDGET, "--label", "none", "--max-memory", 10)
    assert outcome.status == 2 and "peak_memory <= 10 cannot be met" in outcome.err
    outcome = spos("search", "run", *BUDGET, "--label", "fast", "--max-latency", 1000)
    assert re.search(r"latency of 1 images: [\d.]+ ms predicted, [\d.]+ ms measured now", outcome.out), outcome.err
    out = spos("retrain", "run").out
    operators = " ".join(("choice_5", "choice_x")[i] for i in best["arch"][::2])
    ratios = " ".join(("0.5", "1.0")[i] for i in best["arch"][1::2])
    assert f"operator: {operators}\n" in out and f"width: {ratios}\n" in out

    assert spos("report", "run").status == 0
    page = html.unescape((tmp_path / "run" / "report.html").read_text())
    names = [d["name"] for d in RunFolder("run").space()["decisions"]]
    assert names[:2] == ["features.0", "features.0.width"]
    svg = page[page.index('<svg class="architecture"') : page.index('<ul class="legend">')]
    assert len(re.findall("<rect", svg)) == 8  # a box for each block, the width inside of it
    for block, (operator, ratio) in enumerate(zip(operators.split(), ratios.split(), strict=True)):
        assert f"features.{block}: {operator}; features.{block}.width: {ratio}, " in svg
    assert svg.count(">0.5</text>") == ratios.split().count("0.5")


def test_bad_settings_of_widths(spos: Command, images: Path) -> None:
    for setting, words in (
        ("space.widths=1.0", "space.widths = 1.0: expected a list"),
        ('space.widths=["wide"]', "space.widths = 'wide': expected a number"),
        ('space.operators=["choice_4"]', "operators has 'choice_4': expected some of choice_3"),
        ("train.width_warmup=2", "train.width_warmup = 2.0: expected a fraction"),
    ):
        outcome = spos("train", "run", "--data", images, *SPACE, *STEPS, "--set", setting)
        assert outcome.status == 2 and words in outcome.err, outcome.err
    plain = ("--space", "shufflenet-oneshot-small", *SPACE[2:])
    for setting, words in (
        ("space.widths=[1.0]", "only shufflenet-oneshot-channels"),
        ("train.width_warmup=0.5", 'the space has no decision of the kind "width"'),
    ):
        outcome = spos("train", "plain", "--data", images, *plain, *STEPS, "--set", setting)
        assert outcome.status == 2 and words in outcome.err, outcome.err


def test_spaces_are_listed(spos: Command) -> None:
    assert re.search(r"shufflenet-oneshot-channels: 40 decisions, 1\.10e\+32 architectures", spos("info").out)
