"""What must be the same for a resumed run to end where an uninterrupted one would, as named hashes.

Every long function takes `run` as a directory's path, which is created or gone on with, or as an open RunDirectory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from spos.data import Data
from spos.run_directory import RunDirectory, RunDirectoryError

Run = RunDirectory | str | os.PathLike[str] | None


def identity_of(config: Any, seed: int, data: Data, **parts: str) -> dict[str, str]:
    """Return the hashes of a configuration dataclass with the seed, of the data, and the further `parts` given."""
    if not isinstance(data, Data):
        raise TypeError(f"data is a {type(data).__name__}: expected a spos.Data, of spos.data.load or from_arrays")
    augmentation = {k: v for k, v in dataclasses.asdict(data.config).items() if k not in ("source", "workers")}
    return {
        "config": _sha256([_settings(config), seed]),
        "data": _sha256([data.content_hash, augmentation]),
        **parts,
    }


def _settings(config: Any) -> dict[str, Any]:
    """Return what a configuration says, without settings that it had not when runs were first kept, at their defaults:
    a run from before goes on.
    """
    settings = dataclasses.asdict(config)
    for field in dataclasses.fields(config):
        if field.metadata.get("later") and settings[field.name] == field.default:
            del settings[field.name]
    return settings


def hash_network(module: nn.Module, *more: object) -> str:
    """Return the SHA-256 of a network's layers and the shapes of its weights, not of their values, and of `more`."""
    shapes = {name: list(value.shape) for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    return _sha256([repr(module), shapes, *more])


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def hash_weights(module: nn.Module) -> str:
    """Return the SHA-256 of a module's parameters and buffers: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def opened(
    run: Run, *, kind: str, config: Mapping[str, Any], identity: Mapping[str, str]
) -> Iterator[RunDirectory | None]:
    """Open `run` for writing, checking that it is a run of the same identity; None stays None.

    A RunDirectory that the caller opened stays open; RunDirectoryError names the parts that differ.
    """
    if run is None:
        yield None
    elif isinstance(run, RunDirectory):
        if run.kind != kind:
            raise RunDirectoryError(f"{run.path} holds a run of kind {run.kind!r}: expected {kind!r}")
        differing = sorted(k for k, v in identity.items() if run.identity.get(k, v) != v)
        if differing:
            raise RunDirectoryError(
                f"{run.path} holds a run with another {' and '.join(differing)}: take another directory"
            )
        yield run
    else:
        with RunDirectory.open_or_create(run, kind=kind, config=config, identity=identity) as directory:
            yield directory
