"""The run directory: everything a run records, safe against being killed at any moment.

    run.json                   schema version, kind, config, identity, versions, time of creation
    <stream>.jsonl             records, one a line (`spos.records`)
    <name>.<n>.safetensors     checkpoints, the last two of each name (`spos.checkpoint`)
    <name>.json                results
    .lock                      held by the one process that writes; names it

The identity is a set of named hashes (of configuration, data, space): what must be the same for a resumed run to end
where an uninterrupted one would. It is in every checkpoint too, so that one of another run is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from spos import atomic_files, checkpoint, records
from spos.checkpoint import Checkpoint, CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1
_KEPT_CHECKPOINTS = 2
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


class RunDirectoryError(ValueError):
    """A directory that is no run, is another run, is in use, or was written by a newer version."""


class RunDirectory:
    """One run on disk, opened by `create`, `open` or `open_or_create`; a context manager that holds the lock.

    Opened with `read_only=True` it takes no lock and changes nothing, so a run can be looked at while it goes on.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], lock: int | None) -> None:
        self._path = path
        self._header = header
        self._lock = lock
        self._unsynced: set[Path] = set()

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], *, kind: str, config: Mapping[str, Any], identity: Mapping[str, str]
    ) -> RunDirectory:
        """Starts a run in a new or empty directory. RunDirectoryError if it holds anything or a process has it."""
        path = Path(path)
        _make_directory(path)
        _refuse_content(path)  # before the lock, so that not even a lock file is left in a directory of something else
        lock = _acquire(path)
        try:
            return cls._create(path, lock, kind, config, identity)
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        kind: str | None = None,
        identity: Mapping[str, str] | None = None,
        read_only: bool = False,
    ) -> RunDirectory:
        """Opens an existing run, to go on with it or only to read it.

        RunDirectoryError if it is no run directory, of another `kind` or `identity` (where given), written by a newer
        version, or locked by another process (whose id is named).
        """
        path = Path(path)
        _read_header(path)
        lock = None if read_only else _acquire(path)
        try:
            return cls._open(path, lock, kind, identity)
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise

    @classmethod
    def open_or_create(
        cls, path: str | os.PathLike[str], *, kind: str, config: Mapping[str, Any], identity: Mapping[str, str]
    ) -> RunDirectory:
        """Goes on with the run in `path` if one was started there, with the same kind and identity; else starts it."""
        path = Path(path)
        _make_directory(path)
        if not (path / "run.json").exists():
            _refuse_content(path)
        lock = _acquire(path)
        try:
            if (path / "run.json").exists():
                return cls._open(path, lock, kind, identity)
            return cls._create(path, lock, kind, config, identity)
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def _create(
        cls, path: Path, lock: int, kind: str, config: Mapping[str, Any], identity: Mapping[str, str]
    ) -> RunDirectory:
        _refuse_content(path)
        atomic_files.remove_temporaries(path)
        header = {
            "schema": SCHEMA,
            "kind": kind,
            "config": dict(config),
            "identity": dict(identity),
            "versions": versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        atomic_files.write_json(path / "run.json", header)
        return cls(path, header, lock)

    @classmethod
    def _open(cls, path: Path, lock: int | None, kind: str | None, identity: Mapping[str, str] | None) -> RunDirectory:
        header = _read_header(path)
        if kind is not None and header["kind"] != kind:
            raise RunDirectoryError(f"{path} holds a run of kind {header['kind']!r}: expected {kind!r}")
        if identity is not None:
            differences = _differences(header["identity"], identity)
            if differences:
                raise RunDirectoryError(
                    f"{path} holds a run with another {differences}: "
                    "take another directory, or the settings it was made with"
                )
        if lock is not None:
            atomic_files.remove_temporaries(path)
            for stream in path.glob("*.jsonl"):
                records.cut_incomplete_line(stream)
        return cls(path, header, lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives the lock back. Nothing is written through this object afterwards. Closing twice is allowed."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def path(self) -> Path:
        return self._path

    @property
    def kind(self) -> str:
        return str(self._header["kind"])

    @property
    def config(self) -> dict[str, Any]:
        return dict(self._header["config"])

    @property
    def identity(self) -> dict[str, str]:
        return dict(self._header["identity"])

    @property
    def versions(self) -> dict[str, Any]:
        """What the run was started with; see `versions()` for what runs now."""
        return dict(self._header["versions"])

    @property
    def created(self) -> str:
        """When the run was started, in ISO 8601, UTC."""
        return str(self._header["created"])

    def append(self, stream: str, record: Mapping[str, Any]) -> None:
        """Adds one record to `<stream>.jsonl`. ValueError for NaN or infinity; OSError leaves the stream as it was."""
        path = self._writable(stream, ".jsonl")
        records.append(path, record)
        self._unsynced.add(path)

    def flush(self) -> None:
        """Brings the records appended so far to the disk, where a power cut leaves them too."""
        for stream in sorted(self._unsynced):
            atomic_files.sync_file(stream)
        self._unsynced.clear()

    def records(self, stream: str) -> list[dict[str, Any]]:
        """Every whole record of a stream, oldest first; none if the stream does not exist."""
        return records.read(self._file(stream, ".jsonl"))

    def keep(self, stream: str, predicate: Callable[[dict[str, Any]], bool]) -> None:
        """Drops, atomically, the records for which `predicate` is false: on resume, those after the checkpoint."""
        records.keep(self._writable(stream, ".jsonl"), predicate)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Replaces `<name>.json` atomically."""
        if name == "run":
            raise ValueError("name = 'run': run.json is written once, by create")
        atomic_files.write_json(self._writable(name, ".json"), value)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object in `<name>.json`, or None if there is no such file."""
        path = self._file(name, ".json")
        return read_json_object(path) if path.exists() else None

    def save_checkpoint(self, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Writes the next checkpoint of that name, and then drops all but the last two.

        Records appended before are flushed to the disk first: what a checkpoint says was done has its records.
        """
        number = max(self._numbers(name), default=0) + 1
        path = self._writable(name, f".{number}.safetensors")
        self.flush()
        checkpoint.save(path, tensors, {"name": name, "identity": self.identity, "meta": dict(meta)})
        for old in self._numbers(name):
            if old <= number - _KEPT_CHECKPOINTS:
                self._file(name, f".{old}.safetensors").unlink(missing_ok=True)

    def load_checkpoint(self, name: str, *, fallback: Literal["error", "previous"] = "error") -> Checkpoint | None:
        """The newest checkpoint of that name, or None if there is none.

        If the newest is damaged, or was copied from another run, CheckpointError names it and says whether an older
        good one is there. `fallback="previous"` takes that one, and sets the bad file aside as `*.damaged` if the run
        is open for writing, so that it does not count as one of the last two.
        """
        if fallback not in ("error", "previous"):
            raise ValueError(f"fallback = {fallback!r}: expected 'error' or 'previous'")
        first_error: CheckpointError | None = None
        bad: list[Path] = []
        for number in sorted(self._numbers(name), reverse=True):
            path = self._file(name, f".{number}.safetensors")
            try:
                found = self._load(path, name)
            except CheckpointError as error:
                first_error = first_error or error
                bad.append(path)
                continue
            if first_error is not None and fallback == "error":
                raise CheckpointError(f"{first_error}; an older good one is there, {path.name}")
            if first_error is not None:
                warnings.warn(f"{first_error}; going on from the one before, {path.name}", stacklevel=2)
            if self._lock is not None:
                for file in bad:
                    os.replace(file, file.with_suffix(".damaged"))
            return found
        if first_error is not None:
            raise CheckpointError(f"{first_error}; there is no older good one")
        return None

    def _load(self, path: Path, name: str) -> Checkpoint:
        tensors, meta = checkpoint.load(path)
        if not {"name", "identity", "meta"} <= meta.keys() or meta["name"] != name:
            raise CheckpointError(f"checkpoint {path} is no checkpoint {name!r} of a run")
        differences = _differences(meta["identity"], self.identity)
        if differences:
            raise CheckpointError(f"checkpoint {path} belongs to a run with another {differences}")
        return Checkpoint(tensors, meta["meta"])

    def _numbers(self, name: str) -> list[int]:
        self._file(name, ".safetensors")
        pattern = re.compile(re.escape(name) + r"\.(\d+)\.safetensors")
        return [int(match[1]) for match in map(pattern.fullmatch, os.listdir(self._path)) if match]

    def _file(self, name: str, suffix: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"name = {name!r}: expected letters, digits, '-' and '_'")
        return self._path / (name + suffix)

    def _writable(self, name: str, suffix: str) -> Path:
        if self._lock is None:
            raise RunDirectoryError(f"{self._path} is closed or was opened to be read only")
        return self._file(name, suffix)


def versions() -> dict[str, Any]:
    """What runs now: versions, the processor, and the instruction set and threads, on which last digits depend."""
    import platform

    import torch

    import spos
    import spos_kernels

    return {
        "spos": spos.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "isa": spos_kernels.isa(),
        "threads": torch.get_num_threads(),
        "processor": _processor(),
    }


def _processor() -> str:
    """The processor's name and number of cores, as the system calls them."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RunDirectoryError(
            f"{path}: a file is in the way: expected a path where a directory can be made"
        ) from None


def _refuse_content(path: Path) -> None:
    found = [p.name for p in path.iterdir() if p.name != ".lock" and not atomic_files.is_temporary(p)]
    if found:
        raise RunDirectoryError(f"{path} is not empty (it has {min(found)}): expected a new or empty directory")


def _acquire(path: Path) -> int:
    """Locks the directory for this process. The lock goes with the process, however it ends."""
    return lock_file(path / ".lock", path)


def lock_file(file: Path, what: Path) -> int:
    """The descriptor of a lock file, to be closed; it names this process. RunDirectoryError where another has it."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode(errors="replace") or "unknown"
        os.close(descriptor)
        raise RunDirectoryError(f"{what} is in use by process {holder}: wait for it, or end it") from None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. RunDirectoryError, naming the file, for anything else in it."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise RunDirectoryError(f"{path} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise RunDirectoryError(f"{path} is damaged: expected a JSON object")
    return value


def _read_header(path: Path) -> dict[str, Any]:
    if not (path / "run.json").is_file():
        what = "it has no run.json" if path.is_dir() else "there is no such directory"
        raise RunDirectoryError(f"{path} is no run directory: {what}")
    header = read_json_object(path / "run.json")
    schema = header.get("schema")
    if schema != SCHEMA:
        raise RunDirectoryError(f"{path} has schema version {schema!r}: this version of the library reads {SCHEMA}")
    missing = {"kind", "config", "identity", "versions", "created"} - header.keys()
    if missing:
        raise RunDirectoryError(f"{path / 'run.json'} is damaged: it has no {min(missing)!r}")
    return header


def _differences(theirs: Mapping[str, str], ours: Mapping[str, str]) -> str:
    """Names each hash that differs, with the start of both; empty if none does."""
    names = [name for name in sorted({*theirs, *ours}) if theirs.get(name) != ours.get(name)]
    return ", ".join(f"{n} ({str(theirs.get(n))[:12]} there, {str(ours.get(n))[:12]} here)" for n in names)
