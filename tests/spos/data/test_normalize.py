from __future__ import annotations

import numpy as np
import pytest
import torch

from spos.data import ImageSet, Normalization


def noise(channels: int, count: int = 50) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 200, (count, 6, 6, channels), dtype=np.uint8)
    return images // np.arange(1, channels + 1, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_measured_statistics_give_mean_0_and_deviation_1(channels):
    images = noise(channels)
    normalization = Normalization.measured(ImageSet(torch.from_numpy(images), torch.arange(50) % 2, ("a", "b")))
    assert np.allclose(normalization.mean, images.mean((0, 1, 2))) and np.allclose(
        normalization.std, images.std((0, 1, 2))
    )
    x = normalization.apply(images)
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(channels), atol=1e-5)
    assert torch.allclose(x.std((0, 2, 3), correction=0), torch.ones(channels), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_layout_and_values(channels, batch, dtype):
    images = noise(channels)[:batch].astype(dtype)
    mean, std = (10.0, 20.0, 30.0)[:channels], (2.0, 4.0, 8.0)[:channels]
    x = Normalization(mean, std).apply(images)
    assert x.dtype == torch.float32 and x.shape == (batch, channels, 6, 6)
    assert x.is_contiguous(memory_format=torch.channels_last) and x.stride(3) == channels
    assert np.allclose(x.permute(0, 2, 3, 1).numpy(), (images - np.array(mean)) / np.array(std), atol=1e-6)


def test_official_is_bgr_from_0_to_255():
    images = noise(3)
    x = Normalization.official().apply(images)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(x.permute(0, 2, 3, 1).numpy(), images[..., [2, 1, 0]].astype(np.float32))


def test_the_batch_has_memory_of_its_own():
    images = noise(3).astype(np.float32)
    before = images.copy()
    Normalization((1.0, 1.0, 1.0), (2.0, 2.0, 2.0)).apply(images).zero_()
    assert np.array_equal(images, before)


def test_a_channel_of_one_value_stays_finite():
    images = noise(3)
    images[..., 2] = 77
    image_set = ImageSet(torch.from_numpy(images), torch.arange(50) % 2, ("a", "b"))
    normalization = Normalization.measured(image_set)
    assert normalization.std[2] == 1 and (normalization.apply(images)[:, 2] == 0).all()
