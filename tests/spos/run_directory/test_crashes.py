"""Whatever step of whatever operation a process dies or a disk fills up at, the run goes on from a good state."""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spos.run_directory import RunDirectory

IDENTITY = {"config": "a" * 64, "data": "b" * 64}
PER_CHECKPOINT = 3
STEPS = ("open", "write", "pwrite", "fsync", "replace", "close", "ftruncate", "truncate", "unlink")

Failure = Callable[[str, Callable[..., Any], tuple[Any, ...]], None]


class FailingFilesystem:
    """Counts calls of the `os` functions that change files; calls `fail` before the `at`-th and all later ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: Failure) -> None:
        self.calls = 0
        self.at: int | None = None
        for name in STEPS:
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name), fail))

    def _counted(self, name: str, real: Callable[..., Any], fail: Failure) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.at is not None:
                self.calls += 1
                if self.calls >= self.at:
                    fail(name, real, args)
            return real(*args, **kwargs)

        return call


def disk_full(name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Only what needs space fails on a full disk, a write after some bytes; cleaning up works."""
    if name == "write":
        real(args[0], args[1][: len(args[1]) // 2])
    if name in ("write", "fsync"):
        raise OSError(errno.ENOSPC, "No space left on device")


def die(name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """As kill -9, in the middle of a write: nothing of the process runs after this, no `finally` and no `except`."""
    if name == "write":
        real(args[0], args[1][: len(args[1]) // 2])
    os._exit(9)


def start(path: Path) -> RunDirectory:
    return RunDirectory.open_or_create(path, kind="supernet", config={"lr": 0.5}, identity=IDENTITY)


def work(run: RunDirectory, checkpoints: int) -> None:
    """As the trainer does: records a step at a time, a checkpoint every third; resumes from the newest checkpoint."""
    found = run.load_checkpoint("supernet")
    first = 0 if found is None else int(found.meta["step"])
    run.keep("train", lambda record: record["step"] < first)
    for step in range(first, PER_CHECKPOINT * checkpoints):
        run.append("train", {"step": step, "loss": 1.0 / (step + 1)})
        if (step + 1) % PER_CHECKPOINT == 0:
            run.save_checkpoint("supernet", {"w": torch.full((5,), float(step + 1))}, {"step": step + 1})
    run.write_json("result", {"steps": PER_CHECKPOINT * checkpoints})


def check_finished(path: Path, checkpoints: int) -> None:
    """The directory is what an uninterrupted run leaves; dying just after the last checkpoint may leave a third one."""
    with RunDirectory.open(path, identity=IDENTITY) as run:
        steps = PER_CHECKPOINT * checkpoints
        assert [record["step"] for record in run.records("train")] == list(range(steps))
        found = run.load_checkpoint("supernet")
        assert found is not None
        assert found.meta == {"step": steps}
        assert torch.equal(found.tensors["w"], torch.full((5,), float(steps)))
        assert run.read_json("result") == {"steps": steps}
    names = sorted(name for name in os.listdir(path) if not name.endswith(".safetensors"))
    assert names == [".lock", "result.json", "run.json", "train.jsonl"]
    assert len(os.listdir(path)) - len(names) in (2, 3)


def in_child(action: Callable[[], None]) -> int:
    """Runs `action` in a forked process; its exit status, 0 when it came to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_dying_at_any_filesystem_step_resumes_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystem = FailingFilesystem(monkeypatch, die)

    def run_dying_at(path: Path, at: int) -> None:
        filesystem.at = at
        with start(path) as run:
            work(run, 3)

    deaths = 0
    for at in range(1, 1000):
        path = tmp_path / str(at)
        status = in_child(lambda path=path, at=at: run_dying_at(path, at))  # type: ignore[misc]
        assert status in (0, 9)
        deaths += status == 9
        with start(path) as run:
            work(run, 3)
        check_finished(path, 3)
        if status == 0:
            break
    assert deaths > 40  # it did die at each of them


def test_dying_again_and_again_in_one_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem = FailingFilesystem(monkeypatch, die)

    def attempt(at: int) -> None:
        filesystem.at = at
        with start(tmp_path / "run") as run:
            work(run, 3)

    chance = random.Random(0)
    for _ in range(40):
        in_child(lambda: attempt(chance.randint(1, 45)))
    with start(tmp_path / "run") as run:
        work(run, 3)
    check_finished(tmp_path / "run", 3)


def test_kill_signal_at_random_moments(tmp_path: Path) -> None:
    chance = random.Random(0)
    path = tmp_path / "run"
    for _ in range(12):
        pid = os.fork()
        if pid == 0:
            with start(path) as run:
                work(run, 10**9)
            os._exit(0)
        time.sleep(chance.uniform(0.002, 0.06))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with start(path) as run:
        found = run.load_checkpoint("supernet")
        done = 1 if found is None else found.meta["step"] // PER_CHECKPOINT
        assert found is None or torch.equal(found.tensors["w"], torch.full((5,), float(found.meta["step"])))
        work(run, done + 2)
    check_finished(path, done + 2)


def test_disk_full_at_any_step_leaves_the_earlier_files_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filesystem = FailingFilesystem(monkeypatch, disk_full)
    for action in (
        lambda run: run.append("train", {"step": 3}),
        lambda run: run.keep("train", lambda record: False),
        lambda run: run.write_json("result", {"steps": 4}),
        lambda run: run.save_checkpoint("supernet", {"w": torch.zeros(5)}, {"step": 0}),
    ):
        filesystem.at, filesystem.calls = None, 0
        path = tmp_path / str(len(os.listdir(tmp_path)))
        with start(path) as run:
            work(run, 2)
            before = {file: (path / file).read_bytes() for file in os.listdir(path)}
            filesystem.at = 1
            with pytest.raises(OSError, match="No space left") as caught:
                action(run)
            filesystem.at = None
        assert caught.value.errno == errno.ENOSPC
        assert {file: (path / file).read_bytes() for file in os.listdir(path)} == before
        check_finished(path, 2)


def test_records_reach_the_disk_before_the_checkpoint_that_relies_on_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        log.append("fsync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        log.append("replace " + Path(target).name)
        real_replace(source, target)

    with start(tmp_path / "run") as run:
        run.append("train", {"step": 0})
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", replace)
        run.save_checkpoint("supernet", {}, {"step": 1})
    assert log[0] == "fsync train.jsonl"
    assert log[1].startswith("fsync .supernet.1.safetensors")
    assert log[2:] == ["replace supernet.1.safetensors", "fsync run"]
