"""Mixed precision from the command line: budgets of bit operations, uniform rows, bits in what is shown."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spos import config_file
from spos.run_folder import RunFolder

Command = Callable[..., Any]  # see conftest.py


def settings(**values: object) -> tuple[str, ...]:
    """The options of `section__key=value`."""
    return tuple(w for key, value in values.items() for w in ("--set", f"{key.replace('__', '.')}={value}"))


SPACE = ("--space", "resnet-mixed-small", *settings(data__image_size=8, data__crop_padding=1))
STEPS = settings(train__steps=4, train__batch_size=8, train__lr=0.05, train__log_every=1)
STEPS += settings(retrain__steps=2, retrain__batch_size=8, retrain__calibration_images=16)
BUDGET = ("--population", "4", "--generations", "1")
BUDGET += settings(search__mutations=2, search__crossovers=2, search__calibration_images=8)


def test_from_training_to_the_report(spos: Command, images: Path, tmp_path: Path) -> None:
    options = settings(space__bits='["w2a2","w1a4","w4a4"]', space__share_clip="true", space__initial_clip=3)
    outcome = spos("train", "run", "--data", images, *SPACE, *STEPS, *options)
    assert outcome.status == 0, outcome.err
    assert "resnet-mixed-small, 16 decisions, 4.30e+07 architectures" in outcome.out
    kept = config_file.load("run/supernet.toml").space
    assert (kept.bits, kept.share_clip, kept.initial_clip) == (("w2a2", "w1a4", "w4a4"), True, 3.0)

    budget = 0.006
    out = spos("search", "run", *BUDGET, "--max-bitops", budget).out
    best = json.loads(Path("run/search/result.json").read_text())["best"]
    assert 0 < best["bitops"] <= budget and f"{best['bitops']:.4g} G bit operations" in out
    labels = [("w2a2", "w1a4", "w4a4")[i] for i in best["arch"][::2]]
    assert f"bits: {' '.join(labels)}\n" in out

    out = spos("retrain", "run", "--random-archs", 1).out
    assert f"best: architecture {','.join(map(str, best['arch']))}" in out and "random-1: test accuracy" in out
    near = json.loads(Path("run/retrain-random-1.json").read_text())["bitops"]
    assert near == pytest.approx(best["bitops"], rel=0.01)
    out = spos("retrain", "run", "--arch", "uniform:w3a3").out
    assert "uniform-w3a3: test accuracy" in out and f"bits: {' '.join(['w3a3'] * 8)}\n" in out, out
    out = spos("retrain", "run", "--arch", "uniform:w_bits=2,a_bits=2,width=0.5", "--label", "narrow").out
    assert f"width: {' '.join(['0.5'] * 8)}\n" in out
    stored = json.loads(Path("run/retrain-uniform-w3a3/result.json").read_text())
    assert stored["bitops"] == json.loads(Path("run/retrain-uniform-w3a3.json").read_text())["bitops"] > 0

    assert f"{best['bitops']:.4g} G bit operations" in spos("info", "run").out
    assert spos("report", "run").status == 0
    page = html.unescape((tmp_path / "run" / "report.html").read_text())
    assert f"<code>bits: {' '.join(labels)}</code>" in page and f"<code>bits: {' '.join(['w3a3'] * 8)}</code>" in page
    assert "G bit operations</th>" in page and f"{stored['bitops']:.4g}</td>" in page
    assert "random ones of the same bit operations" in page and "bit operations for one image" in page
    assert f"Constraints: bitops <= {budget}" in page
    space = RunFolder("run").space()
    assert space["decisions"][0] | {"options": []} == {
        "name": "layer1.0.bits",
        "kind": "bits",
        "options": [],
        "offered": 3,
    }
    svg = page[page.index('<svg class="architecture"') : page.index('<ul class="legend">')]
    assert len(re.findall("<rect", svg)) == 8  # a box for each block, the width inside of it
    assert f"layer1.0.bits: {labels[0]}; layer1.0.width: " in svg and ", 16 channels of 8 by 8 to" in svg


def test_searches_of_several_budgets(spos: Command, images: Path, tmp_path: Path) -> None:
    assert spos("train", "run", "--data", images, *SPACE, *STEPS).status == 0
    outcome = spos("search", "run", *BUDGET, "--label", "fast", "--max-latency", 1)
    assert outcome.status == 2 and "run `spos latency run` first" in outcome.err
    outcome = spos("latency", "run", "--batch", 2, "--rounds", 2, "--check", 3)
    assert outcome.status == 0, outcome.err
    assert "run/latency.json: 8 blocks, 144 times for 2 images" in outcome.out
    assert "3 random networks, measured whole" in outcome.out and "rank correlation" in outcome.out
    for label, option, budget in (("fast", "--max-latency", 1000), ("small", "--max-bitops", 0.006)):
        outcome = spos("search", "run", *BUDGET, "--label", label, option, budget)
        assert outcome.status == 0 and "ms predicted" in outcome.out, outcome.err
        assert re.search(r"latency of 2 images: [\d.]+ ms predicted, [\d.]+ ms measured now", outcome.out)
        best = json.loads(Path(f"run/search-{label}/result.json").read_text())["best"]
        assert best["latency"] > 0 and best["bitops"] > 0
        outcome = spos("retrain", "run", "--search", label)
        assert outcome.status == 0 and f"{label}: architecture {','.join(map(str, best['arch']))}" in outcome.out
        assert json.loads(Path(f"run/retrain-{label}.json").read_text())["arch"] == best["arch"]
    assert not Path("run/search").exists()
    out = spos("info", "run").out
    assert "search-fast, evolution: 8 candidates, finished" in out and "search-small, evolution:" in out
    assert spos("report", "run").status == 0
    page = html.unescape((tmp_path / "run" / "report.html").read_text())
    for label, constraint in (("fast", "latency <= 1000"), ("small", "bitops <= 0.006")):
        assert f"Evolution and random search: {label}</h2>" in page and f"Constraints: {constraint}." in page
        assert f"evolution, {label}</td>" in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))

    for words, message in (
        (("retrain", "run"), "run has searches fast, small: say which by --search"),
        (("retrain", "run", "--search", "none"), "no search-none yet: run `spos search run --label none` first"),
        (("retrain", "run", "--search", "fast", "--arch", "uniform:w2a2"), "--search is given beside an architecture"),
        (
            ("search", "run", "--label", "a/b"),
            "label = 'a/b': expected letters, digits, '-' and '_', a letter or digit first",
        ),
        (("latency", "none"), "none has no supernet yet: run `spos train none` first"),
    ):
        outcome = spos(*words)
        assert outcome.status == 2 and message in outcome.err, outcome.err


def test_bad_bits_are_named(spos: Command, images: Path) -> None:
    for setting, words in (
        ('space.bits=["w9a1"]', "bits = 'w9a1': expected a label such as 'w2a4'"),
        ("space.initial_clip=-1", "space.initial_clip = -1.0: expected a positive number"),
    ):
        outcome = spos("train", "run", "--data", images, *SPACE, *STEPS, "--set", setting)
        assert outcome.status == 2 and words in outcome.err, outcome.err
    assert spos("train", "run", "--data", images, *SPACE, *STEPS, "--set", 'space.bits=["any"]').status == 0
    outcome = spos("search", "run", *BUDGET, "--max-bitops", "1e-4")
    assert outcome.status == 2 and re.search(r"bitops <= 0.0001 cannot be met: .* reaches bitops from", outcome.err)
    for arch, words in (
        ("uniform:w9a9", "--arch 'uniform:w9a9': bits = 'w9a9' in 'layer1.0.bits': expected one of"),
        ("uniform:width=1.0", "kinds given are ['width']: expected exactly ['bits', 'width']"),
        ("uniform:w_bits=0,a_bits=1", "w_bits = 0: expected an integer from 1 to 8"),
        ("uniform", "--arch 'uniform': expected integers with commas between them, such as 0,1,2,3, or uniform:w2a2"),
    ):
        outcome = spos("retrain", "run", "--arch", arch)
        assert outcome.status == 2 and words in outcome.err, outcome.err


def test_uniform_operators_of_other_spaces(spos: Command, images: Path) -> None:
    space = ("--space", "shufflenet-oneshot-channels-small", *SPACE[2:])
    assert spos("train", "run", "--data", images, *space, *STEPS).status == 0
    outcome = spos("retrain", "run", "--arch", "uniform:operator=choice_5")
    assert outcome.status == 0 and "uniform-operator-choice_5: test accuracy" in outcome.out, outcome.err
    assert f"operator: {' '.join(['choice_5'] * 8)}" in outcome.out and f"width: {' '.join(['1.0'] * 8)}" in outcome.out
