"""Random draws as pure functions of (seed, stream, step): Philox4x64, keyed by seed and stream, counter set by step.

Counter-based, so any batch can be drawn without the ones before it: a resumed run, and any number of workers, see the
same numbers. Only the raw 64-bit words are used, which numpy keeps stable; its distributions may change between
releases, and the held-out test images must not.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from enum import IntEnum
from math import prod

import numpy as np
import numpy.typing as npt


class Stream(IntEnum):
    """What a draw is for: draws of two streams are independent, whatever their seeds and steps."""

    TEST_SPLIT = 0xDA7A0001
    VALIDATION_SPLIT = 0xDA7A0002
    SUBSET = 0xDA7A0003
    SUBSET_CLASSES = 0xDA7A0004
    EPOCH_ORDER = 0xDA7A0005
    TRAINING_AUGMENT = 0xDA7A0006
    CALIBRATION_AUGMENT = 0xDA7A0007


def _words(seed: int, stream: Stream, step: int, count: int) -> npt.NDArray[np.uint64]:
    # The generator counts in the low words; the step sits two words above, so no two steps ever share a block.
    bits = np.random.Philox(
        key=np.array([seed, int(stream)], dtype=np.uint64), counter=np.array([0, 0, step, 0], dtype=np.uint64)
    )
    return bits.random_raw(count)


def uniform(seed: int, stream: Stream, step: int, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1), float64, of this shape."""
    words = _words(seed, stream, step, prod(shape))
    return ((words >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(shape)


def permutation(seed: int, stream: Stream, step: int, count: int) -> npt.NDArray[np.int64]:
    """A uniformly drawn order of range(count), int64."""
    return np.argsort(_words(seed, stream, step, count), kind="stable").astype(np.int64, copy=False)
