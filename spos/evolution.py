"""Evolutionary search over a trained supernet (arXiv 1904.00420, section 3.4, algorithm 1), and random search beside
it.

A generation is a pure function of the seed, its number and the scores so far: `propose` draws it, `evaluate_population`
scores it, `rank` orders all that was scored. A run's records are therefore its whole state: a search that was killed
draws the same candidates again and scores only those that are not yet recorded. Every generation counts, the last too.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from spos.budget_sampling import BudgetSampler
from spos.budgets import bounds_of
from spos.config import SearchConfig
from spos.costs import Constraint, UnsatisfiableError, bitops, feasible, flops, latency, params, reachable
from spos.data import Data
from spos.draws import generator
from spos.evaluation import Score, evaluate_population
from spos.identity import Run, hash_weights, identity_of, opened
from spos.progress import Progress
from spos.quantized import has_bits
from spos.ranking import ranking_key
from spos.space import Arch, SearchSpace
from spos.supernet import Supernet
from spos.training import check_fit

Origin = Literal["random", "mutation", "crossover"]
Test = Callable[[Arch], bool]

# The released code gives an operator ten attempts for each child wanted, and fills what is missing at random.
ATTEMPTS = 10
RANDOM_ATTEMPTS = 500
ENUMERABLE = 1 << 16
# Candidates that are scored together, and lost together where a search is killed: a generation of the paper.
GROUP = 50


@dataclass(frozen=True)
class Candidate:
    """A scored architecture: validation `accuracy`, `top5` and `loss`, costs, and where it came from.

    `index` counts evaluations from 0, `generation` 0 is the first population; `seconds` is what scoring it took.
    `bitops` is None in a space without bit widths, `latency`, predicted, in milliseconds, where none was measured.
    """

    index: int
    generation: int
    arch: Arch
    accuracy: float
    top5: float
    loss: float
    flops: int
    params: int
    origin: Origin
    seconds: float
    bitops: float | None = None
    latency: float | None = None


@dataclass(frozen=True)
class SearchResult:
    """`best` candidate, all candidates in the order of evaluation (`history`), and the `parents` best (`top`)."""

    best: Candidate
    history: tuple[Candidate, ...]
    top: tuple[Candidate, ...]


def rank(history: Sequence[Candidate]) -> list[Candidate]:
    """Order by accuracy, then loss, then architecture, best first."""
    return sorted(history, key=lambda candidate: ranking_key(vars(candidate)))


def mutate(arch: Arch, space: SearchSpace, rng: np.random.Generator, probability: float) -> Arch:
    """Redraw each decision with the given probability, from all that it offers (it may stay what it was)."""
    redrawn = rng.random(len(space)) < probability
    fresh = space.sample(rng)
    return Arch(new if again else old for old, new, again in zip(arch, fresh, redrawn, strict=True))


def crossover(one: Arch, other: Arch, rng: np.random.Generator) -> Arch:
    """Take each decision from one of two parents, with equal chance."""
    return Arch(a if first else b for a, b, first in zip(one, other, rng.random(len(one)) < 0.5, strict=True))


def propose(
    space: SearchSpace,
    parents: Sequence[Arch],
    seen: Collection[Arch],
    allowed: Test,
    config: SearchConfig,
    rng: np.random.Generator,
    exact: BudgetSampler | None = None,
) -> list[tuple[Arch, Origin]]:
    """Draw the next generation: mutations and crossovers of `parents`, filled up at random where these fall short.

    None is in `seen`, none occurs twice and all are `allowed`. Fewer come back only where no more could be found.
    `exact` is as in `draw_random`.
    """

    def child_of_one() -> Arch:
        return mutate(parents[int(rng.integers(len(parents)))], space, rng, config.mutation_probability)

    def child_of_two() -> Arch:
        return crossover(parents[int(rng.integers(len(parents)))], parents[int(rng.integers(len(parents)))], rng)

    taken = set(seen)
    children: list[tuple[Arch, Origin]] = []
    operators: tuple[tuple[Origin, Callable[[], Arch], int], ...] = (
        ("mutation", child_of_one, config.mutations),
        ("crossover", child_of_two, config.crossovers),
    )
    for origin, draw, count in operators:
        found = _draw(draw, count, ATTEMPTS * count, taken, allowed)
        children += [(arch, origin) for arch in found]
    missing = config.mutations + config.crossovers - len(children)
    return children + [(arch, "random") for arch in draw_random(space, missing, taken, allowed, rng, exact)]


def draw_random(
    space: SearchSpace,
    count: int,
    taken: set[Arch],
    allowed: Test,
    rng: np.random.Generator,
    exact: BudgetSampler | None = None,
) -> list[Arch]:
    """Draw up to `count` different architectures uniformly among those allowed and not in `taken`, which they join.

    By rejection, from what `exact` draws where it is given. Few architectures are walked instead once rejection fails,
    so that the last ones are found too.
    """
    draw, size = (space.sample, space.size()) if exact is None else (exact.sample, exact.count)
    found = _draw(lambda: draw(rng), count, RANDOM_ATTEMPTS * count, taken, allowed)
    if len(found) < count and size <= ENUMERABLE:
        every = space.enumerate() if exact is None else map(exact.arch, range(size))
        left = [arch for arch in every if arch not in taken and allowed(arch)]
        picked = rng.permutation(len(left))[: count - len(found)]
        found += [left[i] for i in picked]
        taken.update(found)
    return found


def _draw(draw: Callable[[], Arch], count: int, attempts: int, taken: set[Arch], allowed: Test) -> list[Arch]:
    found: list[Arch] = []
    for _ in range(attempts):
        if len(found) == count:
            break
        arch = draw()
        if arch not in taken and allowed(arch):
            taken.add(arch)
            found.append(arch)
    return found


def evolve(
    net: Supernet,
    data: Data,
    *,
    constraints: Sequence[Constraint] = (),
    config: SearchConfig | None = None,
    seed: int = 0,
    run: Run = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Search for the most accurate architecture within `constraints`, with the supernet's weights as they are.

    All candidates are scored on the same fixed, shuffled, class-balanced held-out images. `run`, a directory, makes it
    resumable: it gets the stream "evolution", a record for each candidate, and result.json. Bounds in `config` count as
    constraints. Raises UnsatisfiableError before anything runs where no architecture can meet them.
    """
    config = config or SearchConfig()

    def generation(
        number: int, history: Sequence[Candidate], allowed: Test, exact: BudgetSampler | None
    ) -> list[tuple[Arch, Origin]]:
        rng = generator(seed, "evolution", number)
        if number == 0:
            first = draw_random(net.space, config.population, set(), allowed, rng, exact)
            return [(arch, "random") for arch in first]
        parents = [c.arch for c in rank(history)[: config.parents]]
        return propose(net.space, parents, {c.arch for c in history}, allowed, config, rng, exact)

    return _search("evolution", config.generations + 1, generation, net, data, constraints, config, seed, run, progress)


def random_search(
    net: Supernet,
    data: Data,
    *,
    constraints: Sequence[Constraint] = (),
    config: SearchConfig | None = None,
    seed: int = 0,
    run: Run = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Score as many architectures as `evolve` would with the same `config`, drawn uniformly; otherwise alike.

    The stream of its records is "random".
    """
    config = config or SearchConfig()

    def generation(
        number: int, history: Sequence[Candidate], allowed: Test, exact: BudgetSampler | None
    ) -> list[tuple[Arch, Origin]]:
        rng = generator(seed, "random", number)
        return [(arch, "random") for arch in draw_random(net.space, config.evaluations, set(), allowed, rng, exact)]

    return _search("random", 1, generation, net, data, constraints, config, seed, run, progress)


def _search(
    name: str,
    generations: int,
    propose_generation: Callable[[int, Sequence[Candidate], Test, BudgetSampler | None], list[tuple[Arch, Origin]]],
    net: Supernet,
    data: Data,
    constraints: Sequence[Constraint],
    config: SearchConfig,
    seed: int,
    run: Run,
    progress: Progress | None,
) -> SearchResult:
    if not isinstance(net, Supernet):
        raise TypeError(f"net is a {type(net).__name__}: expected a spos.Supernet")
    check_fit(net, data)
    constraints = [*constraints, *bounds_of(config)]
    ranges, exact = reachable(net, constraints)
    allowed = feasible(net, constraints)
    limits = sorted(str(c) for c in constraints)
    parts = {"latency": latency.table(net).fingerprint()} if latency.known(net) else {}
    identity = identity_of(
        config,
        seed,
        data,
        space=net.space.fingerprint(),
        weights=hash_weights(net),
        constraints="; ".join(limits),
        **parts,
    )
    images = min(config.calibration_images, len(data.train))
    calibration = data.calibration_batches(images, config.eval_batch_size, seed)
    validation = data.validation_batches(config.validation_images, config.eval_batch_size, seed)
    history: list[Candidate] = []
    with opened(run, kind="search", config=dataclasses.asdict(config), identity=identity) as directory:
        known = {tuple(r["arch"]): _from_record(r) for r in (directory.records(name) if directory else ())}

        def keep(candidate: Candidate) -> None:
            history.append(candidate)
            if directory:
                directory.append(name, dataclasses.asdict(candidate))
            if progress:
                best = max(c.accuracy for c in history)
                progress(name, len(history), config.evaluations, {"accuracy": candidate.accuracy, "best": best})

        for number in range(generations):
            drawn = propose_generation(number, history, allowed, exact)
            if not drawn and not history:
                attempts = RANDOM_ATTEMPTS * config.population
                reach = "; ".join(f"{cost} from {r[0]:,} to {r[1]:,}" for cost, r in ranges.items() if r)
                raise UnsatisfiableError(
                    f"{' and '.join(limits)}: none of {attempts:,} random architectures meets this; "
                    f"{net.name} reaches {reach}"
                )
            history += [known[arch] for arch, _ in drawn if arch in known]
            new = [(arch, origin) for arch, origin in drawn if arch not in known]
            for group in range(0, len(new), GROUP):
                some = new[group : group + GROUP]
                show = _progress_of(name, history, len(some), config.evaluations, progress)
                _score_group(net, number, len(history), some, calibration, validation, keep, show)
        order = rank(history)
        result = SearchResult(order[0], tuple(history), tuple(order[: config.parents]))
        if directory:
            summary = {"best": dataclasses.asdict(result.best), "constraints": limits, "evaluations": len(history)}
            directory.write_json("result" if name == "evolution" else f"result-{name}", summary)
    return result


def _progress_of(
    name: str, history: Sequence[Candidate], count: int, total: int, progress: Progress | None
) -> Callable[[float], None]:
    """Return what shows how far `count` candidates are that are scored together."""
    before = len(history)

    def show(fraction: float) -> None:
        if progress:
            best = {"best": max(c.accuracy for c in history)} if history else {}
            progress(name, before + int(fraction * count), total, best)

    return show


def _score_group(
    net: Supernet,
    number: int,
    first: int,
    drawn: Sequence[tuple[Arch, Origin]],
    calibration: Sequence[Tensor],
    validation: Sequence[tuple[Tensor, Tensor]],
    keep: Callable[[Candidate], None],
    show: Callable[[float], None],
) -> None:
    """Score candidates of generation `number`, numbered from `first` on, and hand over each when it is done.

    Those that are scored together have each the same share of the time.
    """
    origins = dict(drawn)
    index, clock, share = first, time.perf_counter(), 0.0

    def on_batch(fraction: float) -> None:
        nonlocal share
        share = (time.perf_counter() - clock) / len(drawn)
        show(fraction)

    def on_score(arch: Arch, score: Score) -> None:
        nonlocal index, clock
        seconds = share or time.perf_counter() - clock
        keep(
            Candidate(
                index=index,
                generation=number,
                arch=arch,
                accuracy=score.accuracy,
                top5=score.top5,
                loss=score.loss,
                flops=flops.table(net)(arch),
                params=params.table(net)(arch),
                origin=origins[arch],
                seconds=seconds,
                bitops=bitops(net, arch) if has_bits(net) else None,
                latency=latency(net, arch) if latency.known(net) else None,
            )
        )
        index, clock = index + 1, time.perf_counter()

    archs = [arch for arch, _ in drawn]
    evaluate_population(net, archs, calibration, validation, on_score=on_score, on_batch=on_batch)


def _from_record(record: dict[str, Any]) -> Candidate:
    return Candidate(**(record | {"arch": Arch(record["arch"])}))
