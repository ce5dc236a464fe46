from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from spos.config import DataConfig
from spos.data import Data, ImageSet, from_arrays


def make(count: int = 120, channels: int = 3, **settings) -> Data:
    """Two classes; the first pixel of image i holds i, and nothing is cut or flipped."""
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, channels), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(count)
    config = DataConfig(**({"image_size": 8, "crop_padding": 0, "flip": False} | settings))
    return from_arrays(images, np.arange(count) % 2, config=config)


def numbers(data: Data, x: torch.Tensor) -> list[int]:
    return (x[:, 0, 0, 0] * data.normalization.std[0] + data.normalization.mean[0]).round().int().tolist()


def test_training_reads_train_only_unless_asked_for_both():
    data = make()
    train, validation = (set(part.images[:, 0, 0, 0].tolist()) for part in (data.train, data.validation))
    test = {n for x, _ in data.test_batches(50) for n in numbers(data, x)}
    assert [len(part) for part in (train, validation, test)] == [86, 10, 24]

    def seen(**options) -> set[int]:
        batches = data.training_batches(2, 0, **options)
        return {n for step in range(batches.steps_per_epoch) for n in numbers(data, batches.batch(step)[0])}

    assert seen() == train
    assert seen(include_validation=True) == train | validation
    assert len(train | validation | test) == 120


def test_validation_batches_are_balanced_fixed_and_plain():
    data = make(crop_padding=4, flip=True, color_jitter=0.4)
    batches = data.validation_batches(6, 4, 0)
    assert [len(y) for _, y in batches] == [4, 2]
    labels = torch.cat([y for _, y in batches])
    assert torch.bincount(labels).tolist() == [3, 3]
    again = data.validation_batches(6, 4, 0)
    assert all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(batches, again, strict=True))
    pixels = {
        image.numpy().tobytes(): int(label)
        for image, label in zip(data.validation.images, data.validation.labels, strict=True)
    }
    for x, y in batches:
        assert (
            x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last) and y.dtype == torch.int64
        )
        raw = x.permute(0, 2, 3, 1).double() * torch.tensor(data.normalization.std) + torch.tensor(
            data.normalization.mean
        )
        assert [pixels[image.round().to(torch.uint8).numpy().tobytes()] for image in raw] == y.tolist()


def test_zero_validation_images_are_all_of_them_shuffled():
    data = make()
    batches = data.validation_batches(0, 100, 3)
    assert len(batches) == 1 and sorted(numbers(data, batches[0][0])) == sorted(
        data.validation.images[:, 0, 0, 0].tolist()
    )
    assert numbers(data, batches[0][0]) != numbers(data, data.validation_batches(0, 100, 4)[0][0])


def test_calibration_batches_are_from_train_balanced_augmented_and_fixed():
    data = make()
    batches = data.calibration_batches(20, 8, 0)
    assert [len(x) for x in batches] == [8, 8, 4]
    chosen = list(itertools.chain.from_iterable(numbers(data, x) for x in batches))
    assert len(set(chosen)) == 20 and set(chosen) <= set(data.train.images[:, 0, 0, 0].tolist())
    assert sum(n % 2 for n in chosen) == 10

    augmented = make(crop_padding=4, flip=True)
    first, again, other = (augmented.calibration_batches(20, 8, seed) for seed in (0, 0, 1))
    assert all(torch.equal(x, u) for x, u in zip(first, again, strict=True))
    assert not any(torch.equal(x, u) for x, u in zip(first, other, strict=True))
    assert not any(torch.equal(x, u) for x, u in zip(first, batches, strict=True))
    assert len({x.numpy().tobytes() for x in first}) == 3


def test_calibration_draws_differ_between_batches():
    images = np.zeros((40, 9, 9, 1), np.uint8)
    images[:, 4, 4] = 255
    data = from_arrays(images, np.arange(40) % 2, config=DataConfig(image_size=9, flip=False))
    places = [torch.nonzero(x == x.max())[:, 2:].tolist() for x in data.calibration_batches(20, 10, 0)]
    assert places[0] != places[1]


def test_a_last_single_calibration_image_is_dropped_and_two_are_kept():
    assert [len(x) for x in make().calibration_batches(9, 4, 0)] == [4, 4]
    assert [len(x) for x in make().calibration_batches(10, 4, 0)] == [4, 4, 2]


def test_test_batches_keep_the_order_and_the_last_part():
    data = make()
    batches = list(data.test_batches(10))
    assert [len(y) for _, y in batches] == [10, 10, 4]
    found = [n for x, _ in batches for n in numbers(data, x)]
    assert found == sorted(found)
    assert [n % 2 for n in found] == torch.cat([y for _, y in batches]).tolist()


def test_test_images_are_not_among_the_public_attributes():
    data = make()
    public = [getattr(data, name) for name in dir(data) if not name.startswith("_")]
    assert [len(value) for value in public if isinstance(value, ImageSet)] == [86, 10] or sorted(
        len(value) for value in public if isinstance(value, ImageSet)
    ) == [10, 86]


def test_normalisation_is_measured_on_train_alone():
    images = np.zeros((100, 8, 8, 1), np.uint8)
    images[::2] = 200
    base = from_arrays(images, np.arange(100) % 2, config=DataConfig(image_size=8))
    assert base.normalization.mean == (100.0,) and base.normalization.std == (100.0,)
    changed = Data(
        base.train, ImageSet(base.validation.images * 0, base.validation.labels, base.classes), base._test, base.config
    )
    assert changed.normalization == base.normalization


def test_official_normalisation_is_bgr_0_to_255():
    data = make(normalize="official")
    (x, _), *_ = data.test_batches(1000)
    assert np.array_equal(x.permute(0, 2, 3, 1).numpy(), data._test.images.numpy()[..., ::-1].astype(np.float32))
    step, _ = data.training_batches(4, 0).batch(0)
    assert set(step[:, 2, 0, 0].int().tolist()) <= set(data.train.images[:, 0, 0, 0].tolist())
    with pytest.raises(ValueError, match="normalize = 'official' means BGR, but the images are grey"):
        make(channels=1, normalize="official")


def test_content_hash_sees_pixels_labels_and_the_split():
    data = make()

    def rebuilt(train=data.train, validation=data.validation, test=data._test) -> str:
        return Data(train, validation, test, data.config).content_hash

    base = rebuilt()
    pixels = data._test.images.clone()
    pixels[0, 0, 0, 0] ^= 1
    labels = data.validation.labels.clone()
    labels[0] ^= 1
    hashes = {
        base,
        rebuilt(test=ImageSet(pixels, data._test.labels, data.classes)),
        rebuilt(validation=ImageSet(data.validation.images, labels, data.classes)),
        rebuilt(validation=data._test, test=data.validation),
        rebuilt(train=data.validation, validation=data.train),
    }
    assert data.content_hash == base and len(hashes) == 5


def test_batches_prepared_by_workers_are_the_same():
    inline, threaded = (make(workers=workers, crop_padding=2, flip=True).training_batches(8, 0) for workers in (0, 2))
    for (x, y), (u, v) in zip(inline.iterate(0, 20), threaded.iterate(0, 20), strict=True):
        assert torch.equal(x, u) and torch.equal(y, v)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda d: d.validation_batches(11, 4, 0),
            ValueError,
            "images = 11: expected at most 10, the number of validation",
        ),
        (lambda d: d.validation_batches(-1, 4, 0), ValueError, "images = -1"),
        (lambda d: d.validation_batches(4, 0, 0), ValueError, "batch_size = 0"),
        (
            lambda d: d.calibration_batches(87, 4, 0),
            ValueError,
            "images = 87: expected at most 86, the number of training",
        ),
        (lambda d: d.calibration_batches(1, 4, 0), ValueError, "images = 1: expected an integer of at least 2"),
        (lambda d: d.calibration_batches(4, 1, 0), ValueError, "batch_size = 1: expected an integer of at least 2"),
        (lambda d: d.calibration_batches(4, 2, -1), ValueError, "seed = -1"),
        (lambda d: d.training_batches(87, 0), ValueError, "batch_size = 87: expected at most 86"),
        (lambda d: d.test_batches(0), ValueError, "batch_size = 0"),
        (lambda d: d.test_batches("8"), TypeError, "batch_size = '8'"),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call(make())


def test_parts_must_match():
    data, other = make(), make(channels=1)
    with pytest.raises(ValueError, match=r"validation images are \[8, 8, 1\]: expected \[8, 8, 3\]"):
        Data(data.train, other.validation, data._test, data.config)
    renamed = ImageSet(data.validation.images, data.validation.labels, ("x", "y"))
    with pytest.raises(ValueError, match="test has classes"):
        Data(data.train, data.validation, renamed, data.config)
    with pytest.raises(ValueError, match=r"train images are \[8, 8, 3\]: expected \[9, 9, 3\]"):
        Data(data.train, data.validation, data._test, DataConfig(image_size=9))


def test_batches_that_would_not_fit_in_memory_are_refused(monkeypatch):
    data = make()
    monkeypatch.setattr("spos.data.memory.available_memory", lambda: 4 * 10 * 8 * 8 * 3 - 1)
    with pytest.raises(ValueError, match="10 validation images as float32 needs"):
        data.validation_batches(0, 4, 0)
    data.validation_batches(9, 4, 0)
    with pytest.raises(ValueError, match="joining training and validation images needs"):
        data.training_batches(4, 0, include_validation=True)
