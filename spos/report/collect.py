"""What a report is made of, read from the folder of a run without changing it. Anything may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spos import config_file
from spos.config import Config
from spos.ranking import ranking_key
from spos.run_directory import RunDirectory, RunDirectoryError
from spos.run_folder import SEARCH, SUPERNET, RunFolder

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Training:
    """A supernet's training or a retraining: its records so far, and its result once it is finished."""

    stage: str
    config: Mapping[str, Any]
    records: Sequence[Record]
    result: Record | None

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return float(self.records[-1]["seconds"]) if self.records else 0.0


@dataclass(frozen=True)
class Retrained:
    """An architecture trained from fresh weights: which one it is, and its training."""

    label: str
    origin: str
    arch: tuple[int, ...] | None
    flops: int | None
    params: int | None
    training: Training
    bitops: float | None = None
    deployed: Record | None = None  # what `spos deploy` measured


@dataclass(frozen=True)
class CostAxis:
    """The cost that candidates are compared by: its key in their records, what it is called, and its unit."""

    key: str
    name: str
    unit: str
    scale: float
    label: str

    def of(self, record: Record) -> float:
        """The cost of a candidate, in the unit."""
        return float(record[self.key]) / self.scale


FLOPS = CostAxis("flops", "FLOPs", "MFLOPs", 1e6, "FLOPs, millions of multiply-accumulates for one image")
BITOPS = CostAxis(
    "bitops",
    "bit operations",
    "G bit operations",
    1.0,
    "bit operations for one image, multiply-accumulates × bits, 2³⁰",
)


LATENCY = CostAxis("latency", "latency", "ms", 1.0, "predicted latency, ms")
PARAMS = CostAxis("params", "parameters", "M parameters", 1e6, "parameters, millions")
PEAK_MEMORY = CostAxis("peak_memory", "peak memory", "MB", 1e6, "peak of the activations of one image, MB")
_AXES = {axis.key: axis for axis in (FLOPS, PARAMS, BITOPS, LATENCY, PEAK_MEMORY)}


@dataclass(frozen=True)
class Searched:
    """Candidates of one way of searching, in the order of evaluation."""

    candidates: Sequence[Record]
    finished: bool

    @property
    def best(self) -> Record | None:
        """The candidate of the highest accuracy, then the lowest loss."""
        return min(self.candidates, key=ranking_key, default=None)

    @property
    def seconds(self) -> float:
        """Seconds of scoring so far."""
        return float(sum(c["seconds"] for c in self.candidates))


@dataclass(frozen=True)
class Search:
    """A search of one budget, by evolution and at random, either of which may be missing. `label` "" if it has none."""

    label: str
    evolution: Searched | None
    random: Searched | None
    constraints: Sequence[str]
    config: Config | None

    @property
    def ways(self) -> list[tuple[str, Searched]]:
        """Those that are there, by name, evolution first."""
        return [(n, s) for n, s in (("evolution", self.evolution), ("random search", self.random)) if s]

    @property
    def candidates(self) -> list[Record]:
        """All that were scored."""
        return [c for _, s in self.ways for c in s.candidates]

    @property
    def whole(self) -> list[Record]:
        """Those that were scored on all images, and not dropped from a race before."""
        most = self.most_images
        return [c for c in self.candidates if (c.get("images") or most) == most]

    @property
    def most_images(self) -> int:
        """How many images candidates are scored on; 0 for records from before that was kept."""
        return max((c.get("images") or 0 for c in self.candidates), default=0)

    @property
    def best(self) -> Record | None:
        """The best that evolution found, or random search where there is no evolution."""
        return next((s.best for _, s in self.ways if s.best), None)


@dataclass(frozen=True)
class RunData:
    """Everything that is in the folder of a run."""

    name: str
    created: str
    space: Mapping[str, Any] | None
    supernet: Training | None
    searches: Sequence[Search]
    retrained: Sequence[Retrained]
    settings: Mapping[str, str]
    versions: Mapping[str, Any]
    identity: Mapping[str, Mapping[str, str]]
    config: Config | None

    @property
    def found(self) -> Retrained | None:
        """The retrained architecture that the search found: the first whose origin says so."""
        return next((r for r in self.retrained if r.origin == "search"), None)

    @property
    def cost(self) -> CostAxis:
        """Bit operations where bits were searched, else FLOPs."""
        mixed = any(c.get("bitops") is not None for s in self.searches for c in s.candidates[:1]) or any(
            r.bitops is not None for r in self.retrained
        )
        return BITOPS if mixed else FLOPS

    @property
    def best(self) -> Record | None:
        """The best of the first search that found one."""
        return next((s.best for s in self.searches if s.best), None)

    def axis(self, search: Search) -> CostAxis:
        """The cost to show a search's candidates by: NSGA-II's first objective, latency where that was the budget."""
        if search.config and search.config.search.method == "nsga2":
            for objective in search.config.search.objectives:
                axis = _AXES.get(objective)
                if axis and all(c.get(axis.key) is not None for c in search.candidates):
                    return axis
        timed = all(c.get("latency") is not None for c in search.candidates)
        return LATENCY if timed and any(c.startswith("latency") for c in search.constraints) else self.cost

    @property
    def shown(self) -> Record | None:
        """What the run is about in the end: what a search found and was retrained, else the best that one found, else
        what was retrained first.
        """
        if self.found and self.found.training.result and self.found.arch:
            candidates = [c for s in self.searches for c in s.whole]
            known = next((c for c in candidates if tuple(c["arch"]) == self.found.arch), {})
            return {**known, **{k: v for k, v in vars(self.found).items() if v is not None}}
        return self.best or next((vars(r) for r in self.retrained if r.arch), None)


def collect(folder: RunFolder) -> RunData:
    """Reads a run's folder. RunDirectoryError if no stage of a run has been started in it."""
    searched = folder.search_stages()
    stages = [SUPERNET] * folder.started(SUPERNET) + searched + folder.retrain_stages()
    if not stages:
        raise RunDirectoryError(f"{folder.path} holds no run: expected a folder with supernet/, search/ or retrain-*/")
    supernet = None
    searches, retrained, identity = [], [], {}
    created = ""
    versions: Mapping[str, Any] = {}
    for stage in stages:
        with folder.open(stage) as run:
            identity[stage] = run.identity
            created, versions = created or run.created, versions or run.versions
            if stage == SUPERNET:
                supernet = _training(run, stage)
            elif stage in searched:
                searches.append(_search(run, stage, folder.settings(stage)))
            else:
                retrained.append(_retrained(run, stage, folder.plan(stage)))
    configs = {stage: config for stage in stages if (config := folder.settings(stage))}
    return RunData(
        name=folder.path.resolve().name,
        created=created,
        space=folder.space(),
        supernet=supernet,
        searches=searches,
        retrained=retrained,
        settings={stage: config_file.dumps(config) for stage, config in configs.items()},
        versions=versions,
        identity=identity,
        config=next(iter(configs.values()), None),
    )


def _training(run: RunDirectory, stage: str) -> Training:
    return Training(stage, run.config, run.records("train"), run.read_json("result"))


def _search(run: RunDirectory, stage: str, config: Config | None) -> Search:
    result = run.read_json("result") or run.read_json("result-random") or {}
    evolution, random = _searched(run, "evolution", "result"), _searched(run, "random", "result-random")
    label = stage.removeprefix(SEARCH).removeprefix("-")
    return Search(label, evolution, random, result.get("constraints", ()), config)


def _searched(run: RunDirectory, stream: str, result: str) -> Searched | None:
    candidates = run.records(stream)
    return Searched(candidates, run.read_json(result) is not None) if candidates else None


def _retrained(run: RunDirectory, stage: str, plan: Mapping[str, Any]) -> Retrained:
    training = _training(run, stage)
    facts = {**(training.result or {}), **plan}
    arch = facts.get("arch")
    return Retrained(
        label=str(facts.get("label", stage.partition("-")[2])),
        origin=str(facts.get("origin", "given")),
        arch=tuple(arch) if arch else None,
        flops=facts.get("flops"),
        params=facts.get("params"),
        bitops=facts.get("bitops"),
        training=training,
        deployed=run.read_json("deployed"),
    )
