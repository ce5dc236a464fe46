"""Which path each training step takes: uniform draws (arXiv 1904.00420, section 3.2), and a warm-up of widths.

Without squeeze-and-excitation, training all channel numbers from the start was found not to converge by the authors of
an independent implementation (CanyonWind/Single-Path-One-Shot-NAS-MXNet on GitHub). Their remedy is the warm-up here:
first every width at its widest, so that only operators are drawn, then narrower ones opened one after the other. Theirs
was `width_warmup = 0.5` and `width_widening = 0.075`, the default here too: benchmarks/study_supernet.py measured
that architectures score higher that way, and that two seeds agree better on their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spos.config import TrainConfig
from spos.draws import generator
from spos.space import Arch, Decision, SearchSpace


def path_sampler(space: SearchSpace, config: TrainConfig, total: int, seed: int) -> Callable[[int], Arch]:
    """Return the path of each of `total` steps, a pure function of the seed and the step.

    Raises ValueError for a warm-up that is asked for of widths in a space that has none.
    """
    orders = [_narrow_to_wide(d) if d.kind == "width" else None for d in space.decisions]
    if not any(orders) and (config.width_warmup or config.width_widening):
        raise ValueError(
            f"width_warmup = {config.width_warmup} and width_widening = {config.width_widening}: the space has no "
            'decision of the kind "width" to warm up, expected neither, or 0'
        )
    if not any(orders) or not any(config.width_shares):
        return lambda step: space.sample(generator(seed, "path", step))

    decisions = list(zip(space.decisions, orders, strict=True))

    def path(step: int) -> Arch:
        progress = widening_progress(config, step, total)
        open_options = [_open(decision, order, progress) for decision, order in decisions]
        drawn = generator(seed, "path", step).integers(0, open_options).tolist()
        return Arch(
            index if order is None else order[len(order) - count + index]
            for index, count, order in zip(drawn, open_options, orders, strict=True)
        )

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
