from __future__ import annotations

import numpy as np
import pytest

from spos.config import DataConfig
from spos.data.augment import (
    augment,
    center_crop,
    color_jitter,
    horizontal_flip,
    padded_crop,
    random_resized_crop,
    stored_size,
)
from spos.data.draws import Stream


def noise(count: int, size: int = 12, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (count, size, size, channels), dtype=np.uint8)


def run(images: np.ndarray, step: int = 0, seed: int = 0, **settings) -> np.ndarray:
    off = {"crop_padding": 0, "flip": False, "image_size": images.shape[1]}
    return augment(images, DataConfig(**(off | settings)), seed, Stream.TRAINING_AUGMENT, step)


@pytest.mark.parametrize("channels", [1, 3])
def test_padded_crop_is_every_window_of_the_padded_image(channels):
    images, padding = noise(25, channels=channels), 2
    places = np.stack(np.divmod(np.arange(25), 5), axis=1)
    crops = padded_crop(images, padding, (places + 0.5) / 5)
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    for i, (top, left) in enumerate(places):
        assert np.array_equal(crops[i], padded[i, top : top + 12, left : left + 12])


def test_crop_offsets_are_uniform_and_reach_both_ends():
    images = np.zeros((4000, 9, 9, 1), np.uint8)
    images[:, 4, 4] = 255
    _, rows, columns, _ = np.nonzero(run(images, crop_padding=2))
    for places in (rows, columns):
        assert set(places) == {2, 3, 4, 5, 6} and np.bincount(places)[2:].min() > 650
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 0.06


def test_flip_mirrors_the_chosen_images_only():
    images = noise(6)
    before = images.copy()
    chosen = np.array([True, False, False, True, False, True])
    flipped = horizontal_flip(images, chosen)
    assert np.array_equal(flipped[chosen], images[chosen][:, :, ::-1]) and np.array_equal(
        flipped[~chosen], images[~chosen]
    )
    assert np.array_equal(images, before)


def test_half_of_the_images_are_flipped():
    images = noise(4000, 8, 1)
    result = run(images, flip=True)
    flipped = (result == images[:, :, ::-1]).all((1, 2, 3))
    assert (flipped | (result == images).all((1, 2, 3))).all()
    assert 0.46 < flipped.mean() < 0.54


def test_settings_have_draws_of_their_own():
    images = noise(64)
    crop = run(images, crop_padding=4)
    both = run(images, crop_padding=4, flip=True)
    assert all(np.array_equal(b, c) or np.array_equal(b, c[:, ::-1]) for b, c in zip(both, crop, strict=True))
    assert not np.array_equal(both, crop)


def test_flips_do_not_go_with_places():
    images = np.zeros((4000, 9, 9, 1), np.uint8)
    images[:, 4, 4] = 255
    _, rows, columns, _ = np.nonzero(run(images, crop_padding=2))
    flipped = np.nonzero(run(images, crop_padding=2, flip=True))[2] != columns
    for places in (rows[columns != 4], columns[columns != 4]):
        assert abs(np.corrcoef(places, flipped[columns != 4])[0, 1]) < 0.07


def test_nothing_switched_on_changes_nothing():
    assert np.array_equal(run(noise(4)), noise(4))


@pytest.mark.parametrize("settings", [{"crop_padding": 4}, {"flip": True}, {"color_jitter": 0.4}])
def test_pure_in_seed_and_step(settings):
    images = noise(64)
    first = run(images, 3, 1, **settings)
    assert np.array_equal(first, run(images, 3, 1, **settings)) and np.array_equal(images, noise(64))
    assert not np.array_equal(first, run(images, 4, 1, **settings))
    assert not np.array_equal(first, run(images, 3, 2, **settings))


def ramp(count: int, size: int) -> np.ndarray:
    """Green holds the row, red the column, so that a crop shows where it was taken."""
    rows, columns = np.indices((size, size))
    return np.broadcast_to(
        np.stack([columns, rows, columns * 0], axis=2).astype(np.uint8), (count, size, size, 3)
    ).copy()


def test_random_resized_crop_takes_areas_and_ratios_in_range():
    size, stored = 224, 256
    result = run(ramp(150, stored), random_resized_crop=True, image_size=size).astype(float)
    assert result.shape == (150, size, size, 3)
    width = (result[:, 0, -1, 0] - result[:, 0, 0, 0] + 1) / stored
    height = (result[:, -1, 0, 1] - result[:, 0, 0, 1] + 1) / stored
    area, ratio = width * height, width / height
    assert area.min() > 0.07 and area.max() <= 1 and area.min() < 0.13 and area.max() > 0.9
    assert ratio.min() > 0.72 and ratio.max() < 1.38 and (ratio < 0.85).any() and (ratio > 1.15).any()
    left = result[:, 0, 0, 0]
    assert left.min() < 5 and left.max() > 100  # crops move
    assert (np.diff(result[..., 0], axis=2) >= 0).all()  # not mirrored


def test_random_resized_crop_of_given_draws():
    half = (0.25 - 0.08) / 0.92  # a quarter of the area, square: half of the side
    draws = np.array([[[half, 0.5, 0.999, 0.0], [0.9, 0.5, 0, 0]]])
    crop = random_resized_crop(ramp(1, 32), 16, draws)[0]
    assert np.array_equal(crop, ramp(1, 32)[0, 16:, :16])
    unfit = np.array([[[1.0, 1.0, 0.3, 0.3]] * 2])  # all of the area at 4:3 does not fit a square
    assert np.array_equal(random_resized_crop(ramp(1, 32), 32, unfit)[0], ramp(1, 32)[0])
    second = np.array([[[1.0, 1.0, 0.3, 0.3], [half, 0.5, 0.0, 0.999]]])
    assert np.array_equal(random_resized_crop(ramp(1, 32), 16, second)[0], ramp(1, 32)[0, :16, 16:])


def test_random_resized_crop_keeps_grey_images_grey():
    assert run(noise(3, 37, 1), random_resized_crop=True, image_size=32).shape == (3, 32, 32, 1)


def torchvision_like(image: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """The three steps one by one, in float64, limited at the end."""
    weights = np.array([0.299, 0.587, 0.114])
    x = image.astype(float) * brightness
    x = contrast * x + (1 - contrast) * (x @ weights).mean()
    x = saturation * x + (1 - saturation) * (x @ weights)[..., None]
    return np.clip(x, 0, 255)


def test_colour_jitter_is_the_three_steps_in_one():
    images = noise(20)
    factors = np.random.default_rng(1).uniform(0.4, 1.6, (20, 3))
    result = color_jitter(images, factors)
    assert result.dtype == np.float32 and result.min() >= 0 and result.max() <= 255
    for image, factor, got in zip(images, factors, result, strict=True):
        assert np.allclose(got, torchvision_like(image, *factor), atol=1e-3)
    assert np.allclose(color_jitter(images, np.ones((20, 3))), images, atol=1e-3)


def test_colour_jitter_of_grey_images_ignores_saturation():
    images = noise(4, channels=1)
    result = color_jitter(images, np.array([[1.1, 0.7, 0.2]] * 4))
    assert result.shape == images.shape
    assert np.allclose(result, color_jitter(images, np.array([[1.1, 0.7, 1.9]] * 4)), atol=1e-3)


def test_colour_jitter_factors_span_their_range():
    """Of a grey picture only brightness shows: its factor is uniform in 1 - 0.4 to 1 + 0.4."""
    images = np.full((2000, 8, 8, 3), 100, np.uint8)
    factor = run(images, color_jitter=0.4)[:, 0, 0, 0] / 100
    assert 0.6 <= factor.min() < 0.62 and 1.38 < factor.max() <= 1.4 and 0.98 < factor.mean() < 1.02


def test_jitter_draws_of_the_three_factors_differ():
    images = noise(500)
    means = run(images, color_jitter=0.4).astype(float)
    brightness = means.mean((1, 2, 3))
    spread = means.std((1, 2, 3)) / brightness  # contrast and saturation, whatever the brightness
    assert abs(np.corrcoef(brightness, spread)[0, 1]) < 0.5 and spread.std() > 0.05


def test_centre_crop_and_stored_size():
    assert np.array_equal(center_crop(ramp(1, 37), 32), ramp(1, 37)[:, 2:34, 2:34])
    assert stored_size(DataConfig(image_size=224, random_resized_crop=True)) == 256
    assert stored_size(DataConfig(image_size=224)) == 224
