"""Training batches as a pure function of (seed, step), optionally prepared ahead by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..config import DataConfig
from .augment import augment
from .checks import checked_int, checked_seed
from .draws import Stream, permutation
from .image_set import ImageSet
from .normalize import Normalization

Batch = tuple[Tensor, Tensor]


class BatchStream:
    """Endless shuffled, augmented batches: x float32 [B, C, S, S] channels_last, normalised; y int64 [B].

    Every epoch of `steps_per_epoch` batches goes once through the images in an order of its own; the images that do not
    fill a last batch are left out of that epoch. `batch(step)` depends on the seed and the step alone.
    Raises ValueError if there are fewer images than one batch holds.
    """

    def __init__(
        self, image_set: ImageSet, batch_size: int, seed: int, *, config: DataConfig, normalization: Normalization
    ) -> None:
        self.batch_size = checked_int("batch_size", batch_size, 1)
        if batch_size > len(image_set):
            raise ValueError(
                f"batch_size = {batch_size}: expected at most {len(image_set)}, the number of training images"
            )
        self.steps_per_epoch = len(image_set) // batch_size
        self._image_set = image_set
        self._seed = checked_seed(seed)
        self._config = config
        self._normalization = normalization
        self._latest_order = (-1, np.empty(0, dtype=np.int64))

    def batch(self, step: int) -> Batch:
        """The batch of this step, 0 and up."""
        epoch, position = divmod(checked_int("step", step, 0), self.steps_per_epoch)
        chosen = self._order(epoch)[position * self.batch_size : (position + 1) * self.batch_size]
        picked = self._image_set.subset(chosen)
        pixels = augment(picked.images.numpy(), self._config, self._seed, Stream.TRAINING_AUGMENT, step)
        return self._normalization.apply(pixels), picked.labels

    def iterate(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """batch(start) to batch(stop - 1), prepared ahead by `config.workers` threads (0: when asked for).

        What a thread raises is raised here, at its batch's turn. An iterator left early ends its threads when it is
        closed: close() waits for them.
        """
        start = checked_int("start", start, 0)
        stop = checked_int("stop", stop, start)
        if self._config.workers == 0:
            return (self.batch(step) for step in range(start, stop))
        return _prefetched(self.batch, range(start, stop), self._config.workers)

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        # One attribute holds epoch and order, so that threads in two epochs can only replace it by another right pair.
        latest, order = self._latest_order
        if latest != epoch:
            order = permutation(self._seed, Stream.EPOCH_ORDER, epoch, len(self._image_set))
            self._latest_order = (epoch, order)
        return order


def _prefetched(make: Callable[[int], Batch], steps: range, workers: int) -> Generator[Batch, None, None]:
    with ThreadPoolExecutor(workers, thread_name_prefix="spos-data") as pool:
        waiting: deque[Future[Batch]] = deque()
        try:
            for step in steps:
                waiting.append(pool.submit(make, step))
                if len(waiting) > 2 * workers:  # so many are ready or in work: enough to cover one slow batch
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
