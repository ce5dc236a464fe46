"""Streams of records: one JSON object a line, appended as they happen, read back after whatever happened.

A process killed while it appends leaves at most an incomplete last line. Readers skip it; whoever opens the stream to
write cuts it off. Any other line that is no JSON object is an error that names the file and the line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from spos import atomic_files

Record = dict[str, Any]


class RecordsError(ValueError):
    """A stream with a damaged line. The message names the file and the line."""


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Adds one line; visible to other processes on return. ValueError for NaN or infinity, TypeError for other values.

    If the line cannot be written whole (disk full), what was written of it is taken back and OSError is raised.
    """
    line = _line(path, record)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        try:
            atomic_files.write_all(descriptor, line)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def read(path: Path) -> list[Record]:
    """Every whole record, in order; an empty list if there is no file. Does not change the file."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    result = []
    for number, line in enumerate(lines[:-1], start=1):  # after the last newline: nothing, or an incomplete line
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise RecordsError(f"{path}, line {number}: expected one JSON object, found {_excerpt(line)}")
        result.append(record)
    return result


def cut_incomplete_line(path: Path) -> None:
    """Removes what follows the last newline: the line somebody was killed in."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def keep(path: Path, predicate: Callable[[Record], bool]) -> None:
    """Rewrites the stream atomically with the records for which `predicate` is true, if there are others."""
    before = read(path)
    after = [record for record in before if predicate(record)]
    if len(after) < len(before):
        _rewrite(path, after)


def _rewrite(path: Path, records: Iterable[Record]) -> None:
    atomic_files.write_bytes(path, b"".join(_line(path, record) for record in records))


def _line(path: Path, record: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(record, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        bad = [key for key, value in record.items() if not _is_json(value)]
        raise type(error)(
            f"record for {path.name}, {', '.join(bad)}: {error}; expected finite numbers or null"
        ) from None
    return text.encode() + b"\n"


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _excerpt(line: bytes) -> str:
    return repr(line[:40].decode(errors="replace")) + (" ..." if len(line) > 40 else "")
