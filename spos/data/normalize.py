"""From stored pixels to what a network is fed: float32 [B, C, H, W], channels_last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .image_set import ImageSet

_CHUNK = 4096


@dataclass(frozen=True)
class Normalization:
    """y = (x - mean) / std for each channel of RGB or grey x, 0 to 255; `bgr` then reverses the channels.

    The released Single Path One-Shot code feeds BGR from 0 to 255 as it is: `Normalization.official()`.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False

    @classmethod
    def official(cls) -> Self:
        """BGR, 0 to 255."""
        return cls((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), bgr=True)

    @classmethod
    def measured(cls, image_set: ImageSet) -> Self:
        """Mean and standard deviation of each channel over all these images. A channel of one value gets std 1."""
        images, channels = image_set.images.numpy(), image_set.images.shape[3]
        # Counts of the 256 values give exact sums, so the result does not depend on any order of summation.
        counts = np.zeros((channels, 256), dtype=np.int64)
        for start in range(0, len(images), _CHUNK):
            for channel in range(channels):
                counts[channel] += np.bincount(images[start : start + _CHUNK, ..., channel].ravel(), minlength=256)
        values, total = np.arange(256), counts.sum(axis=1)
        mean = counts @ values / total
        variance = counts @ values**2 / total - mean**2
        std = np.sqrt(np.where(variance > 1e-9, variance, 1.0))
        return cls(tuple(mean.tolist()), tuple(std.tolist()))

    def apply(self, images: npt.NDArray[np.uint8] | npt.NDArray[np.float32]) -> Tensor:
        """[B, H, W, C], 0 to 255, to float32 [B, C, H, W], channels_last contiguous, in memory of its own."""
        batch, height, width, channels = images.shape
        result = torch.empty(batch, height, width, channels)  # allocated by torch: aligned for its kernels
        if self.bgr:
            images = images[..., ::-1]
        if any(self.mean) or any(std != 1 for std in self.std):
            # Whole rows with the constants repeated along them: numpy's inner loop would be `channels` long otherwise.
            rows = result.numpy().reshape(batch, height, width * channels)
            mean, scale = self._constants(self.mean), 1 / self._constants(self.std)
            np.subtract(images.reshape(rows.shape), np.tile(mean, width), out=rows, dtype=np.float32)
            rows *= np.tile(scale, width)
        else:
            for channel in range(channels):
                result.numpy()[..., channel] = images[..., channel]
        return result.permute(0, 3, 1, 2)

    def _constants(self, values: tuple[float, ...]) -> npt.NDArray[np.float32]:
        return np.array(values[::-1] if self.bgr else values, dtype=np.float32)
