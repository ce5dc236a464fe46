"""Files that are either the old version or the whole new one, whatever kills the process or fills the disk.

A new file is written under a temporary name in the same folder, flushed to the disk and renamed over the old one, and
the folder is flushed so that the name survives a power cut too. An error removes the temporary file; a killed process
leaves it behind, under a name that `remove_temporaries` recognises.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TEMPORARY_SUFFIX = ".tmp"


def write_bytes(path: Path, content: bytes | bytearray | memoryview) -> None:
    """Replaces `path` by `content` atomically. OSError (disk full, say) leaves the old file and nothing else."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY_SUFFIX}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def write_all(descriptor: int, content: bytes | bytearray | memoryview) -> None:
    """Writes every byte: a single `os.write` may stop short, at a signal or when the disk fills up."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_file(path: Path) -> None:
    """Flushes what was written to `path` to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(path: Path) -> None:
    """Flushes the names in a folder to the disk."""
    sync_file(path)


def remove_temporaries(directory: Path) -> None:
    """Removes what writers killed in the middle of `write_bytes` left in `directory`."""
    for leftover in directory.glob(f".*{_TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def is_temporary(path: Path) -> bool:
    """True for a file that `remove_temporaries` would remove."""
    return path.name.startswith(".") and path.name.endswith(_TEMPORARY_SUFFIX)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replaces `path` atomically by indented JSON. ValueError for numbers JSON does not have (NaN, infinity)."""
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path.name}: {error}; expected JSON values with finite numbers or null") from None
    write_bytes(path, (text + "\n").encode())
