"""Labelled images in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ImageSet:
    """`images` uint8 [N, H, W, C], C 1 (grey) or 3 (RGB); `labels` int64 [N], indices into `classes` (2 or more).

    Both on the CPU, and contiguous: what is not is copied. Raises TypeError or ValueError for anything else, naming the
    first label out of range. A class may have no image here (subsets); `load` and `from_arrays` refuse that.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, dtype, layout in (("images", torch.uint8, "[N, H, W, C]"), ("labels", torch.int64, "[N]")):
            value = getattr(self, name)
            if not isinstance(value, Tensor) or value.dtype != dtype or value.device.type != "cpu":
                found = f"{value.dtype} on {value.device}" if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(f"ImageSet.{name} is {found}: expected a {dtype} tensor {layout} on the CPU")
        shape = tuple(self.images.shape)
        if len(shape) != 4 or shape[3] not in (1, 3) or 0 in shape:
            raise ValueError(
                f"ImageSet.images has shape {list(shape)}: expected [N, H, W, C], C 1 or 3, none of them 0"
            )
        if tuple(self.labels.shape) != shape[:1]:
            raise ValueError(
                f"ImageSet.labels has shape {list(self.labels.shape)}: expected [{shape[0]}], one label an image"
            )
        check_classes(self.classes)
        check_labels("ImageSet.labels", self.labels.numpy(), len(self.classes))
        object.__setattr__(self, "images", self.images.contiguous())
        object.__setattr__(self, "labels", self.labels.contiguous())

    def __len__(self) -> int:
        return self.images.shape[0]

    def content_hash(self) -> str:
        """SHA-256, in hexadecimal, of the class names, the labels, the shape and every pixel, in order."""
        header = json.dumps({"shape": list(self.images.shape), "classes": list(self.classes)})
        digest = hashlib.sha256(header.encode())
        digest.update(self.labels.numpy().astype("<i8").tobytes())
        digest.update(self.images.numpy().reshape(-1).data)
        return digest.hexdigest()

    def subset(self, indices: Sequence[int] | npt.NDArray[np.integer] | Tensor) -> ImageSet:
        """The images at these positions, in this order, copied. Raises ValueError for none, or one outside [0, N)."""
        index = np.asarray(indices)
        if index.ndim != 1 or index.size == 0 or index.dtype.kind not in "iu":
            raise ValueError(
                f"indices, {index.dtype} of shape {list(index.shape)}: expected integers [n], n at least 1"
            )
        outside = np.flatnonzero((index < 0) | (index >= len(self)))
        if outside.size:
            raise ValueError(f"indices[{outside[0]}] = {index[outside[0]]}: expected 0 to {len(self) - 1}")
        # numpy's gather, not torch's, which would take threads from the training step while prefetching.
        index = index.astype(np.int64, copy=False)
        images, labels = self.images.numpy()[index], self.labels.numpy()[index]
        return ImageSet(torch.from_numpy(images), torch.from_numpy(labels), self.classes)


def check_classes(classes: tuple[str, ...]) -> None:
    """Raises unless `classes` is a tuple of at least two different strings."""
    if not isinstance(classes, tuple) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"classes = {classes!r}: expected a tuple of strings")
    if len(classes) < 2:
        raise ValueError(f"classes = {classes!r}: expected at least two, there is nothing to tell apart in one")
    if len(set(classes)) < len(classes):
        twice = next(name for i, name in enumerate(classes) if name in classes[:i])
        raise ValueError(f"classes: {twice!r} occurs twice, expected different names")


def check_labels(name: str, labels: npt.NDArray[np.int64], num_classes: int) -> None:
    """Raises ValueError naming the first label outside [0, num_classes)."""
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        raise ValueError(
            f"{name}[{wrong[0]}] = {labels[wrong[0]]}: expected 0 to {num_classes - 1} for {num_classes} classes"
        )
