"""The command line from end to end on tiny settings, its errors, and how it goes on after an interruption."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from spos import config_file
from spos.cli import display, stages
from spos.cli.app import app
from spos.config import Config
from spos.run_folder import RunFolder

Command = Callable[..., Any]  # see conftest.py

TINY = ("--set", "data.image_size=8", "--set", "data.crop_padding=1", "--space", "shufflenet-oneshot-small")
STEPS = (
    "--set",
    "train.steps=4",
    "--set",
    "train.batch_size=8",
    "--set",
    "train.log_every=1",
    "--set",
    "train.lr=0.05",
)
STEPS += (
    "--set",
    "train.checkpoint_every=2",
    "--set",
    "retrain.steps=2",
    "--set",
    "retrain.batch_size=8",
    "--set",
    "retrain.calibration_images=16",
)
BUDGET = ("--population", "4", "--generations", "1", "--set", "search.mutations=2", "--set", "search.crossovers=2")
BUDGET += (
    "--set",
    "search.calibration_images=8",
)
STABLE = ("loss", "accuracy", "best", "test_accuracy", "test_loss", "arch", "flops", "params", "evaluations", "steps")


def results(path: Path) -> dict[str, Any]:
    """Every recorded result of a run without its wall times, and the records of its streams likewise."""
    found: dict[str, Any] = {}
    for file in sorted(path.rglob("result*.json")):
        found[str(file.relative_to(path))] = without_times(json.loads(file.read_text()))
    for file in sorted(path.rglob("*.jsonl")):
        found[str(file.relative_to(path))] = [without_times(json.loads(line)) for line in file.read_text().splitlines()]
    return found


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key != "seconds"}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def run_chain(spos: Command, images: Path, run: str) -> None:
    for arguments in (
        ("train", run, "--data", images, *TINY, *STEPS),
        ("search", run, *BUDGET),
        ("search", run, "--random"),
        ("retrain", run, "--random-archs", 2),
        ("report", run),
    ):
        outcome = spos(*arguments, "--debug")
        assert (outcome.status, outcome.err) == (0, "")


def test_the_chain_and_that_repeating_it_changes_nothing(spos: Command, images: Path, tmp_path: Path) -> None:
    run_chain(spos, images, "run")
    found = results(tmp_path / "run")
    assert len(found["search/evolution.jsonl"]) == len(found["search/random.jsonl"]) == 8
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000

    folder = RunFolder("run")
    best, *others = [folder.plan(f"retrain-{label}") for label in ("best", "random-1", "random-2")]
    assert best["arch"] == found["search/result.json"]["best"]["arch"]
    assert [best["origin"], *(o["origin"] for o in others)] == ["search", "random", "random"]
    assert len({tuple(plan["arch"]) for plan in (best, *others)}) == 3
    assert all(abs(plan["flops"] / best["flops"] - 1) <= 0.01 for plan in others)

    info = spos("info", "run").out
    assert re.search(r"supernet: step 4, .*; finished", info)
    assert "evolution: 8 candidates, finished" in info
    assert "random search: 8 candidates, finished" in info
    assert re.search(r"retrain-random-2: step 2, .*; finished, test accuracy", info)

    assert "exists: going on with it" in spos("train", "run").out
    run_chain(spos, images, "run")
    assert results(tmp_path / "run") == found


def test_epochs_asked_for_replace_steps_set_before(spos: Command, images: Path) -> None:
    spos("train", "run", "--data", images, *TINY, *STEPS, "--epochs", 1)
    kept = config_file.load("run/supernet.toml").train
    assert (kept.steps, kept.epochs) == (4, 1)  # --set has the last word
    spos("search", "run", *BUDGET)
    spos("retrain", "run", "--epochs", 0.5)
    kept = config_file.load("run/retrain-best.toml").retrain
    assert (kept.steps, kept.epochs) == (None, 0.5)


def test_settings_of_a_run_are_kept_and_are_a_config_file(spos: Command, images: Path) -> None:
    spos("train", "run", "--data", images, *TINY, *STEPS, "--set", "search.population=3", "--seed", 5)
    kept = config_file.load("run/supernet.toml")
    assert (kept.seed, kept.data.image_size, kept.train.steps, kept.search.population) == (5, 8, 4, 3)
    assert spos("train", "again", "--config", "run/supernet.toml").status == 0
    assert config_file.load("again/supernet.toml") == kept
    assert results(Path("again")) == results(Path("run"))
    # what is left out of a search is as in training
    assert spos("search", "run", "--generations", 0, "--set", "search.calibration_images=8").status == 0
    assert config_file.load("run/search.toml").search.population == 3
    assert len(results(Path("run"))["search/evolution.jsonl"]) == 3


@pytest.mark.parametrize("stage", ["train", "search", "retrain"])
def test_interrupted_commands_say_how_to_go_on_and_end_the_same(
    spos: Command, images: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    commands = {
        "train": ("--data", images, *TINY, *STEPS),
        "search": BUDGET,
        "retrain": ("--set", "retrain.log_every=1", "--set", "retrain.checkpoint_every=1"),
    }
    for name, options in commands.items():
        assert spos(name, "whole", *options).status == 0
        if name == stage:
            with monkeypatch.context() as patch:
                patch.setattr(display.Display, "progress", interrupting_after(3 if name != "retrain" else 1))
                outcome = spos(name, "cut", *options)
            assert outcome.status == 130
            assert f"To go on from the last checkpoint: spos {name} cut" in outcome.err
            assert "Traceback" not in outcome.err
            assert "not finished" in spos("info", "cut").out
        assert spos(name, "cut", *options).status == 0
        if name == stage:
            break
    assert results(Path("cut")) == results(Path("whole"))


def interrupting_after(calls: int) -> Any:
    made = 0

    def progress(self: object, *arguments: object) -> None:
        nonlocal made
        made += 1
        if made == calls:
            raise KeyboardInterrupt

    return progress


class TestErrors:
    """Mistakes of a user: one line that names them, exit status 2, no traceback."""

    def refused(self, spos: Command, *arguments: object) -> str:
        outcome = spos(*arguments)
        assert outcome.status == 2
        lines = outcome.err.strip().splitlines()
        assert len(lines) == 1, outcome.err
        assert lines[0].startswith("error: ")
        return lines[0]

    def test_settings(self, spos: Command, tmp_path: Path) -> None:
        assert "did you mean train.lr?" in self.refused(spos, "train", "run", "--set", "train.lrr=1")
        assert "train.epochs = -1.0: expected a positive number" in self.refused(spos, "train", "run", "--epochs", -1)
        assert "none.toml" in self.refused(spos, "train", "run", "--config", "none.toml")
        assert "did you mean 'shufflenet-oneshot'" in self.refused(spos, "train", "run", "--space", "shufflenet")
        assert "folder or .zip file that exists" in self.refused(spos, "train", "run", "--data", "none.zip")
        assert list(tmp_path.iterdir()) == []

    def test_order_of_stages(self, spos: Command, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "run has no supernet yet: run `spos train run` first" in self.refused(spos, "search", "run")
        assert "run has no search yet: run `spos search run` first" in self.refused(spos, "retrain", "run")
        assert "holds no run" in self.refused(spos, "report", "run")
        assert "holds no run" in self.refused(spos, "info", "run")
        with monkeypatch.context() as patch:
            patch.setattr(display.Display, "progress", interrupting_after(2))
            spos("train", "run", "--data", images, *TINY, *STEPS)
        assert "supernet is not finished: run `spos train run`" in self.refused(spos, "search", "run")

    def test_another_run_is_not_gone_on_with(self, spos: Command, images: Path) -> None:
        spos("train", "run", "--data", images, *TINY, *STEPS)
        message = self.refused(spos, "train", "run", "--set", "train.lr=0.7", "--seed", 4)
        assert "was started with seed = 0, now 4; train.lr = 0.05, now 0.7" in message
        message = self.refused(spos, "search", "run", "--set", "data.image_size=16")
        assert "supernet was started with data.image_size = 8, now 16" in message
        assert spos("train", "run", "--threads", 1, "--set", "data.workers=1", "--set", "search.parents=3").status == 0

    def test_devices(self, spos: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        train = ("train", "run", "--data", images, *TINY, *STEPS)
        assert "torch sees no GPU here, expected 'auto'" in self.refused(spos, *train, "--set", "device=cuda")
        assert "device = 'gpu': expected 'auto' or 'cpu' or 'cuda'" in self.refused(spos, *train, "--set", "device=gpu")
        assert not (tmp_path / "run").exists()
        assert spos(*train, "--set", "device=cpu").status == 0
        assert spos(*train, "--set", "device=auto").status == 0  # it may change

    def test_budgets_and_architectures(self, spos: Command, images: Path, tmp_path: Path) -> None:
        spos("train", "run", "--data", images, *TINY, *STEPS)
        assert re.search(
            r"flops <= 1000 cannot be met: .* reaches flops from [\d,]+ to [\d,]+",
            self.refused(spos, "search", "run", "--max-flops", "1e3"),
        )
        assert spos("search", "run", *BUDGET).status == 0  # the refused budget was not kept
        assert "arch has 2 entries: expected 8" in self.refused(spos, "retrain", "run", "--arch", "0,1")
        assert "expected integers with commas" in self.refused(spos, "retrain", "run", "--arch", "0;1")
        (tmp_path / "arch.json").write_text('{"a": 1}')
        assert "expected a JSON list" in self.refused(spos, "retrain", "run", "--arch-file", "arch.json")
        assert "both given" in self.refused(spos, "retrain", "run", "--arch", "0", "--arch-file", "arch.json")
        assert "label = '../x'" in self.refused(spos, "retrain", "run", "--label", "../x")
        assert "random-archs = 60000: only" in self.refused(spos, "retrain", "run", "--random-archs", 60_000)
        assert not RunFolder("run").started("retrain-best")  # refused before an hour of training, not after

    def test_a_label_holds_one_architecture(self, spos: Command, images: Path, tmp_path: Path) -> None:
        spos("train", "run", "--data", images, *TINY, *STEPS)
        (tmp_path / "arch.json").write_text(json.dumps({"arch": [1] * 8}))
        assert spos("retrain", "run", "--arch-file", "arch.json").status == 0
        message = self.refused(spos, "retrain", "run", "--arch", "0,0,0,0,0,0,0,0")
        assert "retrain-given holds another architecture, 1,1,1,1,1,1,1,1: expected 0,0,0,0,0,0,0,0" in message
        assert spos("retrain", "run", "--arch", "0,0,0,0,0,0,0,0", "--label", "all-3").status == 0
        assert RunFolder("run").retrain_stages() == ["retrain-all-3", "retrain-given"]

    def test_a_refused_command_leaves_the_settings_of_finished_stages(self, spos: Command, images: Path) -> None:
        spos("train", "run", "--data", images, *TINY, *STEPS)
        spos("search", "run", *BUDGET)
        spos("retrain", "run", "--random-archs", 1)
        before = {path: path.read_bytes() for path in Path("run").glob("*.*")}
        refused = spos("retrain", "run", "--label", "again", "--random-archs", 1, "--set", "retrain.lr=0.7")
        assert refused.status == 2 and "another config" in refused.err
        assert {path: path.read_bytes() for path in before} == before

    def test_debug_shows_where(self, spos: Command) -> None:
        with pytest.raises(config_file.ConfigError):
            spos("train", "run", "--set", "train.lrr=1", "--debug")

    def test_unknown_options(self, spos: Command) -> None:
        for arguments in (
            ("train",),
            ("train", "run", "--nonsense"),
            ("nonsense",),
            ("search", "run", "--max-flops", "x"),
        ):
            assert spos(*arguments).status == 2


def test_every_option_is_explained() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(commands) == {"demo", "train", "latency", "search", "retrain", "deploy", "report", "info"}
    for command in commands.values():
        assert command.help
        for parameter in command.params:
            assert parameter.help, f"{command.name} {parameter.name}"


def test_info(spos: Command) -> None:
    text = spos("info").out
    for part in ("torch 2.", "kernels", "reference: plain PyTorch", "shufflenet-oneshot: 20 decisions, 1.10e+12"):
        assert part in text
    (Path("defaults.toml")).write_text(spos("info", "--defaults").out)
    assert config_file.load("defaults.toml") == Config()


def test_demo_runs_every_stage_with_its_settings(spos: Command, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Config, dict[str, Any]]] = []
    for name in ("train", "search", "retrain"):

        def record(folder: RunFolder, config: Config, display: object, name: str = name, **options: Any) -> None:
            folder.write_settings("supernet", config)
            calls.append((name, config, options))

        monkeypatch.setattr(stages, name, record)
    outcome = spos("demo", "run", "--set", "train.epochs=3", "--seed", 2)
    assert "holds no run" in outcome.err  # the report found that nothing was done
    assert [(name, options) for name, _, options in calls] == [
        ("train", {}),
        ("search", {}),
        ("search", {"random": True}),
        ("retrain", {}),
    ]
    assert (calls[0][1].seed, calls[0][1].train.epochs) == (2, 3)
    assert calls[0][1].space.name == "shufflenet-oneshot-small"
    assert calls[0][1].search.evaluations >= 200
