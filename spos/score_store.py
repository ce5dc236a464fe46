"""Scores that other searches have found, for those of the same supernet on the same images.

A score depends on the network, its weights, the architecture and the two sets of images. What these are is written
beside the records of a search, and a search of another budget, or by another method, takes over what agrees in all of
it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spos import records
from spos.config import SearchConfig
from spos.evaluation import Score
from spos.run_directory import RunDirectory, read_json_object, versions
from spos.space import Arch

SCORING = "scoring"
_STREAMS = ("evolution", "random")


def scoring_of(
    net: nn.Module, space: str, network: str, weights: str, data: str, config: SearchConfig, seed: int
) -> dict[str, Any]:
    """Return all that a score of a supernet depends on beside the architecture; space to data are hashes.

    Versions, instruction set, device and, because of torch's own layers, threads are part of it: last digits depend on
    them.
    """
    now = versions()
    parameter = next(net.parameters(), None)
    return {
        "space": space,
        "network": network,
        "device": "cpu" if parameter is None else parameter.device.type,
        "threads": torch.get_num_threads(),
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


def taken_over(
    run: RunDirectory, stream: str, reuse: Iterable[str | os.PathLike[str]], scoring: dict[str, Any]
) -> dict[Arch, Score]:
    """Return the scores that a search takes over from `reuse` and from its run's other stream.

    They are those of when it began, which the run keeps: a search that goes on finds what it would have found then.
    """
    name = f"reused-{stream}"
    kept = run.read_json(name)
    if kept is None:
        run.write_json(SCORING, scoring)
        found = scores_of([*reuse, run.path], scoring)
        run.write_json(name, {"scores": [[a.to_json(), s.accuracy, s.top5, s.loss] for a, s in found.items()]})
        return found
    return {Arch(arch): Score(accuracy, top5, loss, 0) for arch, accuracy, top5, loss in kept["scores"]}
