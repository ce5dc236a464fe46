from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spos.data import ImageSet, balanced_subset
from spos.data.draws import Stream
from spos.data.splits import stratified_split


def numbered(counts: list[int]) -> ImageSet:
    """Images whose pixels hold their position in the set, sorted by class."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    images = torch.stack([torch.arange(len(labels)) // 256, torch.arange(len(labels)) % 256, labels], dim=1)
    return ImageSet(images.to(torch.uint8).reshape(-1, 1, 1, 3), labels, tuple(f"c{i}" for i in range(len(counts))))


def positions(images: ImageSet) -> list[int]:
    high, low, _ = images.images.reshape(-1, 3).to(torch.int64).unbind(1)
    return (256 * high + low).tolist()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=6), st.data(), st.integers(0, 1000))
def test_balanced_subset_is_as_balanced_as_the_classes_allow(counts, data, seed):
    whole = numbered(counts)
    size = data.draw(st.integers(1, len(whole)))
    part = balanced_subset(whole, size, seed)
    chosen = positions(part)
    assert len(part) == size and len(set(chosen)) == size
    assert torch.equal(part.labels, whole.labels[chosen])
    got = np.bincount(part.labels, minlength=len(counts))
    # A class that has images left over must have given at least as many, less one, as any other class.
    for label in np.flatnonzero(got < counts):
        assert got[label] >= got.max() - 1


def test_balanced_subset_is_exact_shuffled_and_fixed_by_its_seed():
    whole = numbered([50] * 10)
    part = balanced_subset(whole, 100, 0)
    assert np.bincount(part.labels).tolist() == [10] * 10
    assert positions(part) != sorted(positions(part))
    first_half = np.bincount(part.labels[:50], minlength=10)
    assert first_half.min() >= 1  # not sorted by class
    assert positions(balanced_subset(whole, 100, 0)) == positions(part)
    assert set(positions(balanced_subset(whole, 100, 1))) != set(positions(part))


def test_the_odd_images_do_not_always_come_from_the_first_classes():
    whole = numbered([5] * 4)
    assert {int(balanced_subset(whole, 1, seed).labels[0]) for seed in range(40)} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("size", "seed", "error", "message"),
    [
        (0, 0, ValueError, "size = 0"),
        (21, 0, ValueError, "size = 21: expected at most 20"),
        (2.0, 0, TypeError, "size = 2.0"),
        (True, 0, TypeError, "size = True"),
        (1, -1, ValueError, "seed = -1"),
        (1, 2**63, ValueError, "seed"),
    ],
)
def test_balanced_subset_refuses(size, seed, error, message):
    with pytest.raises(error, match=message):
        balanced_subset(numbered([10, 10]), size, seed)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(10, 60), min_size=2, max_size=6), st.floats(0.1, 0.9), st.integers(0, 1000))
def test_stratified_split_parts_are_disjoint_whole_and_proportional(counts, fraction, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    classes = tuple(map(str, range(len(counts))))
    kept, held = stratified_split(labels, classes, fraction, seed, Stream.VALIDATION_SPLIT, "f")
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert kept.tolist() == sorted(kept) and held.tolist() == sorted(held)
    assert len(held) == round(len(labels) * fraction)
    assert (abs(np.bincount(labels[held], minlength=len(counts)) - np.array(counts) * fraction) < 1 + 1e-6).all()


def test_stratified_split_depends_on_seed_and_stream():
    labels = np.repeat(np.arange(2), 100)

    def held(seed, stream):
        return stratified_split(labels, ("a", "b"), 0.2, seed, stream, "f")[1].tolist()

    assert held(0, Stream.TEST_SPLIT) == held(0, Stream.TEST_SPLIT)
    assert held(0, Stream.TEST_SPLIT) != held(1, Stream.TEST_SPLIT) != held(0, Stream.VALIDATION_SPLIT)


def test_shares_that_are_whole_are_not_rounded_down():
    kept, held = stratified_split(np.repeat([0, 1], 100), ("a", "b"), 0.29, 0, Stream.TEST_SPLIT, "f")
    assert (len(kept), len(held)) == (142, 58)


@pytest.mark.parametrize(
    ("counts", "fraction", "message"),
    [
        ([50, 2], 0.1, "validation_fraction = 0.1: leaves no image of class 'b' to hold out, which has 2"),
        ([50, 1], 0.9, "validation_fraction = 0.9: leaves no image of class 'b' to keep, which has 1"),
    ],
)
def test_stratified_split_refuses_a_class_without_images_on_one_side(counts, fraction, message):
    with pytest.raises(ValueError, match=message):
        stratified_split(np.repeat([0, 1], counts), ("a", "b"), fraction, 0, Stream.TEST_SPLIT, "validation_fraction")
