from __future__ import annotations

import numpy as np
import pytest
import torch

from spos.data import ImageSet


def make(count: int = 6, classes: tuple[str, ...] = ("a", "b")) -> ImageSet:
    images = torch.arange(count * 4 * 4 * 3).remainder(251).to(torch.uint8).reshape(count, 4, 4, 3)
    return ImageSet(images, torch.arange(count) % len(classes), classes)


def test_subset_keeps_the_order_given_and_copies():
    whole = make()
    part = whole.subset([4, 1])
    assert len(part) == 2 and torch.equal(part.images, whole.images[[4, 1]]) and part.labels.tolist() == [0, 1]
    part.images.zero_()
    assert torch.equal(whole.images, make().images)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0, 6], r"indices\[1\] = 6: expected 0 to 5"),
        ([-1], r"indices\[0\] = -1"),
        ([], "n at least 1"),
        ([0.5], "integers"),
    ],
)
def test_subset_refuses_wrong_indices(indices, message):
    with pytest.raises(ValueError, match=message):
        make().subset(indices)


def test_content_hash_sees_pixels_labels_classes_shape_and_order():
    base = make()
    assert base.content_hash() == make().content_hash() and len(base.content_hash()) == 64
    pixel = base.images.clone()
    pixel[5, 3, 3, 2] ^= 1
    labels = base.labels.clone()
    labels[0] = 1
    others = [
        ImageSet(pixel, base.labels, base.classes),
        ImageSet(base.images, labels, base.classes),
        ImageSet(base.images, base.labels, ("a", "c")),
        ImageSet(base.images.reshape(6, 2, 8, 3), base.labels, base.classes),
        base.subset([0, 3, 2, 1, 4, 5]),
    ]
    assert len({base.content_hash(), *(other.content_hash() for other in others)}) == 6


def test_layout_in_memory_does_not_change_the_hash_and_is_made_contiguous():
    base = make()
    strided = ImageSet(base.images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1), base.labels, base.classes)
    assert strided.images.is_contiguous() and strided.content_hash() == base.content_hash()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": torch.zeros(2, 4, 4, 3)}, TypeError, "images is torch.float32 on cpu: expected a torch.uint8"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, TypeError, "images is ndarray"),
        ({"labels": torch.zeros(2, dtype=torch.int32)}, TypeError, "labels is torch.int32"),
        ({"images": torch.zeros(2, 4, 4, dtype=torch.uint8)}, ValueError, r"shape \[2, 4, 4\]"),
        ({"images": torch.zeros(2, 4, 4, 4, dtype=torch.uint8)}, ValueError, "C 1 or 3"),
        ({"images": torch.zeros(0, 4, 4, 3, dtype=torch.uint8)}, ValueError, "none of them 0"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, r"labels has shape \[3\]: expected \[2\]"),
        ({"labels": torch.tensor([0, 2])}, ValueError, r"labels\[1\] = 2: expected 0 to 1 for 2 classes"),
        ({"labels": torch.tensor([-1, 0])}, ValueError, r"labels\[0\] = -1"),
        ({"classes": ("a",)}, ValueError, "at least two"),
        ({"classes": ("a", "b", "a")}, ValueError, "'a' occurs twice"),
        ({"classes": ["a", "b"]}, TypeError, "tuple of strings"),
        ({"classes": ("a", 1)}, TypeError, "tuple of strings"),
    ],
)
def test_refuses(change, error, message):
    good = {"images": torch.zeros(2, 4, 4, 3, dtype=torch.uint8), "labels": torch.tensor([0, 1]), "classes": ("a", "b")}
    with pytest.raises(error, match=message):
        ImageSet(**(good | change))
