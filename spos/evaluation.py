"""Scores of candidate architectures with inherited weights and recomputed batch-normalisation statistics.

Before an architecture is scored, the running statistics on its path are recomputed over fixed calibration batches
(arXiv 1904.00420, section 3.4), as a cumulative mean, where the released code's moving average forgets all but the last
twenty. Afterwards the supernet holds what it held before, so a score never depends on which others were computed.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spos.captured_step import CapturedEvaluation, reason_against
from spos.prefix_sharing import MEMORY, NotAChain, Trie, as_it_lies
from spos.racing import Race
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
    share_prefixes: bool = True,
    memory: int = MEMORY,
    race: Race | None = None,
    on_score: Callable[[Arch, Score], None] | None = None,
    on_batch: Callable[[float], None] | None = None,
) -> list[Score]:
    """Score each architecture: recompute its statistics over `calibration`, then classify `validation`.

    `calibration` holds batches of images, `validation` batches of (images [N, C, H, W], labels [N]); every candidate
    sees the same ones. `on_score` is called as each is done. The supernet's own statistics and modes are left as they
    were.

    share_prefixes: compute once what architectures have in common, if the supernet's module is a chain (see
        `spos.prefix_sharing`); otherwise a warning says why not. The scores are the same, to the bit where the layers
        are deterministic; all of them are done at the end.
        Without it, a network on a GPU runs as captured graphs where it can (`spos.captured_step.reason_against`).
    memory: bytes of activations that may be kept for that; beyond them some are computed again.
    race: stop scoring a candidate once it is clear that it does not reach an accuracy (`spos.Race`); its score is that
        of the images so far, and says how many they were. Requires images in random order.
    on_batch: called with the fraction of the work that is done, where prefixes are shared after each batch.
    """
    if not isinstance(net, Supernet):
        raise TypeError(f"net is a {type(net).__name__}: expected a spos.Supernet")
    if not validation:
        raise ValueError("validation is empty: expected at least one batch of images and labels")
    checked = [net.space.arch(arch) for arch in archs]
    if share_prefixes and len(set(checked)) > 1:
        show = on_batch or (lambda _: None)
        try:
            trie = Trie(net, checked, memory=memory)
            scores = _evaluate_shared(net, trie, len(checked), calibration, validation, race, show)
        except NotAChain as error:
            warnings.warn(f"{net.name}: candidates are scored one by one, for {error}", stacklevel=2)
        else:
            for arch, score in zip(checked, scores, strict=True):
                if on_score:
                    on_score(arch, score)
            return scores
    scores = []
    captured = CapturedEvaluation(net) if reason_against(net) is None else None
    for arch in checked:
        modules = list(net.path_modules(arch))
        with net.path(arch), _borrowed(modules):
            if captured is not None:
                scores.append(_score_captured(captured, arch, modules, calibration, validation, race))
            else:
                recalibrate_modules(modules, net.module, calibration)
                scores.append(_classify(net.module, validation, _limits(race, validation)))
        if on_score:
            on_score(arch, scores[-1])
    return scores


def _evaluate_shared(
    net: Supernet,
    trie: Trie,
    count: int,
    calibration: Sequence[Tensor],
    validation: Sequence[tuple[Tensor, Tensor]],
    race: Race | None,
    on_batch: Callable[[float], None],
) -> list[Score]:
    limits = _limits(race, validation)
    batches = len(calibration) + len(validation)
    modules, device = list(net.module.modules()), _device(net.module)
    tallies = [_Tally() for _ in range(count)]
    with trie.in_place():
        if trie.reset_statistics():
            if not calibration:
                raise ValueError("calibration is empty: expected at least one batch of images")
            with _calibrating(modules):
                for number, x in enumerate(calibration, start=1):
                    trie.walk(x.to(device, non_blocking=True), lambda *_: None)
                    on_batch(number / batches)
        trie.forget_inputs()
        with _evaluating(modules):
            for number, (x, y) in enumerate(validation, start=len(calibration) + 1):

                def add(candidates: list[int], logits: Tensor, y: Tensor = y) -> None:
                    for candidate in candidates:
                        tallies[candidate].add(logits, y)

                trie.walk(x.to(device, non_blocking=True), add)
                limit = limits[number - len(calibration) - 1]
                if limit >= 0:
                    trie.drop({c for c, tally in enumerate(tallies) if tally.correct <= limit})
                on_batch(number / batches)
    return [tally.score() for tally in tallies]


def _score_captured(
    captured: CapturedEvaluation,
    arch: Arch,
    modules: Sequence[nn.Module],
    calibration: Sequence[Tensor],
    validation: Sequence[tuple[Tensor, Tensor]],
    race: Race | None,
) -> Score:
    if not calibration:
        raise ValueError("calibration is empty: expected at least one batch of images")
    for module in modules:
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
    for x in calibration:
        captured.calibrate(arch, x)
    tally = _Tally()
    for (x, y), limit in zip(validation, _limits(race, validation), strict=True):
        tally.add(captured.logits(arch, x), y)
        if tally.correct <= limit:
            break
    return tally.score()


def _limits(race: Race | None, validation: Sequence[tuple[Tensor, Tensor]]) -> list[int]:
    """Return for each batch the most right so far with which a candidate is out; -1 for none."""
    return [-1] * len(validation) if race is None else race.limits([len(y) for _, y in validation])


def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Recompute the running statistics of a child, such as `net.extract(arch)` returns, as the mean over `batches`."""
    recalibrate_modules(list(model.modules()), model, batches)


def recalibrate_modules(modules: Sequence[nn.Module], model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Run `model` over `batches` with the batch normalisations among `modules` in training mode, all else in eval mode.

    Every batch weighs the same, whatever its size. ValueError where there is something to recompute and no batch.
    """
    if not any(isinstance(m, _BatchNorm) and m.track_running_stats for m in modules):
        return
    count = 0
    with _calibrating(modules) as norms:
        for norm in norms:
            norm.reset_running_stats()
        for x in batches:
            with torch.no_grad():
                model(_own(x, model))
            count += 1
    if count == 0:
        raise ValueError("calibration is empty: expected at least one batch of images")


def classify(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> Score:
    """Score a model on batches of (images, labels), in eval mode; restores the mode it was in."""
    return _classify(model, batches, itertools.repeat(-1))


def _classify(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], limits: Iterable[int]) -> Score:
    tally = _Tally()
    with _evaluating(list(model.modules())), torch.no_grad():
        for (x, y), limit in zip(batches, limits, strict=False):
            tally.add(model(_own(x, model)), y)
            if tally.correct <= limit:
                break
    if tally.images == 0:
        raise ValueError("no images to classify: expected at least one batch")
    return tally.score()


class _Tally:
    """What the scores of batches add up to, batch by batch."""

    def __init__(self) -> None:
        self.correct = self.top5 = self.images = 0
        self.loss = 0.0

    def add(self, logits: Tensor, y: Tensor) -> None:
        """Add a batch: outputs [N, classes] and labels [N]."""
        logits, y = logits.float(), y.to(logits.device)
        finite = logits.isfinite().all(1)
        self.loss += float(F.cross_entropy(logits[finite].double(), y[finite], reduction="sum"))
        self.loss += NON_FINITE_LOSS * int((~finite).sum())
        best = (logits.topk(min(5, logits.shape[1]), 1).indices == y[:, None]) & finite[:, None]
        self.correct += int(best[:, 0].sum())
        self.top5 += int(best.sum())
        self.images += len(y)

    def score(self) -> Score:
        """Return the means."""
        return Score(self.correct / self.images, self.top5 / self.images, self.loss / self.images, self.images)


@contextmanager
def _evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Have modules in eval mode, and put back the modes they were in."""
    modes = [m.training for m in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.training = training


@contextmanager
def _calibrating(modules: Sequence[nn.Module]) -> Iterator[list[_BatchNorm]]:
    """Have the batch normalisations among modules take statistics, as a cumulative mean, and all else in eval mode."""
    norms = [m for m in modules if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [m.momentum for m in norms]
    with _evaluating(modules):
        try:
            for norm in norms:
                norm.training = True
                norm.momentum = None  # torch's notation for a cumulative mean
            yield norms
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def _own(x: Tensor, model: nn.Module) -> Tensor:
    """Return a batch on the model's device, for it alone: a forward that works in place must not change others'."""
    moved = x.to(_device(model), non_blocking=True)
    return as_it_lies(x) if moved is x else moved


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


@contextmanager
def _borrowed(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put back, on leaving, the buffers of `modules`: running statistics, and whatever a user's layers keep."""
    saved = [(m, name, b, b.clone()) for m in modules for name, b in m._buffers.items() if b is not None]
    try:
        yield
    finally:
        for module, name, buffer, value in saved:
            module._buffers[name] = buffer.copy_(value)  # some layers put a new one in its place
