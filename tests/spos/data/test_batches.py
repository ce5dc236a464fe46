from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from spos.config import DataConfig
from spos.data import BatchStream, ImageSet, Normalization


def stream(count: int = 40, batch_size: int = 8, seed: int = 0, **settings) -> BatchStream:
    """Every image is of its own number, label number % 2; nothing is normalised."""
    images = torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 8, 8, 1)
    image_set = ImageSet(images, torch.arange(count) % 2, ("even", "odd"))
    config = DataConfig(**({"image_size": 8, "crop_padding": 0, "flip": False} | settings))
    return BatchStream(image_set, batch_size, seed, config=config, normalization=Normalization((0.0,), (1.0,)))


def same(first, second) -> bool:
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(first, second, strict=True))


def test_an_epoch_covers_every_image_once_in_an_order_of_its_own():
    batches = stream()
    assert batches.steps_per_epoch == 5
    numbers = [batches.batch(step)[0][:, 0, 0, 0].tolist() for step in range(15)]
    epochs = [[n for step in numbers[start : start + 5] for n in step] for start in (0, 5, 10)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != sorted(epochs[0])


def test_images_beyond_whole_batches_rotate_in_over_epochs():
    batches = stream(count=11, batch_size=4)
    assert batches.steps_per_epoch == 2
    epochs = [
        set(batches.batch(2 * epoch)[0][:, 0, 0, 0].tolist() + batches.batch(2 * epoch + 1)[0][:, 0, 0, 0].tolist())
        for epoch in range(12)
    ]
    assert all(len(epoch) == 8 for epoch in epochs) and len(set.union(*epochs)) == 11


def test_labels_go_with_their_images():
    x, y = stream().batch(3)
    assert (x.dtype, y.dtype, tuple(x.shape), tuple(y.shape)) == (torch.float32, torch.int64, (8, 1, 8, 8), (8,))
    assert torch.equal(x[:, 0, 0, 0].long() % 2, y)


def test_a_batch_is_a_pure_function_of_seed_and_step():
    settings = {"crop_padding": 2, "flip": True, "color_jitter": 0.3}
    first, again = stream(**settings), stream(**settings)
    forward = [first.batch(step) for step in range(12)]
    assert same(forward[::-1], [again.batch(step) for step in reversed(range(12))])
    assert same(forward[7:], list(stream(**settings).iterate(7, 12)))  # resumed in the middle
    assert not torch.equal(forward[0][0], stream(seed=1, **settings).batch(0)[0])


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_change_nothing(workers):
    settings = {"crop_padding": 2, "flip": True, "color_jitter": 0.3}
    assert same(stream(**settings).iterate(2, 40), stream(workers=workers, **settings).iterate(2, 40))


def test_every_step_has_augmentation_of_its_own():
    image_set = ImageSet(torch.zeros(64, 9, 9, 1, dtype=torch.uint8), torch.arange(64) % 2, ("a", "b"))
    image_set.images[:, 4, 4] = 255
    config = DataConfig(image_size=9, crop_padding=2, flip=False)
    batches = BatchStream(image_set, 16, 0, config=config, normalization=Normalization((0.0,), (1.0,)))
    places = [tuple(map(tuple, torch.nonzero(batches.batch(step)[0])[:, 2:].tolist())) for step in range(12)]
    assert len(set(places)) == 12


def data_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("spos-data")]


def test_workers_end_when_the_consumer_leaves_early():
    batches = stream(workers=3).iterate(0, 10_000)
    next(batches)
    assert data_threads()
    batches.close()
    assert not data_threads()


def test_workers_end_with_the_last_batch_and_after_a_consumers_error():
    for _ in stream(workers=2).iterate(0, 5):
        pass
    assert not data_threads()
    with pytest.raises(KeyError):
        for _ in stream(workers=2).iterate(0, 10_000):
            raise KeyError
    assert not data_threads()


def test_prefetching_is_bounded(monkeypatch):
    batches, made = stream(workers=2), []
    monkeypatch.setattr(batches, "batch", recording(batches.batch, made))
    iterator = batches.iterate(0, 1000)
    next(iterator)
    time.sleep(0.1)  # time enough to run far ahead
    assert 2 <= len(made) <= 5
    iterator.close()


def test_leaving_early_drops_what_is_waiting(monkeypatch):
    batches, made, gate = stream(workers=1), [], threading.Event()
    monkeypatch.setattr(batches, "batch", recording(batches.batch, made, gate))
    iterator = batches.iterate(0, 1000)
    next(iterator)
    timer = threading.Timer(0.3, gate.set)
    timer.start()
    iterator.close()
    timer.join()
    assert 2 not in made


def recording(make: Callable, made: list[int], gate: threading.Event | None = None) -> Callable:
    """A batch function that notes the steps it is asked for, and from the second on waits for `gate`."""

    def batch(step: int):
        made.append(step)
        if gate is not None and step > 0:
            gate.wait(10)
        return make(step)

    return batch


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_worker_surfaces_at_its_batch(workers, monkeypatch):
    batches = stream(workers=workers)
    original = batches.batch

    def failing(step: int):
        if step == 3:
            raise RuntimeError("no such step")
        return original(step)

    monkeypatch.setattr(batches, "batch", failing)
    seen = []
    with pytest.raises(RuntimeError, match="no such step"):
        for _, y in batches.iterate(0, 10):
            seen.append(y)
    assert len(seen) == 3 and not data_threads()


def test_empty_range():
    assert list(stream(workers=2).iterate(4, 4)) == []


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: stream(batch_size=41), ValueError, "batch_size = 41: expected at most 40"),
        (lambda: stream(batch_size=0), ValueError, "batch_size = 0"),
        (lambda: stream(batch_size=2.5), TypeError, "batch_size = 2.5"),
        (lambda: stream(seed=-1), ValueError, "seed = -1"),
        (lambda: stream().batch(-1), ValueError, "step = -1"),
        (lambda: stream().iterate(-1, 3), ValueError, "start = -1"),
        (lambda: stream().iterate(3, 2), ValueError, "stop = 2: expected an integer of at least 3"),
    ],
)
def test_refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_numpy_integers_are_integers():
    assert torch.equal(stream(batch_size=np.int64(8)).batch(np.int32(1))[0], stream().batch(1)[0])
