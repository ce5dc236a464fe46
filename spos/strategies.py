"""Searches that are asked for architectures and told their scores, so that whoever drives them keeps the loop.

    search = spos.Evolution(net, constraints=[spos.flops <= 330e6])
    while archs := search.ask():
        search.tell(archs, [score(arch) for arch in archs])
    search.best.arch

What is asked for is a function of the seed, the number of the generation and what was told, of nothing else, and does
not depend on the order of telling. `spos.evolve` drives the same searches with a supernet's scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from numbers import Real
from typing import Any

from spos.config import SearchConfig
from spos.costs import Constraint, UnsatisfiableError, feasible, reachable
from spos.data.checks import checked_seed
from spos.draws import generator
from spos.ranking import RankingKey, ranking_key
from spos.space import Arch, SearchSpace
from spos.supernet import Supernet
from spos.variation import RANDOM_ATTEMPTS, Origin, Test, breed, draw_random, propose

Proposed = list[tuple[Arch, Origin]]


@dataclass(frozen=True)
class Told:
    """An architecture and what was told of it: `accuracy`, higher is better, and `loss`, which decides among equals.

    `violation` says how far it is from being feasible, where that is known only once it is measured; 0 if it is.
    """

    arch: Arch
    accuracy: float
    loss: float = 0.0
    generation: int = 0
    origin: Origin = "random"
    violation: float = 0.0

    @property
    def key(self) -> tuple[float, RankingKey]:
        """Sort key, best first."""
        return self.violation, ranking_key(vars(self))


class Strategy(ABC):
    """A search: `ask` gives a generation's architectures, `tell` takes their scores.

    space: a Supernet, whose costs `constraints` are about, or a SearchSpace of anything else.
    config: the numbers of a generation and of generations.
    allowed: a test of one's own that proposed architectures have to pass.

    Raises UnsatisfiableError for constraints that no architecture meets, or, from `ask`, where none was found that
    meets them together; ValueError for constraints on a SearchSpace.
    """

    stream = "evolution"  # the name of a run's records

    def __init__(
        self,
        space: Supernet | SearchSpace,
        *,
        constraints: Sequence[Constraint] = (),
        config: SearchConfig | None = None,
        seed: int = 0,
        allowed: Callable[[Arch], bool] | None = None,
    ) -> None:
        if not isinstance(space, Supernet | SearchSpace):
            raise TypeError(f"space is a {type(space).__name__}: expected a spos.Supernet or a spos.SearchSpace")
        self.net = space if isinstance(space, Supernet) else None
        self.space = space.space if isinstance(space, Supernet) else space
        self.config = config or SearchConfig()
        self.seed = checked_seed(seed)
        self.constraints = list(constraints)
        self.exact = None
        tests: list[Test] = [] if allowed is None else [allowed]
        if constraints:
            if self.net is None:
                raise ValueError("constraints on a SearchSpace, which has no costs: expected a spos.Supernet")
            _, self.exact = reachable(self.net, constraints)
            tests.append(feasible(self.net, constraints))
        self.allowed: Test = lambda arch: all(test(arch) for test in tests)
        self.history: list[Told] = []
        self.number = 0  # of the generation that is asked for
        self._asked: dict[Arch, Origin] | None = None
        self._told: dict[Arch, Told] = {}

    @property
    def generations(self) -> int:
        """The number of generations, the first population among them."""
        return self.config.generations + 1

    def ask(self) -> list[Arch]:
        """Return the architectures of the current generation that have no score yet; none once the search is over."""
        return [arch for arch in self.proposed() if arch not in self._told]

    def proposed(self) -> dict[Arch, Origin]:
        """Return the whole current generation, and where each architecture of it came from."""
        if self._asked is None:
            self._asked = dict(self._propose()) if self.number < self.generations else {}
            if not self._asked and self.number == 0:
                raise UnsatisfiableError(self._nothing_found())
        return self._asked

    def _nothing_found(self) -> str:
        attempts = RANDOM_ATTEMPTS * self.config.population
        within = " and ".join(sorted(map(str, self.constraints))) or "allowed"
        text = f"{within}: none of {attempts:,} random architectures meets this"
        if self.net is None:
            return text
        ranges = {c.cost.name: c.cost.range(self.net) for c in self.constraints}
        reach = "; ".join(f"{cost} from {r[0]:,} to {r[1]:,}" for cost, r in ranges.items() if r)
        return text + f"; {self.net.name} reaches {reach}" * bool(reach)

    def tell(self, archs: Sequence[Sequence[int]], scores: Sequence[Any], violations: Sequence[float] = ()) -> None:
        """Take the scores of architectures that were asked for: numbers, the higher the better, or `spos.Score`s.

        Some of a generation may be told before others. ValueError for an architecture that was not asked for, or is
        told twice, and for a score that is no finite number.
        """
        far = list(violations) if len(violations) else [0.0] * len(archs)
        if not len(archs) == len(scores) == len(far):
            given = f"{len(archs)} architectures, {len(scores)} scores and {len(violations)} violations"
            raise ValueError(f"{given}: expected one score, and one violation or none at all, for each")
        proposed, new = self.proposed(), dict(self._told)
        for arch, score, violation in zip(archs, scores, far, strict=True):
            checked = self.space.arch(arch)
            if checked not in proposed or checked in new:
                what = "told already" if checked in new else "not asked for"
                raise ValueError(f"{checked} was {what}: expected one of ask()'s")
            if isinstance(score, Real):
                accuracy, loss = score, 0.0
            elif hasattr(score, "accuracy") and hasattr(score, "loss"):
                accuracy, loss = score.accuracy, score.loss
            else:
                kind = type(score).__name__
                raise TypeError(f"score {score!r} of {checked} is a {kind}: expected a number or a Score")
            for name, value in (("score", accuracy), ("violation", violation)):
                if not isinstance(value, Real) or not isfinite(value):
                    raise ValueError(f"{name} {value!r} of {checked}: expected a finite number")
            told = Told(checked, float(accuracy), float(loss), self.number, proposed[checked], max(0.0, violation))
            new[checked] = told
        self._told = new
        if len(new) == len(proposed) and proposed:
            done = [new[arch] for arch in proposed]
            self.history += done
            self._asked, self._told = None, {}
            self.number += 1
            self._learn(done)

    @property
    def best(self) -> Told:
        """The best of all that was told, of whole generations and of the current one. ValueError if that is nothing."""
        every = [*self.history, *self._told.values()]
        if not every:
            raise ValueError("nothing was told yet: expected ask() and tell() before")
        return min(every, key=lambda told: told.key)

    def top(self, count: int) -> list[Told]:
        """Return the `count` best of whole generations."""
        return sorted(self.history, key=lambda told: told.key)[:count]

    @property
    def seen(self) -> set[Arch]:
        """All architectures of whole generations."""
        return {told.arch for told in self.history}

    def population(self) -> Proposed:
        """Draw the first population: different ones, uniformly within the constraints, exactly where these count."""
        rng = generator(self.seed, self.stream, 0)
        return self.at_random(self.config.population, set(), rng)

    def at_random(self, count: int, taken: set[Arch], rng: Any) -> Proposed:
        """Draw architectures that are allowed and not in `taken`, which they join."""
        return [(a, "random") for a in draw_random(self.space, count, taken, self.allowed, rng, self.exact)]

    @abstractmethod
    def _propose(self) -> Proposed:
        """Draw generation `number`."""

    def _learn(self, done: Sequence[Told]) -> None:  # noqa: B027 - most have nothing to keep
        """Take note of a whole generation, which `history` has already."""


class Evolution(Strategy):
    """The paper's search (arXiv 1904.00420, algorithm 1): mutations and crossovers of the best of all so far."""

    def _propose(self) -> Proposed:
        if self.number == 0:
            return self.population()
        parents = [told.arch for told in self.top(self.config.parents)]
        rng = generator(self.seed, self.stream, self.number)
        return propose(self.space, parents, self.seen, self.allowed, self.config, rng, self.exact)


class RandomSearch(Strategy):
    """As many architectures as evolution would ask for, drawn uniformly, in one generation."""

    stream = "random"

    @property
    def generations(self) -> int:
        return 1

    def _propose(self) -> Proposed:
        return self.at_random(self.config.evaluations, set(), generator(self.seed, self.stream, 0))


class AgingEvolution(Strategy):
    """Regularized evolution (Real et al., "Regularized Evolution for Image Classifier Architecture Search", 2019).

    The population is the newest `population` architectures, good or bad: the oldest die. A child is the best of
    `sample_size` of them, drawn with replacement, with one decision changed. `mutations` + `crossovers` children of the
    same population make a generation, as many as their workers would have at work; 1 and 0 is one after another. Unlike
    there no architecture is asked for twice; what cannot be bred is drawn at random.
    """

    def _propose(self) -> Proposed:
        if self.number == 0:
            return self.population()
        rng = generator(self.seed, self.stream, self.number)
        alive, count = self.history[-self.config.population :], self.config.mutations + self.config.crossovers
        open_ = [p for p, d in enumerate(self.space.decisions) if d.drawn > 1]

        def child() -> Arch:
            rivals = [alive[int(i)] for i in rng.integers(len(alive), size=self.config.sample_size)]
            choices = list(min(rivals, key=lambda told: told.key).arch)
            position = open_[int(rng.integers(len(open_)))]
            shift = 1 + int(rng.integers(self.space.decisions[position].drawn - 1))
            choices[position] = (choices[position] + shift) % self.space.decisions[position].drawn
            return Arch(choices)

        taken = self.seen
        children = breed("mutation", count if open_ else 0, child, child, taken, self.allowed, False)
        return children + self.at_random(count - len(children), taken, rng)
