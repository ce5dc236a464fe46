from __future__ import annotations

import numpy as np
import pytest

from spos.config import DataConfig
from spos.data import load
from spos.data.cifar import CLASSES, find_cifar, read_cifar


def batch(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, bytes]:
    """Images [N, 32, 32, 3], labels, and the bytes of the file that holds them."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    planes = images.transpose(0, 3, 1, 2).reshape(count, -1)
    return images, labels, np.concatenate([labels[:, None], planes], axis=1).tobytes()


def test_reads_the_batches_in_order(tmp_path):
    expected = []
    for i in (2, 1):
        images, labels, content = batch(20, i)
        (tmp_path / f"data_batch_{i}.bin").write_bytes(content)
        expected.insert(0, images)
    test_images, _, content = batch(10, 9)
    (tmp_path / "test_batch.bin").write_bytes(content)
    training, test = read_cifar(tmp_path, 32)
    assert np.array_equal(training.images, np.concatenate(expected)) and training.labels.tolist() == [*labels, *labels]
    assert np.array_equal(test.images, test_images) and training.classes == CLASSES


def test_load_finds_the_unpacked_folder_and_holds_out_what_is_missing(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "data_batch_1.bin").write_bytes(batch(200, 0)[2])
    (folder / "batches.meta.txt").write_text("\n".join(f"c{i}" for i in range(10)) + "\n\n")
    data = load(DataConfig(source=str(tmp_path), image_size=16))
    assert (len(data.train), len(data.validation), data.classes[3]) == (144 + 0, 16, "c3")
    assert sum(len(y) for _, y in data.test_batches(7)) == 40
    assert data.train.images.shape[1:] == (16, 16, 3)


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"0", lambda b: b""])
def test_a_wrong_length_names_the_file(tmp_path, change):
    (tmp_path / "data_batch_1.bin").write_bytes(change(batch(3, 0)[2]))
    with pytest.raises(ValueError, match=r"data_batch_1\.bin: \d+ bytes: expected a multiple of 3073"):
        read_cifar(tmp_path, 32)


def test_a_wrong_label_names_the_record(tmp_path):
    content = bytearray(batch(3, 0)[2])
    content[2 * 3073] = 10
    (tmp_path / "data_batch_1.bin").write_bytes(content)
    with pytest.raises(ValueError, match="record 2 has label 10: expected 0 to 9"):
        read_cifar(tmp_path, 32)


def test_wrong_class_names_are_refused(tmp_path):
    (tmp_path / "data_batch_1.bin").write_bytes(batch(3, 0)[2])
    (tmp_path / "batches.meta.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"batches\.meta\.txt: 2 class names: expected 10"):
        read_cifar(tmp_path, 32)


def test_pickles_are_refused(tmp_path):
    assert find_cifar(tmp_path) is None
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match="CIFAR-10 as pickles, which are not read"):
        load(DataConfig(source=str(tmp_path)))
