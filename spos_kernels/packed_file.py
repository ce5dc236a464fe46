"""Files of packed networks: tensors and a JSON description in one safetensors file, written whole or not at all.

The header carries a sha256 over every byte of the file, its own 64 digits taken as zeros: safetensors checks the sizes
in its header and nothing else, so an edited weight would be loaded as it is. `spos.checkpoint` does the same for the
checkpoints of training; these files are for where `spos` is not installed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

__all__ = ["PackedFileError"]

FORMAT = "spos-packed-2"
# The first had float32 scales and biases and no stems; what it has is described alike.
READ = ("spos-packed-1", FORMAT)
_DIGEST_KEY = b'"sha256":"'
_NO_DIGEST = b"0" * 64


class PackedFileError(ValueError):
    """A file of a packed network that is truncated, edited, of another version, or none. The message names the file."""


def write(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> int:
    """Write contiguous CPU tensors and a JSON-able description; return the file's size in bytes.

    The file appears under its name only when all of it is on the disk. OSError leaves an earlier one as it was.
    """
    metadata = {
        "format": FORMAT,
        "network": json.dumps(description, allow_nan=False),
        "sha256": _NO_DIGEST.decode(),
    }
    content = bytearray(safetensors.torch.save(dict(tensors), metadata))
    start = _digest_offset(content)
    if start is None:
        raise RuntimeError("safetensors no longer writes compact JSON headers; the digest field was not found")
    content[start : start + 64] = hashlib.sha256(content).hexdigest().encode()
    _replace(path, content)
    return len(content)


def read(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Return what `write` wrote, after checking every byte. FileNotFoundError; PackedFileError, naming the file."""
    content = bytearray(path.read_bytes())
    if len(content) < 8 or _header_end(content) > len(content):
        raise PackedFileError(f"packed network {path} is truncated or no packed network ({len(content)} bytes)")
    start = _digest_offset(content)
    if start is None:
        raise PackedFileError(f"packed network {path} has no digest: not written by this library, or edited")
    stated = bytes(content[start : start + 64])
    content[start : start + 64] = _NO_DIGEST
    if hashlib.sha256(content).hexdigest().encode() != stated:
        raise PackedFileError(f"packed network {path} is damaged: truncated or edited (its sha256 does not match)")
    try:
        metadata = json.loads(content[8 : _header_end(content)])["__metadata__"]
        found = metadata.get("format")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise PackedFileError(f"packed network {path} has no description: not written by this library") from None
    if found not in READ:
        raise PackedFileError(f"packed network {path} has format {found!r}: expected {FORMAT!r} or an earlier one")
    try:
        return safetensors.torch.load(bytes(content)), json.loads(metadata["network"])
    except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise PackedFileError(f"packed network {path} cannot be read: {error}") from None


def _header_end(content: bytearray) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def _digest_offset(content: bytearray) -> int | None:
    """Where the 64 digits start. Inside a JSON string the key's quotes would be escaped, so only the key matches."""
    key = content.find(_DIGEST_KEY, 8, _header_end(content))
    return None if key < 0 else key + len(_DIGEST_KEY)


def _replace(path: Path, content: bytearray) -> None:
    """Put a whole new file in the place of the old one, whatever kills the process or fills the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the name survives a power cut too
    finally:
        os.close(directory)
