"""How a search draws architectures: at random, by mutation, by crossover, and repaired where a budget is tight.

All are pure functions of a generator that is passed in. The paper's generation is `propose` (arXiv 1904.00420,
section 3.4, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

import numpy as np

from spos.budget_sampling import BudgetSampler
from spos.conditional_sampling import draw_conditional
from spos.config import SearchConfig
from spos.space import Arch, SearchSpace

Origin = Literal["random", "mutation", "crossover"]
Test = Callable[[Arch], bool]
Draw = Callable[[], Arch | None]

# The released code gives an operator ten attempts for each child wanted, and fills what is missing at random.
ATTEMPTS = 10
RANDOM_ATTEMPTS = 500
ENUMERABLE = 1 << 16


def mutate(arch: Arch, space: SearchSpace, rng: np.random.Generator, probability: float) -> Arch:
    """Redraw each decision with the given probability, from all that it offers (it may stay what it was)."""
    redrawn = rng.random(len(space)) < probability
    fresh = space.sample(rng)
    return Arch(new if again else old for old, new, again in zip(arch, fresh, redrawn, strict=True))


def crossover(one: Arch, other: Arch, rng: np.random.Generator) -> Arch:
    """Take each decision from one of two parents, with equal chance."""
    return Arch(a if first else b for a, b, first in zip(one, other, rng.random(len(one)) < 0.5, strict=True))


def repaired(
    one: Arch,
    other: Arch,
    space: SearchSpace,
    rng: np.random.Generator,
    exact: BudgetSampler | None,
    probability: float,
) -> Arch | None:
    """Draw a child of two parents, or of one twice, uniformly among those within the budget of `exact`.

    Each decision is redrawn with the given probability, from all that it offers; the others are from either parent.
    The child is what trying them again and again, with the same ones redrawn, would end with. None if there is none,
    or no budget that can be counted.
    """
    if exact is None:
        return None
    redrawn = rng.random(len(space)) < probability
    options = [
        range(d.drawn) if again else sorted({a, b})
        for d, a, b, again in zip(space.decisions, one, other, redrawn, strict=True)
    ]
    return draw_conditional(exact, options, rng)


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
    `exact` is as in `draw_random`; with it, and `config.repair`, children that a budget refuses are repaired before
    anything is filled up.
    """

    def parent() -> Arch:
        return parents[int(rng.integers(len(parents)))]

    taken = set(seen)
    children = breed(
        "mutation",
        config.mutations,
        lambda: mutate(parent(), space, rng, config.mutation_probability),
        lambda: repaired(one := parent(), one, space, rng, exact, config.mutation_probability),
        taken,
        allowed,
        exact is not None and config.repair,
    )
    children += breed(
        "crossover",
        config.crossovers,
        lambda: crossover(parent(), parent(), rng),
        lambda: repaired(parent(), parent(), space, rng, exact, 0.0),
        taken,
        allowed,
        exact is not None and config.repair,
    )
    missing = config.mutations + config.crossovers - len(children)
    return children + [(arch, "random") for arch in draw_random(space, missing, taken, allowed, rng, exact)]


def breed(
    origin: Origin, count: int, draw: Draw, repair: Draw, taken: set[Arch], allowed: Test, with_repair: bool
) -> list[tuple[Arch, Origin]]:
    """Draw up to `count` new children that are allowed, and then repair where these fall short."""
    found = draw_new(draw, count, ATTEMPTS * count, taken, allowed)
    if with_repair:
        missing = count - len(found)
        found += draw_new(repair, missing, ATTEMPTS * missing, taken, allowed)
    return [(arch, origin) for arch in found]


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
    found = draw_new(lambda: draw(rng), count, RANDOM_ATTEMPTS * count, taken, allowed)
    if len(found) < count and size <= ENUMERABLE:
        every = space.enumerate() if exact is None else map(exact.arch, range(size))
        left = [arch for arch in every if arch not in taken and allowed(arch)]
        picked = rng.permutation(len(left))[: count - len(found)]
        found += [left[i] for i in picked]
        taken.update(found)
    return found


def draw_new(draw: Draw, count: int, attempts: int, taken: set[Arch], allowed: Test) -> list[Arch]:
    """Draw until there are `count` that are allowed and not in `taken`, which they join, or attempts run out."""
    found: list[Arch] = []
    for _ in range(attempts):
        if len(found) == count:
            break
        arch = draw()
        if arch is not None and arch not in taken and allowed(arch):
            taken.add(arch)
            found.append(arch)
    return found
