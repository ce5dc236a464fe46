"""Tables of latencies in files: JSON that a person can read, checked when it is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spos.atomic_files import write_json
from spos.latency_table import BlockLatency, LatencyTable
from spos.run_directory import RunDirectoryError, read_json_object

SCHEMA = 1


def save_latency(table: LatencyTable, path: str | os.PathLike[str]) -> None:
    """Write a table, atomically."""
    blocks = [
        {
            "name": block.name,
            "decisions": list(block.decisions),
            "times": [
                {"options": list(labels), "nanoseconds": time, "spread": block.spread[labels]}
                for labels, time in block.nanoseconds.items()
            ],
        }
        for block in table.blocks
    ]
    write_json(Path(path), {"schema": SCHEMA} | vars(table) | {"blocks": blocks})


def load_latency(path: str | os.PathLike[str]) -> LatencyTable:
    """Read what `save_latency` wrote. FileNotFoundError, or RunDirectoryError, a ValueError, for a damaged file."""
    content = read_json_object(Path(path))
    if content.get("schema") != SCHEMA:
        raise RunDirectoryError(f"{path} is no table of latencies of schema {SCHEMA}")
    try:
        return LatencyTable(
            space=_of(str, content["space"]),
            network=_of(str, content["network"]),
            input_shape=tuple(map(_count, content["input_shape"])),
            batch=_count(content["batch"]),
            machine=_of(dict, content["machine"]),
            rest=_count(content["rest"]),
            blocks=tuple(map(_block, _of(list, content["blocks"]))),
        )
    except KeyError as error:
        raise RunDirectoryError(f"{path} is damaged: {error} is missing") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise RunDirectoryError(f"{path} is damaged: {error}") from None


def _block(block: Mapping[str, Any]) -> BlockLatency:
    times = {tuple(_of(str, label) for label in entry["options"]): entry for entry in block["times"]}
    if len(times) < len(block["times"]):
        raise ValueError(f"options of {block['name']} occur twice")
    return BlockLatency(
        _of(str, block["name"]),
        tuple(_of(str, name) for name in block["decisions"]),
        {labels: _count(entry["nanoseconds"]) for labels, entry in times.items()},
        {labels: float(entry["spread"]) for labels, entry in times.items()},
    )


def _of(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError(f"expected a {kind.__name__}, got {value!r:.80}")
    return value


def _count(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 2**53:
        raise ValueError(f"expected a whole number, got {number!r:.80}")
    return number
