"""Evolutionary search over a trained supernet (arXiv 1904.00420, section 3.4, algorithm 1), and random search beside
it.

`spos.strategies` asks for the candidates of a generation, a pure function of the seed, its number and the scores so
far; `evaluate_population` scores them, and `rank` orders all that was scored. A run's records are therefore its whole
state: a search that was killed draws the same candidates again and scores only those that are not yet recorded. Every
generation counts, the last too.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spos.budgets import bounds_of
from spos.config import SearchConfig
from spos.costs import Constraint, bitops, flops, latency, params, peak_memory
from spos.data import Data
from spos.evaluation import Score, evaluate_population
from spos.identity import Run, hash_network, hash_weights, identity_of, opened
from spos.nsga2 import NSGA2, objective_of
from spos.pareto import front
from spos.progress import Progress
from spos.quantized import has_bits
from spos.racing import Race
from spos.ranking import ranking_key
from spos.score_store import scores_of, scoring_of, taken_over
from spos.space import Arch
from spos.strategies import AgingEvolution, Evolution, RandomSearch, Strategy
from spos.supernet import Supernet
from spos.training import check_fit
from spos.variation import Origin

# Candidates that are scored together, and lost together where a search is killed: a generation of the paper.
GROUP = 50


@dataclass(frozen=True)
class Candidate:
    """A scored architecture: validation `accuracy`, `top5` and `loss`, costs, and where it came from.

    `index` counts evaluations from 0, `generation` 0 is the first population; `seconds` is what scoring it took.
    `bitops` is None in a space without bit widths, `latency`, predicted, in milliseconds, where none was measured,
    `peak_memory`, in bytes, where neither a bound nor an objective is about it.
    `reused` says that another search had scored it, with the same supernet on the same images. `images` is how many it
    was scored on: fewer than others' where it was dropped from a race (`SearchConfig.racing`).
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
    reused: bool = False
    images: int | None = None
    peak_memory: int | None = None


@dataclass(frozen=True)
class SearchResult:
    """`best` candidate, all candidates in the order of evaluation (`history`), and the `parents` best (`top`).

    `pareto` are those that none beats in one of the `objectives` of the settings and matches in all, best accuracy
    first.
    """

    best: Candidate
    history: tuple[Candidate, ...]
    top: tuple[Candidate, ...]
    pareto: tuple[Candidate, ...] = ()


def rank(history: Sequence[Candidate]) -> list[Candidate]:
    """Order by accuracy, then loss, then architecture, best first."""
    return sorted(history, key=lambda candidate: ranking_key(vars(candidate)))


def evolve(
    net: Supernet,
    data: Data,
    *,
    constraints: Sequence[Constraint] = (),
    config: SearchConfig | None = None,
    seed: int = 0,
    reuse: Sequence[str | os.PathLike[str]] = (),
    run: Run = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Search for the most accurate architecture within `constraints`, with the supernet's weights as they are.

    All candidates are scored on the same fixed, shuffled, class-balanced held-out images. `run`, a directory, makes it
    resumable: it gets the stream "evolution", a record for each candidate, and result.json. Bounds in `config` count as
    constraints. `reuse` are run directories of other searches: what these have scored with the same weights on the same
    images, under whatever budget, is not scored again. Raises UnsatisfiableError before anything runs where no
    architecture can meet them.
    """
    check_fit(_checked(net), data)
    strategy = strategy_of(net, constraints, config or SearchConfig(), seed)
    return _search("evolution", strategy, net, data, reuse, run, progress)


def random_search(
    net: Supernet,
    data: Data,
    *,
    constraints: Sequence[Constraint] = (),
    config: SearchConfig | None = None,
    seed: int = 0,
    reuse: Sequence[str | os.PathLike[str]] = (),
    run: Run = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Score as many architectures as `evolve` would with the same `config`, drawn uniformly; otherwise alike.

    The stream of its records is "random".
    """
    check_fit(_checked(net), data)
    config = config or SearchConfig()
    strategy = RandomSearch(net, constraints=[*constraints, *bounds_of(config)], config=config, seed=seed)
    return _search("random", strategy, net, data, reuse, run, progress)


def strategy_of(net: Supernet, constraints: Sequence[Constraint], config: SearchConfig, seed: int) -> Strategy:
    """Return the search that `config.method` names, under the constraints and the bounds in `config`."""
    methods: dict[str, type[Strategy]] = {"evolution": Evolution, "nsga2": NSGA2, "aging": AgingEvolution}
    method = methods[config.method]
    return method(net, constraints=[*constraints, *bounds_of(config)], config=config, seed=seed)


def _checked(net: Supernet) -> Supernet:
    if not isinstance(net, Supernet):
        raise TypeError(f"net is a {type(net).__name__}: expected a spos.Supernet")
    return net


def _search(
    name: str,
    strategy: Strategy,
    net: Supernet,
    data: Data,
    reuse: Sequence[str | os.PathLike[str]],
    run: Run,
    progress: Progress | None,
) -> SearchResult:
    config, seed = strategy.config, strategy.seed
    objectives = [objective_of(each, net) for each in config.objectives]
    for cost in objectives:
        if cost is not None:
            cost(Arch([0] * len(net.space)))  # what has no table yet says so before anything is scored
    limits = sorted(str(c) for c in strategy.constraints)
    parts = {"latency": latency.table(net).fingerprint()} if latency.known(net) else {}
    network, weights = hash_network(net), hash_weights(net)
    identity = identity_of(
        config,
        seed,
        data,
        space=net.space.fingerprint(),
        network=network,
        weights=weights,
        constraints="; ".join(limits),
        **parts,
    )
    images = min(config.calibration_images, len(data.train))
    calibration = data.calibration_batches(images, config.eval_batch_size, seed)
    validation = data.validation_batches(config.validation_images, config.eval_batch_size, seed)
    scoring = scoring_of(net, net.space.fingerprint(), network, weights, identity["data"], config, seed)
    total = sum(len(y) for _, y in validation)
    counts_memory = "peak_memory" in [*(c.cost.name for c in strategy.constraints), *config.objectives]
    history: list[Candidate] = []
    with opened(run, kind="search", config=dataclasses.asdict(config), identity=identity) as directory:
        known: dict[Arch, Candidate] = {}
        if directory:
            known = {Arch(r["arch"]): _from_record(r) for r in directory.records(name)}
            elsewhere = taken_over(directory, name, reuse, scoring)
        else:
            elsewhere = scores_of(reuse, scoring)

        def keep(candidate: Candidate) -> None:
            if counts_memory:
                candidate = dataclasses.replace(candidate, peak_memory=int(peak_memory(net, candidate.arch)))
            history.append(candidate)
            if directory:
                directory.append(name, dataclasses.asdict(candidate))
            if progress:
                best = max(c.accuracy for c in history)
                progress(name, len(history), config.evaluations, {"accuracy": candidate.accuracy, "best": best})

        while archs := strategy.ask():
            origins, number = strategy.proposed(), strategy.number
            history += sorted((known[arch] for arch in archs if arch in known), key=lambda c: c.index)
            new = [arch for arch in archs if arch not in known]
            for arch in [arch for arch in new if arch in elsewhere]:
                known_score = dataclasses.replace(elsewhere[arch], images=total)
                keep(_candidate(net, len(history), number, arch, origins[arch], known_score, 0.0, reused=True))
            new = [arch for arch in new if arch not in elsewhere]
            race = None
            if config.racing:
                before = [c.accuracy for c in history if c.generation < number and c.images == total]
                race = Race.among(before, config.places, config.racing)
            for group in range(0, len(new), GROUP):
                some = [(arch, origins[arch]) for arch in new[group : group + GROUP]]
                show = _progress_of(name, history, len(some), config.evaluations, progress)
                _score_group(net, number, len(history), some, calibration, validation, race, keep, show)
                if directory:
                    directory.flush()
            scores = {c.arch: c for c in history}
            strategy.tell(archs, [scores[arch] for arch in archs])
        order = rank(history)
        whole = [c for c in history if c.images == total]
        points = [[-c.accuracy if cost is None else cost(c.arch) for cost in objectives] for c in whole]
        pareto = sorted((whole[i] for i in front(points)), key=lambda c: (-c.accuracy, c.index))
        result = SearchResult(order[0], tuple(history), tuple(order[: config.parents]), tuple(pareto))
        if directory:
            summary = {
                "best": dataclasses.asdict(result.best),
                "constraints": limits,
                "evaluations": len(history),
                "objectives": list(config.objectives),
                "pareto": [c.arch.to_json() for c in result.pareto],
            }
            if config.racing:
                scored = [c for c in history if not c.reused]
                summary["dropped"] = len(scored) - sum(c.images == total for c in scored)
                summary["validation_share"] = sum(c.images or 0 for c in scored) / (total * max(1, len(scored)))
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
    race: Race | None,
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
        keep(_candidate(net, index, number, arch, origins[arch], score, seconds))
        index, clock = index + 1, time.perf_counter()

    archs = [arch for arch, _ in drawn]
    evaluate_population(net, archs, calibration, validation, race=race, on_score=on_score, on_batch=on_batch)


def _candidate(
    net: Supernet,
    index: int,
    number: int,
    arch: Arch,
    origin: Origin,
    score: Score,
    seconds: float,
    reused: bool = False,
) -> Candidate:
    return Candidate(
        index=index,
        generation=number,
        arch=arch,
        accuracy=score.accuracy,
        top5=score.top5,
        loss=score.loss,
        flops=flops.table(net)(arch),
        params=params.table(net)(arch),
        origin=origin,
        seconds=seconds,
        bitops=bitops(net, arch) if has_bits(net) else None,
        latency=latency(net, arch) if latency.known(net) else None,
        reused=reused,
        images=score.images,
    )


def _from_record(record: dict[str, Any]) -> Candidate:
    return Candidate(**(record | {"arch": Arch(record["arch"])}))
