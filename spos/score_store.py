"""Scores that other searches have found, for those of the same supernet on the same images.

A score depends on the weights, the architecture and the two sets of images. What these are is written beside the
records of a search, and a search of another budget, or by another method, takes over what agrees in all of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spos import records
from spos.config import SearchConfig
from spos.evaluation import Score
from spos.run_directory import read_json_object, versions
from spos.space import Arch

SCORING = "scoring"
_STREAMS = ("evolution", "random")


def scoring_of(space: str, weights: str, data: str, config: SearchConfig, seed: int) -> dict[str, Any]:
    """Return all that a score depends on beside the architecture; the first three are hashes.

    Versions and instruction set are part of it, because last digits depend on them.
    """
    now = versions()
    return {
        "space": space,
        "weights": weights,
        "data": data,
        "seed": seed,
        "calibration_images": config.calibration_images,
        "validation_images": config.validation_images,
        "eval_batch_size": config.eval_batch_size,
        "versions": {name: now[name] for name in ("spos", "torch", "isa") if name in now},
    }


def scores_of(directories: Iterable[str | os.PathLike[str]], scoring: dict[str, Any]) -> dict[Arch, Score]:
    """Return the scores that the searches in `directories` have recorded so far, of those scored exactly like this.

    Directories of other searches, and such that do not exist yet, have none. They may be in use.
    """
    found: dict[Arch, Score] = {}
    for directory in map(Path, directories):
        path = directory / f"{SCORING}.json"
        if not path.is_file() or read_json_object(path) != scoring:
            continue
        for stream in _STREAMS:
            stored = records.read(directory / f"{stream}.jsonl")
            whole = max((record.get("images") or 0 for record in stored), default=0)
            for record in stored:
                if (record.get("images") or whole) < whole:
                    continue  # dropped from a race
                score = Score(record["accuracy"], record["top5"], record["loss"], 0)
                found.setdefault(Arch(record["arch"]), score)
    return found
