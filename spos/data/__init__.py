"""Images for a run: read and decoded once, split, augmented in batches, every draw a function of (seed, step)."""

from .batches import BatchStream
from .dataset import Data
from .image_set import ImageSet
from .load import from_arrays, load
from .normalize import Normalization
from .splits import balanced_subset

__all__ = ["BatchStream", "Data", "ImageSet", "Normalization", "balanced_subset", "from_arrays", "load"]
