"""What a benchmark run found: a table for people, a JSON file for programs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from ceilings import Bound, fma_rate, load_rate
from interleave import Spread, geometric_mean
from rich.console import Console
from rich.table import Table

import spos_kernels as sk

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Row:
    """One shape: ours against the baselines. `bound` is the least time for the work, `rounds` how often each ran."""

    suite: str
    shape: str
    ours: Spread
    baselines: dict[str, Spread]
    bound: Bound
    operations: float
    rounds: int

    @property
    def best(self) -> str:
        """The fastest baseline."""
        return min(self.baselines, key=lambda name: self.baselines[name].median)

    @property
    def ratio(self) -> float:
        """How many times faster than the fastest baseline."""
        return self.baselines[self.best].median / self.ours.median


@dataclass(frozen=True)
class Listing:
    """A table of something else than times against baselines; its cells are ready to print."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass
class Report:
    rows: list[Row] = field(default_factory=list)
    listings: list[Listing] = field(default_factory=list)

    def print(self, console: Console) -> None:
        console.print(" · ".join(f"{name} {value}" for name, value in environment().items()), soft_wrap=True)
        for suite in dict.fromkeys(row.suite for row in self.rows):
            rows = [row for row in self.rows if row.suite == suite]
            console.print(_table(suite, rows))
            for baseline in rows[0].baselines:
                ratios = [row.baselines[baseline].median / row.ours.median for row in rows]
                console.print(
                    f"  against {baseline:<16} geometric mean {geometric_mean(ratios):5.2f}×  {_worst(ratios, rows)}"
                )
            ratios = [row.ratio for row in rows]
            console.print(
                f"  against the best of them geometric mean {geometric_mean(ratios):5.2f}×  {_worst(ratios, rows)}"
            )
        for listing in self.listings:
            table = Table(title=listing.title, title_justify="left")
            for index, column in enumerate(listing.columns):
                table.add_column(column, justify="right" if index else "left", no_wrap=True)
            for cells in listing.rows:
                table.add_row(*cells)
            console.print(table)

    def save(self, folder: Path) -> Path:
        """Write the rows and the environment to a new file in `folder`; return its path."""
        now = datetime.now(UTC)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{now:%Y%m%d-%H%M%S}.json"
        rows = [{**asdict(row), "best_baseline": row.best, "ratio": row.ratio} for row in self.rows]
        found = {"rows": rows, "listings": [asdict(listing) for listing in self.listings]}
        path.write_text(json.dumps({"time": now.isoformat(), "environment": environment(), **found}, indent=1))
        return path


def environment() -> dict[str, str]:
    """Return what the figures depend on: processor, threads, versions, instruction set, ceilings, commit.

    Where malloc gives freed memory back to the system, page faults decide which of two candidates looks faster on
    maps of some MB (the Makefile tells glibc to keep it). A load above the threads in use means that other programs
    took part of the machine.
    """
    threads = torch.get_num_threads()
    return {
        "processor": _processor(),
        "threads": str(threads),
        "torch": torch.__version__,
        "isa": sk.isa(),
        "FMA ceiling": f"{fma_rate(threads) / 1e9:.0f} GFLOP/s",
        "FMA with a load each": f"{load_rate(threads) / 1e9:.0f} GFLOP/s",
        "malloc": "keeps freed memory" if "MALLOC_TRIM_THRESHOLD_" in os.environ else "default",
        "load": f"{os.getloadavg()[0]:.1f}",
        "commit": _commit(),
    }


def _table(suite: str, rows: list[Row]) -> Table:
    table = Table(title=suite, title_justify="left")
    table.add_column("shape", no_wrap=True)
    for name in ("ours µs", "20–80 %", *(f"{name} µs" for name in rows[0].baselines), "ratio", "GFLOP/s", "of ceiling"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        spread = f"{row.ours.low * 1e6:.0f}–{row.ours.high * 1e6:.0f}"
        style = "red" if row.ratio < 1 else ""
        table.add_row(
            row.shape,
            f"{row.ours.median * 1e6:.0f}",
            spread,
            *(f"{spread.median * 1e6:.0f}" for spread in row.baselines.values()),
            f"{row.ratio:.2f}×",
            f"{row.operations / row.ours.median / 1e9:.0f}",
            f"{row.bound.seconds / row.ours.median:.0%} {row.bound.limit}",
            style=style,
        )
    return table


def _worst(ratios: list[float], rows: list[Row]) -> str:
    ratio, index = min((ratio, index) for index, ratio in enumerate(ratios))
    return f"worst {ratio:.2f}× ({rows[index].shape})"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
