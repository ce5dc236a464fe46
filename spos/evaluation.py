"""Scores of candidate architectures with inherited weights and recomputed batch-normalisation statistics.

Before an architecture is scored, the running statistics on its path are recomputed over fixed calibration batches
(arXiv 1904.00420, section 3.4), as a cumulative mean, where the released code's moving average forgets all but the last
twenty. Afterwards the supernet holds what it held before, so a score never depends on which others were computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spos.space import Arch
from spos.supernet import Supernet

# What an image with NaN or infinite outputs adds to the loss, in nats: worse than any real one, and storable.
NON_FINITE_LOSS = 1e6


@dataclass(frozen=True)
class Score:
    """Top-1 `accuracy`, `top5` accuracy and mean cross-entropy `loss` (nats) over `images` images.

    Images with outputs that are not finite count as wrong, at a loss of `NON_FINITE_LOSS`.
    """

    accuracy: float
    top5: float
    loss: float
    images: int


def evaluate_population(
    net: Supernet,
    archs: Sequence[Sequence[int]],
    calibration: Sequence[Tensor],
    validation: Sequence[tuple[Tensor, Tensor]],
    *,
    on_score: Callable[[Arch, Score], None] | None = None,
) -> list[Score]:
    """Score each architecture: recompute its statistics over `calibration`, then classify `validation`.

    `calibration` holds batches of images, `validation` batches of (images [N, C, H, W], labels [N]); every candidate
    sees the same ones. `on_score` is called as each is done. The supernet's own statistics and modes are left as they
    were.
    """
    if not isinstance(net, Supernet):
        raise TypeError(f"net is a {type(net).__name__}: expected a spos.Supernet")
    if not validation:
        raise ValueError("validation is empty: expected at least one batch of images and labels")
    checked = [net.space.arch(arch) for arch in archs]
    scores = []
    for arch in checked:
        modules = list(net.path_modules(arch))
        with net.path(arch), _borrowed(modules):
            recalibrate_modules(modules, net.module, calibration)
            scores.append(classify(net.module, validation))
        if on_score:
            on_score(arch, scores[-1])
    return scores


def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Recompute the running statistics of a child, such as `net.extract(arch)` returns, as the mean over `batches`."""
    recalibrate_modules(list(model.modules()), model, batches)


def recalibrate_modules(modules: Sequence[nn.Module], model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Run `model` over `batches` with the batch normalisations among `modules` in training mode, all else in eval mode.

    Every batch weighs the same, whatever its size. ValueError where there is something to recompute and no batch.
    """
    norms = [m for m in modules if isinstance(m, _BatchNorm) and m.track_running_stats]
    modes = [m.training for m in modules]
    momenta = [m.momentum for m in norms]
    if not norms:
        return
    count = 0
    try:
        for module in modules:
            module.training = False
        for norm in norms:
            norm.training = True
            norm.momentum = None  # torch's notation for a cumulative mean
            norm.reset_running_stats()
        for x in batches:
            with torch.no_grad():
                model(x.to(_device(model), non_blocking=True))
            count += 1
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.training = training
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if count == 0:
        raise ValueError("calibration is empty: expected at least one batch of images")


def classify(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Score:
    """Score a model on batches of (images, labels), in eval mode; restores the mode it was in."""
    modes = [(m, m.training) for m in model.modules()]
    correct = top5 = images = 0
    loss = 0.0
    try:
        for module, _ in modes:
            module.training = False
        with torch.no_grad():
            for x, y in batches:
                logits = model(x.to(_device(model), non_blocking=True)).float()
                y = y.to(logits.device)
                finite = logits.isfinite().all(1)
                loss += float(F.cross_entropy(logits[finite].double(), y[finite], reduction="sum"))
                loss += NON_FINITE_LOSS * int((~finite).sum())
                best = (logits.topk(min(5, logits.shape[1]), 1).indices == y[:, None]) & finite[:, None]
                correct += int(best[:, 0].sum())
                top5 += int(best.sum())
                images += len(y)
    finally:
        for module, training in modes:
            module.training = training
    if images == 0:
        raise ValueError("no images to classify: expected at least one batch")
    return Score(correct / images, top5 / images, loss / images, images)


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def _borrowed(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put back, on leaving, the buffers of `modules`: running statistics, and whatever a user's layers keep."""
    saved = [(b, b.clone()) for m in modules for b in m.buffers(recurse=False)]
    try:
        yield
    finally:
        for buffer, value in saved:
            buffer.copy_(value)
