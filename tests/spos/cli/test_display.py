"""Progress on a terminal and in a log."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from spos.cli import display
from spos.cli.display import Display, duration


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def shown(steps: range, total: int, clock: list[float], *, terminal: bool = False) -> str:
    file = io.StringIO()
    with Display(Console(file=file, force_terminal=terminal, width=140)) as screen:
        for step in steps:
            clock[0] += 0.5
            screen.progress("supernet", step, total, {"loss": 1.25, "lr": 1e-5})
        screen.say("done [bold]")
    return file.getvalue()


@pytest.mark.parametrize(("total", "lines"), [(1000, 11), (7, 7), (1, 1)])
def test_a_log_gets_few_lines(clock: list[float], total: int, lines: int) -> None:
    text = shown(range(1, total + 1), total, clock)
    assert len(text.splitlines()) == lines + 1
    assert f"supernet {total}/{total}" in text
    assert text.endswith("done [bold]\n")


def test_rate_and_remaining_time_of_a_resumed_stage_count_from_where_it_went_on(clock: list[float]) -> None:
    lines = shown(range(500, 1001, 10), 1000, clock).splitlines()
    assert lines[1].split("  ")[1:] == ["supernet 600/1000", "20.0 steps/s", "20 s left", "loss 1.2500", "lr 1.0e-05"]
    assert "in 25 s" in lines[-2]


def test_a_terminal_gets_a_bar(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")  # the test runner's may be "dumb"
    text = shown(range(1, 11), 10, clock, terminal=True)
    assert "\x1b[" in text
    assert "10/10" in text
    assert "2.0 steps/s" in text


def test_slow_stages_show_seconds_for_each(clock: list[float]) -> None:
    file = io.StringIO()
    with Display(Console(file=file)) as screen:
        for index in (1, 2):
            clock[0] += 25
            screen.progress("evolution", index, 2, {})
    assert "25.0 s/candidate" in file.getvalue()


def test_durations() -> None:
    assert [duration(s) for s in (0.04, 9.94, 45.4, 200, 7500)] == [
        "0.0 s",
        "9.9 s",
        "45 s",
        "3 min 20 s",
        "2 h 05 min",
    ]
