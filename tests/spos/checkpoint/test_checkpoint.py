"""Checkpoint files: the same values come back, and every changed byte is noticed."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
import torch

from spos import checkpoint
from spos.checkpoint import CheckpointError

TENSORS = {"weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7)}


def test_values_dtypes_and_meta_come_back(tmp_path: Path) -> None:
    shared = torch.randn(4)
    tensors = {
        "bf16": torch.randn(3).bfloat16(),
        "int64": torch.tensor([2**62]),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "empty": torch.empty(0, 3),
        "shared": shared,
        "shared_view": shared[1:],
        "bool": torch.tensor([True, False]),
    }
    checkpoint.save(
        tmp_path / "a.safetensors", tensors, {"step": 3, "lr": 0.1, "name": 'quote " and \u00fc "sha256":"'}
    )
    found, meta = checkpoint.load(tmp_path / "a.safetensors")
    assert meta == {"step": 3, "lr": 0.1, "name": 'quote " and \u00fc "sha256":"'}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_ordinary_safetensors_readers_open_it(tmp_path: Path) -> None:
    import safetensors.torch

    checkpoint.save(tmp_path / "a.safetensors", TENSORS)
    assert torch.equal(safetensors.torch.load_file(tmp_path / "a.safetensors")["weight"], TENSORS["weight"])


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, TENSORS, {"step": 3})
    good = path.read_bytes()
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(CheckpointError, match=r"a\.safetensors"):
            checkpoint.load(path)


def test_every_truncation_and_any_addition_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, TENSORS)
    good = path.read_bytes()
    for content in [*(good[:length] for length in range(len(good))), good + b"\0"]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a\.safetensors"):
            checkpoint.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    import safetensors.torch

    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(TENSORS, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match="not written by this library"):
        checkpoint.load(path)
    torch.save(TENSORS, path)
    with pytest.raises(CheckpointError, match=r"other\.safetensors"):
        checkpoint.load(path)
    path.write_bytes(struct.pack("<Q", 2**63) + b"x" * 100)
    with pytest.raises(CheckpointError, match="truncated"):
        checkpoint.load(path)
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "none.safetensors")


def test_what_cannot_be_stored_is_refused_by_name_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(TypeError, match=r"tensors\['x'\] is a list"):
        checkpoint.save(path, {"x": [1.0]})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="finite"):
        checkpoint.save(path, TENSORS, {"loss": float("nan")})
    with pytest.raises(TypeError, match=r"meta of a\.safetensors"):
        checkpoint.save(path, TENSORS, {"x": object()})
    assert os.listdir(tmp_path) == []
