"""Bit widths and widths found by search against uniform bits, at equal bit operations.

    python benchmarks/study_mixed_precision.py runs/mixed --data cifar-10-batches-bin

runs, for each seed, the commands that it prints: a supernet; a search with the bit operations of each uniform network
as its budget; every network found and every uniform one trained from fresh weights, alike; all of them packed and
measured. The settings are in `study.toml` in the folder. Training and search take one thread each and run beside each
other; latencies are measured at the end, one after another.

Started again, it goes on where it was stopped, and measures latencies anew.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

import spos
from spos import config_file
from spos.atomic_files import write_bytes
from spos.config import Config, SearchConfig, SpaceConfig

UNIFORM = ("w2a2", "w3a3", "w4a4")
KINDS = ("uniform", "searched")
STEPS: dict[str, Any] = {"batch_size": 64, "lr": 0.05, "weight_decay": 1e-4, "clip_norm": 1.0, "log_every": 50}


def settings(options: argparse.Namespace) -> Config:
    """What all commands are given."""
    return Config(
        threads=1,
        data=spos.DataConfig(source=str(Path(options.data).resolve()), image_size=32),
        space=SpaceConfig(name=options.space),
        train=spos.TrainConfig(epochs=options.train_epochs, **STEPS),
        search=SearchConfig(
            population=options.population,
            generations=options.generations,
            mutations=options.population // 2,
            crossovers=options.population // 2,
            calibration_images=640,
            validation_images=2000,
        ),
        retrain=spos.RetrainConfig(epochs=options.retrain_epochs, calibration_images=2560, **STEPS),
    )


class Commands:
    """`spos` commands on the run of each seed, side by side."""

    def __init__(self, out: Path, jobs: int) -> None:
        self.out = out
        self.pool = ThreadPoolExecutor(jobs)
        self.started = time.monotonic()

    def later(self, seed: int, stage: str, *words: object, after: Future[None] | None = None) -> Future[None]:
        """Start a command when its turn comes and the one before it has finished; a finished stage is left alone."""

        def work() -> None:
            if after is not None:
                after.result()
            if not (self.run(seed) / stage / "result.json").exists():
                self.now(seed, *words)

        return self.pool.submit(work)

    def now(self, seed: int, *words: object) -> None:
        """Run a command. Its output goes to a file, whose end is shown where it fails."""
        run, began = self.run(seed), time.monotonic()
        command = ["spos", str(words[0]), str(run), *map(str, words[1:])]
        log = run.with_suffix(".log")
        with log.open("a") as file:
            status = subprocess.run([sys.executable, "-m", *command], stdout=file, stderr=subprocess.STDOUT).returncode
        now = time.monotonic()
        print(f"{now - self.started:6.0f} s  {shlex.join(command)}  ({now - began:.0f} s)", flush=True)
        if status:
            raise SystemExit(f"{shlex.join(command)} ended with status {status}, see {log}:\n{log.read_text()[-600:]}")

    def run(self, seed: int) -> Path:
        """The folder of a seed's run."""
        return self.out / f"seed-{seed}"


def train_and_search(commands: Commands, options: argparse.Namespace, config: Config) -> None:
    """Everything up to the retrained networks."""
    file = ("--config", options.out / "study.toml")
    net = spos.spaces.get(config.space.name, num_classes=10, image_size=32)
    budgets = {bits: spos.bitops(net, net.space.uniform(bits=bits)) for bits in UNIFORM}
    supernets = {seed: commands.later(seed, "supernet", "train", *file, "--seed", seed) for seed in options.seeds}
    searches = {}
    for seed in options.seeds:  # those of one seed one after another, while the next supernet trains
        for bits, budget in budgets.items():
            words = ("search", *file, "--seed", seed, "--label", bits, "--max-bitops", budget)
            searches[seed, bits] = commands.later(seed, f"search-{bits}", *words, after=supernets[seed])
    rest = []
    for bits in UNIFORM:
        for seed in options.seeds:
            common = ("retrain", *file, "--seed", seed, "--label")
            alone = (*common, f"uniform-{bits}", "--arch", f"uniform:{bits}")
            rest.append(commands.later(seed, f"retrain-uniform-{bits}", *alone, after=supernets[seed]))
            found = (*common, f"searched-{bits}", "--search", bits)
            rest.append(commands.later(seed, f"retrain-searched-{bits}", *found, after=searches[seed, bits]))
    for future in rest:
        future.result()


def measure(commands: Commands, options: argparse.Namespace) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Pack every network and return what is known of those of each row of the table, seed by seed."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for seed in options.seeds:
        for bits in UNIFORM:
            for kind in KINDS:
                label, run = f"{kind}-{bits}", commands.run(seed)
                settings = ("--images", 1000, "--batch", options.batch, "--runs", 200, "--threads", options.threads)
                commands.now(seed, "deploy", "--label", label, *settings)
                stage = run / f"retrain-{label}"
                facts = [run / f"retrain-{label}.json", stage / "result.json", stage / "deployed.json"]
                known: dict[str, Any] = {}
                for path in facts:
                    known |= json.loads(path.read_text())
                rows.setdefault((bits, kind), []).append(known)
    return rows


def interval(values: Sequence[float]) -> str:
    """Mean and half of the 95 % interval of Student's t."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.2f} ± {half:.2f}"


def table(rows: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """The rows in Markdown, and the searched networks' lead."""
    lines = [
        "| budget | network | test accuracy, % | G BitOps | file, kB | latency, ms | as float32 | differing codes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (bits, kind), found in rows.items():
        mean = {key: np.mean([f[key] for f in found]) for key in ("bitops", "file_bytes", "seconds", "float_seconds")}
        lines.append(
            f"| {bits} | {kind} | {interval([100 * f['test_accuracy'] for f in found])} | {mean['bitops']:.4f} "
            f"| {mean['file_bytes'] / 1e3:.0f} | {1e3 * mean['seconds']:.2f} | {1e3 * mean['float_seconds']:.2f} "
            f"| {sum(f['differing'] for f in found) / sum(f['codes'] for f in found):.1e} |"
        )
    for bits in dict.fromkeys(bits for bits, _ in rows):
        pairs = zip(rows[bits, "searched"], rows[bits, "uniform"], strict=True)
        lead = [100 * (one["test_accuracy"] - other["test_accuracy"]) for one, other in pairs]
        lines.append(f"\nsearched less uniform at {bits}, points, paired by seed: {interval(lead)}")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--data", required=True, help="as `spos train --data`")
    parser.add_argument("--space", default="resnet-mixed-small")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train-epochs", type=float, default=8.0)
    parser.add_argument("--retrain-epochs", type=float, default=3.0)
    parser.add_argument("--population", type=int, default=32)
    parser.add_argument("--generations", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="commands at a time, of one thread each")
    parser.add_argument("--batch", type=int, default=8, help="images at a time, for the latency")
    parser.add_argument("--threads", type=int, default=2, help="for the latency")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    config = settings(options)
    file = options.out / "study.toml"
    if file.exists() and config_file.load(file) != config:
        raise SystemExit(f"{file} holds other settings than are asked for: take another folder")
    write_bytes(file, config_file.dumps(config).encode())
    commands = Commands(options.out, options.jobs)
    try:
        train_and_search(commands, options, config)
    finally:
        commands.pool.shutdown(cancel_futures=True)
    rows = measure(commands, options)
    print(f"\n{len(options.seeds)} seeds; ± is half of the 95 % interval over them\n\n{table(rows)}")


if __name__ == "__main__":
    main()
