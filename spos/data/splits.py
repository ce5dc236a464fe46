"""Which images go where: stratified splits, and fixed, shuffled, class-balanced subsets."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .checks import checked_int, checked_seed
from .draws import Stream, permutation
from .image_set import ImageSet

Indices = npt.NDArray[np.int64]


def balanced_subset(image_set: ImageSet, size: int, seed: int) -> ImageSet:
    """`size` different images, shuffled, as many of each class as of every other; the same ones for the same seed.

    Counts differ by at most one; a class with too few images gives all it has and the rest share what is missing.
    Raises ValueError for a size below 1 or above the number of images.
    """
    if checked_int("size", size, 1) > len(image_set):
        raise ValueError(f"size = {size}: expected at most {len(image_set)}, the number of images there are")
    seed = checked_seed(seed)
    labels = image_set.labels.numpy()
    counts = np.bincount(labels, minlength=len(image_set.classes))
    # Which classes get one image more is drawn too: always the first ones would favour them in every small subset.
    favoured = permutation(seed, Stream.SUBSET_CLASSES, 0, len(counts))
    quotas = _even_quotas(counts, size, favoured)
    return image_set.subset(_pick(labels, quotas, permutation(seed, Stream.SUBSET, 0, len(labels))))


def stratified_split(
    labels: Indices, classes: tuple[str, ...], fraction: float, seed: int, stream: Stream, name: str
) -> tuple[Indices, Indices]:
    """Positions that stay and positions held out, both ascending; round(N * fraction) are held out in all.

    Every class gives its share, to the nearest whole image. Raises ValueError, naming the setting `name` and the class,
    if a class would be left without an image on either side.
    """
    counts = np.bincount(labels, minlength=len(classes))
    quotas = _proportional_quotas(counts, fraction)
    for label, (count, quota) in enumerate(zip(counts, quotas, strict=True)):
        if not 0 < quota < count:
            side = "hold out" if quota == 0 else "keep"
            raise ValueError(
                f"{name} = {fraction}: leaves no image of class {classes[label]!r} to {side}, which has {count}; "
                "expected at least one image of every class on both sides"
            )
    held = np.sort(_pick(labels, quotas, permutation(seed, stream, 0, len(labels))))
    return np.setdiff1d(np.arange(len(labels)), held, assume_unique=True), held


def _pick(labels: Indices, quotas: Indices, order: Indices) -> Indices:
    """The first `quotas[c]` positions of each class c in `order`, kept in that order."""
    shuffled = labels[order]
    grouped = np.argsort(shuffled, kind="stable")
    starts = np.searchsorted(shuffled[grouped], np.arange(len(quotas)))
    rank = np.empty(len(labels), dtype=np.int64)
    rank[grouped] = np.arange(len(labels)) - starts[shuffled[grouped]]
    return order[rank < quotas[shuffled]]


def _even_quotas(counts: Indices, size: int, favoured: Indices) -> Indices:
    quotas = np.zeros_like(counts)
    while (left := size - int(quotas.sum())) > 0:
        open_classes = [label for label in favoured if quotas[label] < counts[label]]
        share = left // len(open_classes)
        for label in open_classes if share else open_classes[:left]:
            quotas[label] = min(counts[label], quotas[label] + max(share, 1))
    return quotas


def _proportional_quotas(counts: Indices, fraction: float) -> Indices:
    """Largest-remainder apportionment, so that the quotas add up to round(N * fraction)."""
    exact = counts * fraction
    quotas = np.floor(exact).astype(np.int64)
    missing = round(int(counts.sum()) * fraction) - int(quotas.sum())
    largest_first = np.argsort(quotas - exact, kind="stable")
    quotas[largest_first[:missing]] += 1
    return quotas
