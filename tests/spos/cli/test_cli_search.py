"""Ways to train and to search by settings: a sampler, NSGA-II, a second budget that takes over scores."""

from __future__ import annotations

import json
from pathlib import Path

from spos.run_folder import RunFolder
from tests.spos.cli.conftest import Command


def test_samplers_methods_and_budgets(spos: Command, images: Path, tmp_path: Path) -> None:
    small = ("--set", "data.image_size=8", "--set", "train.steps=2", "--set", "train.batch_size=8")
    trained = spos(
        "train", "run", "--data", images, "--space", "shufflenet-oneshot-small", *small, "--set", "train.sampler=fair"
    )
    assert trained.status == 0, trained.err
    assert 'sampler = "fair"' in (tmp_path / "run/supernet.toml").read_text()
    record = json.loads((tmp_path / "run/supernet/train.jsonl").read_text().splitlines()[-1])
    assert len(record["archs"]) == 4

    few = ["--set", "search.calibration_images=8", "--population", 6, "--generations", 1]
    few += ["--set", "search.mutations=3", "--set", "search.crossovers=2"]
    first = spos("search", "run", "--label", "all", *few)
    assert first.status == 0 and "scored by another search" not in first.out, first.err
    second = spos("search", "run", "--label", "front", *few, "--set", "search.method=nsga2")
    records = [json.loads(line) for line in (tmp_path / "run/search-front/evolution.jsonl").read_text().splitlines()]
    reused = sum(record["reused"] for record in records)
    assert reused >= 6 and f"11 candidates, {reused} of them scored by another search" in second.out, second.err
    assert "Pareto front of accuracy, flops: " in second.out
    refused = spos("search", "run", "--label", "bad", *few, "--set", "search.objectives=['accuracy']")
    assert refused.status == 2 and "search.objectives = ('accuracy',): expected a tuple of two or more" in refused.err
    with RunFolder(tmp_path / "run").held("search-both"):
        refused = spos("search", "run", "--label", "both", *few)
    assert refused.status != 0 and "search-both is in use by process" in refused.err
    assert not (tmp_path / "run/search-both.toml").exists()
