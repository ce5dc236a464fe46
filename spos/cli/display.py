"""What a command shows: lines of text, and how far a long stage is, with its rate and the time left.

On a terminal that is a bar; elsewhere, in a log file say, eleven lines at most for each stage.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

_UNITS = {"supernet": "step", "child": "step", "latency": "round"}
_TITLES = {"supernet": "supernet", "child": "retraining", "evolution": "evolution", "random": "random search"}
_PLAIN_LINES = 10


@dataclass
class _Meter:
    """When the first report of a stage came and with how much done: a resumed stage did not start at 0."""

    first_done: int
    started: float = field(default_factory=lambda: time.monotonic())
    tenths_shown: int = -1
    task: TaskID | None = None


class Display:
    """Context manager with `say` for a line and `progress` for `spos`'s progress callbacks."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._meters: dict[str, _Meter] = {}
        self._bars: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def say(self, text: str) -> None:
        """Shows a line, below any bar of a finished stage."""
        self._stop()
        self._console.print(text, markup=False)

    def progress(self, stage: str, done: int, total: int, info: dict[str, float]) -> None:
        """Shows how far `stage` is; `info` is shown beside it."""
        meter = self._meters.setdefault(stage, _Meter(done))
        pace, left = _pace(meter, done, total, _UNITS.get(stage, "candidate"))
        values = "  ".join(f"{name} {_number(value)}" for name, value in info.items())
        title = _TITLES.get(stage, stage)
        if self._console.is_terminal:
            self._show_bar(meter, title, done, total, f"{pace}  {left}  {values}")
        elif done * _PLAIN_LINES // total > meter.tenths_shown:
            meter.tenths_shown = done * _PLAIN_LINES // total
            self._console.print(f"  {title} {done}/{total}  {pace}  {left}  {values}", markup=False)
        if done >= total:
            self._stop()

    def _show_bar(self, meter: _Meter, title: str, done: int, total: int, text: str) -> None:
        if self._bars is None:
            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[text]}"),
                console=self._console,
            )
            self._bars.start()
        if meter.task is None or meter.task not in self._bars.task_ids:
            meter.task = self._bars.add_task(title, total=total, text="")
        self._bars.update(meter.task, completed=done, text=text)

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars = None
        self._meters.clear()


def _pace(meter: _Meter, done: int, total: int, unit: str) -> tuple[str, str]:
    elapsed, did = time.monotonic() - meter.started, done - meter.first_done
    if did <= 0 or elapsed <= 0:
        return "", ""
    rate = did / elapsed
    pace = f"{rate:.1f} {unit}s/s" if rate >= 1 else f"{1 / rate:.1f} s/{unit}"
    return pace, f"{duration((total - done) / rate)} left" if done < total else f"in {duration(elapsed)}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: "3.2 s", "45 s", "3 min 20 s", "2 h 05 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    return f"{minutes} min {whole % 60:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"
