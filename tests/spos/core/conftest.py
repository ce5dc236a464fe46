from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import spos


@pytest.fixture(autouse=True)
def one_thread():
    """Small networks are fastest on one thread, and its results are the same from run to run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_data(seed: int = 0, side: int = 8, classes: int = 3, images: int = 240, crop_padding: int = 1) -> spos.Data:
    """Noise, on rows for class 0 and on columns for class 1: learnable in a few steps, also when shifted."""
    rng = np.random.default_rng(7)
    labels = np.arange(images) % classes
    pixels = rng.integers(0, 60, (images, side, side, 1))
    pixels[labels == 0, ::2] += 150
    pixels[labels == 1, :, ::2] += 150
    config = spos.DataConfig(image_size=side, crop_padding=crop_padding, flip=False, validation_fraction=0.25)
    return spos.data.from_arrays(pixels.astype(np.uint8), labels, config=config, seed=seed)


def make_module(width: int = 6, classes: int = 3) -> nn.Module:
    """A user's own chain: an operator choice with an identity, an activation choice, a choice of whole branches."""

    def conv(kernel: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(width))

    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)),
            operator=spos.ChoiceBlock({"conv3": conv(3), "conv5": conv(5), "skip": nn.Identity()}),
            activation=spos.ChoiceBlock({"relu": nn.ReLU(), "gelu": nn.GELU()}, kind="activation"),
            branch=spos.ChoiceBlock({"two": nn.Sequential(conv(3), nn.ReLU(), conv(1)), "one": conv(1)}, kind="branch"),
            head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(width, classes)),
        )
    )


@pytest.fixture
def data() -> spos.Data:
    return make_data()


@pytest.fixture
def net() -> spos.Supernet:
    return spos.Supernet(make_module(), input_shape=(1, 8, 8))


# Few steps: a warm-up of widths would leave none for the narrow ones.
TRAIN = spos.TrainConfig(steps=9, batch_size=16, lr=0.05, log_every=2, checkpoint_every=4, width_warmup=0.0)
SEARCH = spos.SearchConfig(population=4, generations=2, mutations=2, crossovers=1, parents=2, calibration_images=48)
