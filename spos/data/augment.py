"""Training augmentation of a whole batch: crop, flip, colour jitter. Pure functions of the images and of given draws.

[B, S, S, C] uint8 in, [B, image_size, image_size, C] out: uint8, or float32 from 0 to 255 after colour jitter.
Vectorised numpy on one thread: the other cores belong to the training step, and no result depends on their number.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..config import DataConfig
from .draws import Stream, uniform

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Draws = npt.NDArray[np.float64]

# Training cuts from images stored 256 / 224 times as large, as ImageNet is evaluated: resized to 256, centre 224.
STORED_RATIO = 256 / 224
_TRIES = 10
_MIN_AREA = 0.08
_GREY_WEIGHTS = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


def stored_size(config: DataConfig) -> int:
    """Side, in pixels, that images are kept at: the network's, or larger, for random_resized_crop to cut from."""
    return round(config.image_size * STORED_RATIO) if config.random_resized_crop else config.image_size


def augment(images: Pixels, config: DataConfig, seed: int, stream: Stream, step: int) -> Pixels | Floats:
    """A batch [B, S, S, C], S the stored size, augmented as `config` says with the draws of (seed, stream, step).

    Crop, then flip, then jitter. Every setting has draws of its own: switching one off changes none of the others.
    """
    count = len(images)
    draws = uniform(seed, stream, step, (count, 6 + 4 * _TRIES))
    if config.random_resized_crop:
        images = random_resized_crop(images, config.image_size, draws[:, 6:].reshape(count, _TRIES, 4))
    elif config.crop_padding:
        images = padded_crop(images, config.crop_padding, draws[:, :2])
    if config.flip:
        images = horizontal_flip(images, draws[:, 2] < 0.5)
    if config.color_jitter:
        return color_jitter(images, 1 + config.color_jitter * (2 * draws[:, 3:6] - 1))
    return images


def center_crop(images: Pixels, size: int) -> Pixels:
    """The central size x size of each image, a view: what evaluation sees."""
    start = (images.shape[1] - size) // 2
    return images[:, start : start + size, start : start + size]


def padded_crop(images: Pixels, padding: int, draws: Draws) -> Pixels:
    """A window of the images' own size at a random place of the image padded with black; draws [B, 2], y and x."""
    count, size, _, channels = images.shape
    padded = np.zeros((count, size + 2 * padding, size + 2 * padding, channels), dtype=np.uint8)
    padded[:, padding:-padding, padding:-padding] = images
    top, left = np.floor(draws * (2 * padding + 1)).astype(np.int64).T
    # All windows as one view, in rows of bytes, so that picking B of them copies whole rows.
    image_step, row_step, pixel_step, _ = padded.strides
    windows = np.lib.stride_tricks.as_strided(
        padded,
        (count, 2 * padding + 1, 2 * padding + 1, size, size * channels),
        (image_step, row_step, pixel_step, row_step, 1),
        writeable=False,
    )
    return windows[np.arange(count), top, left].reshape(images.shape)


def horizontal_flip(images: Pixels, chosen: npt.NDArray[np.bool_]) -> Pixels:
    """A copy with the chosen images [B] mirrored."""
    result = images.copy()
    picked = images[chosen]
    mirrored = np.empty_like(picked)
    for channel in range(images.shape[3]):  # numpy's inner loop then runs along a row, not over three channels
        mirrored[..., channel] = picked[:, :, ::-1, channel]
    result[chosen] = mirrored
    return result


def random_resized_crop(images: Pixels, size: int, draws: Draws) -> Pixels:
    """A random 8 to 100 % of each image's area, sides 3:4 to 4:3, resized (bilinear) to [B, size, size, C].

    draws [B, tries, 4]: area, ratio, y, x; the first try that fits counts, the whole image if none does.
    Method: Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6.
    """
    count, stored, _, channels = images.shape
    area = stored**2 * (_MIN_AREA + (1 - _MIN_AREA) * draws[..., 0])
    ratio = np.exp(np.log(4 / 3) * (2 * draws[..., 1] - 1))
    width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (width <= stored) & (height <= stored)
    first = (np.arange(count), np.argmax(fits, axis=1))
    found = fits.any(axis=1)
    width, height = np.where(found, width[first], stored), np.where(found, height[first], stored)
    top = np.floor(draws[..., 2][first] * (stored - height + 1)).astype(np.int64)
    left = np.floor(draws[..., 3][first] * (stored - width + 1)).astype(np.int64)
    result = np.empty((count, size, size, channels), dtype=np.uint8)
    boxes = np.stack([left, top, left + width, top + height], axis=1).tolist()
    # One image at a time, since each has a scale of its own; the work is Pillow's, far above the cost of the loop.
    for target, image, box in zip(result, images, boxes, strict=True):
        picture = Image.fromarray(image[..., 0] if channels == 1 else image)
        resized = picture.resize((size, size), Image.Resampling.BILINEAR, box=tuple(box))
        target[...] = np.asarray(resized).reshape(size, size, channels)
    return result


def color_jitter(images: Pixels, factors: Draws) -> Floats:
    """Brightness, then contrast, then saturation by factors [B, 3] (1: as it was): float32 [B, H, W, C], 0 to 255.

    Contrast is relative to the image's mean grey, saturation to each pixel's grey. All three are linear, so they are
    applied as one, and the result is limited to 0 to 255 once, at the end; it is not rounded.
    """
    channels = images.shape[3]
    weights = _GREY_WEIGHTS if channels == 3 else (1.0,)
    planes = [images[..., channel].astype(np.float32) for channel in range(channels)]
    grey = np.zeros_like(planes[0])
    for plane, weight in zip(planes, weights, strict=True):
        grey += np.float32(weight) * plane
    mean_grey = grey.mean(axis=(1, 2), keepdims=True)
    brightness, contrast, saturation = factors.astype(np.float32).T[:, :, None, None]
    own = saturation * contrast * brightness
    grey *= (1 - saturation) * contrast * brightness
    grey += (1 - contrast) * brightness * mean_grey
    result = np.empty(images.shape, dtype=np.float32)
    for channel, plane in enumerate(planes):
        plane *= own
        plane += grey
        np.clip(plane, 0, 255, out=result[..., channel])
    return result
