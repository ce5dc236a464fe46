"""CIFAR-10 in its binary version: records of one label byte and 3 x 32 x 32 pixel bytes, the colours one after another.

Format: https://www.cs.toronto.edu/~kriz/cifar.html, "Binary version".
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from .decode import fit_arrays
from .image_set import ImageSet

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_PIXELS = 3 * 32 * 32


def find_cifar(source: Path) -> Path | None:
    """The folder, `source` or the one that the original archive unpacks to, which holds `data_batch_*.bin`; or None.

    Raises ValueError for the Python version of the data set, which consists of pickles: those are never read.
    """
    for folder in (source, source / "cifar-10-batches-bin"):
        if any(folder.glob("data_batch_*.bin")):
            return folder
    for folder in (source, source / "cifar-10-batches-py"):
        if (folder / "data_batch_1").is_file():
            raise ValueError(
                f"{folder}: CIFAR-10 as pickles, which are not read: expected its binary version (data_batch_1.bin)"
            )
    return None


def read_cifar(folder: Path, size: int) -> tuple[ImageSet, ImageSet | None]:
    """Training images from `data_batch_*.bin`, test images from `test_batch.bin` where there is one, at this size.

    Raises ValueError naming a file of the wrong length, or the record with a label above 9.
    """
    classes = _class_names(folder / "batches.meta.txt")
    training = _read_batches(sorted(folder.glob("data_batch_*.bin")), size, classes)
    test = folder / "test_batch.bin"
    return training, _read_batches([test], size, classes) if test.exists() else None


def _read_batches(paths: list[Path], size: int, classes: tuple[str, ...]) -> ImageSet:
    records = np.concatenate([_records(path) for path in paths])
    images = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    labels = torch.from_numpy(records[:, 0].astype(np.int64))
    return ImageSet(torch.from_numpy(fit_arrays(images, size)), labels, classes)


def _records(path: Path) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    if content.size == 0 or content.size % (1 + _PIXELS):
        raise ValueError(
            f"{path}: {content.size} bytes: expected a multiple of {1 + _PIXELS}, one label and {_PIXELS} pixels"
        )
    records = content.reshape(content.size // (1 + _PIXELS), 1 + _PIXELS)
    wrong = np.flatnonzero(records[:, 0] >= len(CLASSES))
    if wrong.size:
        raise ValueError(
            f"{path}: record {wrong[0]} has label {records[wrong[0], 0]}: expected 0 to {len(CLASSES) - 1}"
        )
    return records


def _class_names(path: Path) -> tuple[str, ...]:
    if not path.exists():
        return CLASSES
    names = tuple(path.read_text(encoding="utf-8", errors="replace").split())
    if len(names) != len(CLASSES):
        raise ValueError(f"{path}: {len(names)} class names: expected {len(CLASSES)}")
    return names
