"""NSGA-II: a search for many trade-offs at once instead of one best architecture.

Deb, Pratap, Agarwal and Meyarivan, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II", IEEE Transactions on
Evolutionary Computation, 2002.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import spos.costs
from spos.config import SearchConfig
from spos.costs import Constraint, Cost
from spos.draws import generator
from spos.pareto import crowding, front, fronts
from spos.space import Arch, SearchSpace
from spos.strategies import Proposed, Strategy, Told
from spos.supernet import Supernet
from spos.variation import breed, crossover, mutate, repaired

Objective = str | Cost | Callable[[Arch], float]


class NSGA2(Strategy):
    """Keeps the `population` best by front and crowding distance; parents win tournaments of two by the same order.

    objectives: two or more of "accuracy", which is to be high, and of costs, which are to be low: names such as
    "flops", `spos.flops`, or functions of an architecture. A child is a crossover of two parents, mutated;
    `mutations` + `crossovers` of them make a generation. Constraints are met by what is proposed; a `violation` that is
    told, of what only measuring shows, counts before all objectives (constrained-domination).
    """

    def __init__(
        self,
        space: Supernet | SearchSpace,
        *,
        objectives: Sequence[Objective] | None = None,
        constraints: Sequence[Constraint] = (),
        config: SearchConfig | None = None,
        seed: int = 0,
        allowed: Callable[[Arch], bool] | None = None,
    ) -> None:
        super().__init__(space, constraints=constraints, config=config, seed=seed, allowed=allowed)
        given = self.config.objectives if objectives is None else objectives
        if isinstance(given, str) or len(given) < 2:
            raise ValueError(f"objectives = {given!r}: expected two or more")
        self._costs = [objective_of(each, self.net) for each in given]
        self._survivors: list[Told] = []

    def point(self, told: Told) -> tuple[float, ...]:
        """Return the objectives of an architecture, all to be small: of accuracy what is missing to 0, negated."""
        return tuple(-told.accuracy if cost is None else float(cost(told.arch)) for cost in self._costs)

    @property
    def pareto(self) -> list[Told]:
        """The front of all that was told: those that nothing feasible beats in one objective and matches in all."""
        every = [told for told in (*self.history, *self._told.values()) if told.violation == 0]
        return [every[i] for i in front([self.point(told) for told in every])] if every else []

    def _propose(self) -> Proposed:
        if self.number == 0:
            return self.population()
        rng, config = generator(self.seed, self.stream, self.number), self.config
        order = {told.arch: place for place, told in enumerate(self._survivors)}
        parents = list(order)

        def parent() -> Arch:
            one, other = (parents[int(i)] for i in rng.integers(len(parents), size=2))
            return min(one, other, key=order.__getitem__)

        def child() -> Arch:
            return mutate(crossover(parent(), parent(), rng), self.space, rng, config.mutation_probability)

        def within() -> Arch | None:
            return repaired(parent(), parent(), self.space, rng, self.exact, config.mutation_probability)

        taken, count = self.seen, config.mutations + config.crossovers
        repair = self.exact is not None and config.repair
        children = breed("crossover", count, child, within, taken, self.allowed, repair)
        return children + self.at_random(count - len(children), taken, rng)

    def _learn(self, done: Sequence[Told]) -> None:
        """Keep the best, in order: front by front, and within one by crowding distance, the widest first."""
        every = [*self._survivors, *done]
        points = [self.point(told) for told in every]
        kept: list[int] = []
        for members in fronts(points, [told.violation for told in every]):
            gaps = crowding([points[i] for i in members])
            kept += [i for _, i in sorted(zip((-g for g in gaps), members, strict=True))]
        self._survivors = [every[i] for i in kept[: self.config.population]]


def objective_of(objective: Any, net: Supernet | None) -> Callable[[Arch], float] | None:
    """Return the function to make small, None for the accuracy. ValueError for what is no objective of the supernet."""
    if objective == "accuracy":
        return None
    cost = getattr(spos.costs, objective, None) if isinstance(objective, str) else objective
    if isinstance(cost, Cost):
        if net is None:
            raise ValueError(f"objective {cost.name!r} for a SearchSpace, which has no costs: expected a spos.Supernet")
        known, supernet = cost, net
        return lambda arch: known(supernet, arch)
    if isinstance(objective, str) or not callable(cost):
        names = ", ".join(n for n, value in vars(spos.costs).items() if isinstance(value, Cost))
        raise ValueError(f"objective {objective!r}: expected 'accuracy', a cost ({names}), or a function of an arch")
    function: Callable[[Arch], float] = cost
    return function
