"""Checkpoint files: tensors and a JSON description in one safetensors file that is written whole or not at all.

The header carries a sha256 over every byte of the file (its own 64 digits taken as zeros), so that a truncated, edited
or bit-flipped file is refused by name instead of being loaded. Nothing in it is ever executed: no pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from spos import atomic_files

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "spos-checkpoint-1"
_DIGEST_KEY = b'"sha256":"'
_NO_DIGEST = b"0" * 64


class CheckpointError(ValueError):
    """A checkpoint file that is truncated, edited, not one of ours, or of another run. The message names the file."""


class Checkpoint(NamedTuple):
    """What was saved: contiguous CPU tensors by name, and the JSON-able description given with them."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> None:
    """Writes `tensors` (any shapes, dtypes and devices; values are kept, memory layouts are not) and `meta` to `path`.

    The file appears under its name only when all of it is on the disk. TypeError or ValueError for what cannot be
    stored: values that are not tensors, a `meta` that is not JSON or holds NaN or infinity. OSError leaves an earlier
    file of that name as it was.
    """
    import safetensors.torch  # here and not above: reading a run's metrics needs neither torch nor its two seconds

    try:
        description = json.dumps(dict(meta or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"meta of {Path(path).name}: {error}; expected JSON values with finite numbers") from None
    metadata = {"format": FORMAT, "meta": description, "sha256": _NO_DIGEST.decode()}
    content = bytearray(safetensors.torch.save(_storable(tensors), metadata))
    start = _digest_offset(content)
    if start is None:
        raise RuntimeError("safetensors no longer writes compact JSON headers; the digest field was not found")
    content[start : start + 64] = hashlib.sha256(content).hexdigest().encode()
    atomic_files.write_bytes(Path(path), content)


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads a file that `save` wrote, after checking every byte of it.

    FileNotFoundError if there is none; CheckpointError, naming the file, if it is truncated, edited or something else.
    """
    import safetensors.torch

    content = bytearray(Path(path).read_bytes())
    metadata = _checked_metadata(Path(path), content)
    return Checkpoint(safetensors.torch.load(bytes(content)), json.loads(metadata["meta"]))


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    import torch

    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"tensors[{name!r}] is a {type(tensor).__name__}: expected a torch.Tensor")
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        # safetensors refuses two names for one storage: each name gets its own values
        result[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return result


def _header_end(content: bytearray) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def _digest_offset(content: bytearray) -> int | None:
    """Where the 64 digits start. Inside a JSON string the key's quotes would be escaped, so only the key matches."""
    key = content.find(_DIGEST_KEY, 8, _header_end(content))
    return None if key < 0 else key + len(_DIGEST_KEY)


def _checked_metadata(path: Path, content: bytearray) -> dict[str, str]:
    if len(content) < 8 or _header_end(content) > len(content):
        raise CheckpointError(f"checkpoint {path} is truncated or no checkpoint ({len(content)} bytes)")
    start = _digest_offset(content)
    if start is None:
        raise CheckpointError(f"checkpoint {path} has no digest: not written by this library, or edited")
    stated = bytes(content[start : start + 64])
    content[start : start + 64] = _NO_DIGEST
    if hashlib.sha256(content).hexdigest().encode() != stated:
        raise CheckpointError(f"checkpoint {path} is damaged: truncated or edited (its sha256 does not match)")
    metadata: dict[str, str] = json.loads(content[8 : _header_end(content)])["__metadata__"]
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {metadata.get('format')!r}: expected {FORMAT!r}")
    return metadata
