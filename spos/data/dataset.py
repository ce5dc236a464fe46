"""A data set ready for a run: training, validation and test images, and the batches that each part of a run reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property

import torch
from torch import Tensor

from ..config import DataConfig
from .augment import augment, center_crop, stored_size
from .batches import Batch, BatchStream
from .checks import checked_int, checked_seed
from .draws import Stream
from .image_set import ImageSet
from .memory import require_memory
from .normalize import Normalization
from .splits import balanced_subset


class Data:
    """`train` and `validation` images, disjoint; the test images can be reached through `test_batches` only.

    All three hold squares of the same size, channels and classes, at the stored size: `image_size`, or 8/7 of it with
    random_resized_crop, where training crops from the larger square and evaluation sees its centre.
    `normalization` is measured on `train`, or the released code's, as `config.normalize` says.
    Made by `load` and `from_arrays`. Raises ValueError where the three do not match each other or `config`.
    """

    def __init__(self, train: ImageSet, validation: ImageSet, test: ImageSet, config: DataConfig) -> None:
        side = stored_size(config)
        expected = (side, side, train.images.shape[3])
        for name, part in (("train", train), ("validation", validation), ("test", test)):
            if tuple(part.images.shape[1:]) != expected:
                raise ValueError(f"{name} images are {list(part.images.shape[1:])}: expected {list(expected)}")
            if part.classes != train.classes:
                raise ValueError(f"{name} has classes {part.classes}: expected those of train, {train.classes}")
        if config.normalize == "official" and expected[2] != 3:
            raise ValueError(
                "DataConfig.normalize = 'official' means BGR, but the images are grey: expected 'mean-std'"
            )
        self.train = train
        self.validation = validation
        self.config = config
        self.normalization = (
            Normalization.official() if config.normalize == "official" else Normalization.measured(train)
        )
        self._test = test

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names by label."""
        return self.train.classes

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.train.classes)

    @property
    def in_channels(self) -> int:
        """1 if every image is grey, else 3."""
        return self.train.images.shape[3]

    @property
    def image_size(self) -> int:
        """Side of the images that batches hold, in pixels."""
        return self.config.image_size

    @cached_property
    def content_hash(self) -> str:
        """SHA-256, in hexadecimal, of all images, labels and class names and of which split each is in."""
        parts = {"train": self.train, "validation": self.validation, "test": self._test}
        text = json.dumps({name: part.content_hash() for name, part in parts.items()})
        return hashlib.sha256(text.encode()).hexdigest()

    def training_batches(self, batch_size: int, seed: int, *, include_validation: bool = False) -> BatchStream:
        """Shuffled and augmented batches of `train`; with include_validation of both (to retrain what a search found).

        The normalisation is the same either way. Raises ValueError if there are fewer than batch_size images.
        """
        images = _joined(self.train, self.validation) if include_validation else self.train
        return BatchStream(images, batch_size, seed, config=self.config, normalization=self.normalization)

    def calibration_batches(self, images: int, batch_size: int, seed: int) -> list[Tensor]:
        """A fixed, shuffled, class-balanced subset of `train`, augmented as for training: [x], float32 [B, C, S, S].

        A last batch of a single image is dropped: batch normalisation needs two. Raises ValueError if there are fewer
        than `images` training images.
        """
        checked_int("images", images, 2)
        seed = checked_seed(seed)
        subset = self._subset(self.train, images, seed, "training")
        batches = []
        for step, pixels in enumerate(subset.images.split(checked_int("batch_size", batch_size, 2))):
            if len(pixels) >= 2:
                augmented = augment(pixels.numpy(), self.config, seed, Stream.CALIBRATION_AUGMENT, step)
                batches.append(self.normalization.apply(augmented))
        return batches

    def validation_batches(self, images: int, batch_size: int, seed: int) -> list[Batch]:
        """A fixed, shuffled, class-balanced subset of `validation` (0: all of it), not augmented: [(x, y)].

        x float32 [B, C, S, S], y int64 [B]; the last batch may be smaller. Raises ValueError if there are fewer than
        `images` validation images.
        """
        count = checked_int("images", images, 0) or len(self.validation)
        subset = self._subset(self.validation, count, checked_seed(seed), "validation")
        return list(self._plain_batches(subset, checked_int("batch_size", batch_size, 1)))

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        """All test images, in their own order, not augmented: (x, y) as of validation_batches."""
        return self._plain_batches(self._test, checked_int("batch_size", batch_size, 1))

    def _subset(self, image_set: ImageSet, images: int, seed: int, name: str) -> ImageSet:
        if images > len(image_set):
            raise ValueError(f"images = {images}: expected at most {len(image_set)}, the number of {name} images")
        require_memory(4 * images * self.image_size**2 * self.in_channels, f"{images} {name} images as float32")
        return balanced_subset(image_set, images, seed)

    def _plain_batches(self, image_set: ImageSet, batch_size: int) -> Iterator[Batch]:
        for pixels, labels in zip(image_set.images.split(batch_size), image_set.labels.split(batch_size), strict=True):
            yield self.normalization.apply(center_crop(pixels.numpy(), self.image_size)), labels


def _joined(first: ImageSet, second: ImageSet) -> ImageSet:
    require_memory(first.images.numel() + second.images.numel(), "joining training and validation images")
    return ImageSet(torch.cat([first.images, second.images]), torch.cat([first.labels, second.labels]), first.classes)
