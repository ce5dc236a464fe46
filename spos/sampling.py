"""Which path each training step takes: uniform draws (arXiv 1904.00420, section 3.2), and a warm-up of widths.

Without squeeze-and-excitation, training all channel numbers from the start was found not to converge by the authors of
an independent implementation (CanyonWind/Single-Path-One-Shot-NAS-MXNet on GitHub). Their remedy is the warm-up here:
first every width at its widest, so that only operators are drawn, then narrower ones opened one after the other. Theirs
was `width_warmup = 0.5` and `width_widening = 0.075`, the default here too: benchmarks/study_supernet.py measured
that architectures score higher that way, and that two seeds agree better on their order. Other ways to draw paths are
in `spos.path_samplers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spos.config import TrainConfig
from spos.draws import generator
from spos.space import Arch, Decision, SearchSpace


class OpenOptions:
    """The options that are drawn from at each of `total` steps: all that are offered, once a warm-up is over.

    `sizes(step)` has their number for each decision; `arch(sizes, indices)` turns an index below that number, for each
    decision, into the architecture. `all_open` says that there is no warm-up. Raises ValueError for one that is asked
    for of widths in a space that has none.
    """

    def __init__(self, space: SearchSpace, config: TrainConfig, total: int) -> None:
        self._config, self._total = config, total
        self._decisions = space.decisions
        self._orders = [_narrow_to_wide(d) if d.kind == "width" else None for d in space.decisions]
        if not any(self._orders) and (config.width_warmup or config.width_widening):
            raise ValueError(
                f"width_warmup = {config.width_warmup} and width_widening = {config.width_widening}: the space has no "
                'decision of the kind "width" to warm up, expected neither, or 0'
            )
        self.all_open = not any(self._orders) or not any(config.width_shares)

    def sizes(self, step: int) -> list[int]:
        """Return how many options of each decision are open."""
        progress = 1.0 if self.all_open else widening_progress(self._config, step, self._total)
        return [_open(d, order, progress) for d, order in zip(self._decisions, self._orders, strict=True)]

    def arch(self, sizes: Sequence[int], indices: Sequence[int]) -> Arch:
        """Return the architecture of indices among open options; of widths the last ones are the widest."""
        if self.all_open:
            return Arch(indices)
        return Arch(
            index if order is None else order[len(order) - size + index]
            for index, size, order in zip(indices, sizes, self._orders, strict=True)
        )


def path_sampler(space: SearchSpace, config: TrainConfig, total: int, seed: int) -> Callable[[int], Arch]:
    """Return the path of each of `total` steps, uniform among what is open; a pure function of the seed and the step.

    Raises ValueError for a warm-up that is asked for of widths in a space that has none.
    """
    options = OpenOptions(space, config, total)

    def path(step: int) -> Arch:
        sizes = options.sizes(step)
        return options.arch(sizes, generator(seed, "path", step).integers(0, sizes).tolist())

    return path


def widening_progress(config: TrainConfig, step: int, total: int) -> float:
    """Return how far the widening is at a step: below 0 during the warm-up, 1 and more once all widths are open."""
    warmup, widening = config.width_shares
    begin, end = warmup * total, (warmup + widening) * total
    if step < begin:
        return -1.0
    return (step - begin) / (end - begin) if step < end else 1.0


def _open(decision: Decision, order: Sequence[int] | None, progress: float) -> int:
    """Return how many options are drawn from: of widths the widest, then two, three, … in equal times, then all."""
    count = decision.drawn
    if order is None or progress >= 1:
        return count
    return min(count, 2 + int(progress * (count - 2))) if progress >= 0 else 1


def _narrow_to_wide(decision: Decision) -> list[int]:
    """Return the options in the order of the numbers that are their labels; in their own where these are no numbers."""
    try:
        return sorted(range(len(decision.options)), key=lambda i: float(decision.options[i]))
    except ValueError:
        return list(range(len(decision.options)))
