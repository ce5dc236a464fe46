"""The paths of each training step, drawn in one of several ways; `TrainConfig.sampler` says which.

    "uniform"          one path, every option alike (arXiv 1904.00420, section 3.2), with its warm-up of widths
    "budget"           one path, uniform among those within bounds on costs: exactly, by counting, without rejection.
                       With `cost_bins`, the scheme of the released code of arXiv 1904.00420: a part of the range of
                       costs is drawn first, all alike often, then uniformly among the architectures in it
    "fair"             strict fairness (FairNAS, arXiv 1907.01845): one update from one pass for each option
    "diverse"          the same passes, each an update of its own: paths that follow each other differ as much as can be
    "module:function"  a function of one's own

Every sampler gives the same paths for the same (seed, step), whatever was drawn before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np

from spos.budget_sampling import BudgetSampler
from spos.budgets import bounds_of
from spos.config import TrainConfig
from spos.costs import Constraint, UnsatisfiableError, feasible, flops, reachable
from spos.draws import generator
from spos.sampling import OpenOptions, path_sampler
from spos.space import Arch, SearchSpace
from spos.supernet import Supernet

Paths = tuple[Arch, ...]
PathFunction = Callable[[SearchSpace, int, np.random.Generator], Sequence[Any]]
"""`function(space, step, rng)` returns an architecture, or several that make one update together."""

# Draws that may miss the bounds on other costs than the one that is counted.
_ATTEMPTS = 100_000


def paths_of_steps(
    net: Supernet, config: TrainConfig, total: int, seed: int, function: PathFunction | None = None
) -> Callable[[int], Paths]:
    """Return the paths of each of `total` steps, a pure function of the seed and the step.

    The gradients of a step's paths, all on the same images, are added up to one update. `function` takes the place of
    what `config.sampler` names. Raises ValueError for a setting that does not fit the space, UnsatisfiableError for
    bounds that nothing lies within.
    """
    name = "function" if function is not None else config.sampler
    if name not in ("uniform", "fair", "diverse") and (config.width_warmup or config.width_widening):
        raise ValueError(
            f"width_warmup = {config.width_warmup} and width_widening = {config.width_widening} with sampler = "
            f"{name!r}: expected neither, or one of the samplers that warm up, 'uniform', 'fair' and 'diverse'"
        )
    if function is not None:
        return _own_paths(net.space, function, seed)
    if ":" in name:
        return _own_paths(net.space, load_function(name), seed)
    if name == "budget":
        return budget_paths(net, config, seed)
    if name == "uniform":
        path = path_sampler(net.space, config, total, seed)
        return lambda step: (path(step),)
    options = OpenOptions(net.space, config, total)
    return (fair_paths if name == "fair" else diverse_paths)(options, seed)


def fair_paths(options: OpenOptions, seed: int) -> Callable[[int], Paths]:
    """Strict fairness: every step has as many passes as the largest block has options (FairNAS, algorithm 1).

    A block with that many options goes through all of them, in random order, each once. FairNAS has no other blocks.
    One with fewer takes each option in as many passes as it can be alike often, and some of them once more; which, is
    a random order that is gone through from step to step, so that over k / gcd(k, n) steps, for k options and n
    passes, every option has had exactly the same number. All options of all blocks are trained in every step.
    """

    def paths(step: int) -> Paths:
        sizes = options.sizes(step)
        return tuple(options.arch(sizes, indices) for indices in _balanced(sizes, seed, step))

    return paths


def diverse_paths(options: OpenOptions, seed: int) -> Callable[[int], Paths]:
    """Greatest Hamming distance: of n steps in a row, for n options of the largest block, each takes another option.

    That is the set of n paths whose Hamming distances add up to the most: two of them have an option in common only in
    a block with fewer than n. By itself each path is uniform. Steps 0 to n-1 are one such set, n to 2n-1 the next, and
    so on. That supernets gain from training unlike architectures is the thought of "One-Shot Neural Architecture Search
    Through Novelty Driven Sampling" (Zhang et al., IJCAI 2020), which measures novelty by a network; that sets of
    points should lie as far apart as can be, that of maximin designs (Johnson, Moore and Ylvisaker, 1990).
    """

    def paths(step: int) -> Paths:
        sizes = options.sizes(step)
        group, place = divmod(step, max(sizes, default=1))
        return (options.arch(sizes, _balanced(sizes, seed, group)[place]),)

    return paths


def _balanced(sizes: Sequence[int], seed: int, number: int) -> list[list[int]]:
    """Return set `number` of as many rows as the largest size, each size's indices as evenly in its column as can be.

    With k not dividing the number of rows, which indices occur once more is a window of a random order of all k, going
    round it from set to set: those of a window are different ones, and all have been in as many whenever it is through.
    """
    rows, rng = max(sizes, default=1), generator(seed, "path", number)
    columns: list[np.ndarray[Any, Any]] = []
    for position, size in enumerate(sizes):
        column = list(range(size)) * (rows // size)
        if rest := rows % size:
            cycle, turn = divmod(number, size)
            order = generator(seed, f"fair {position} of {size}", cycle).permutation(size)
            column += [int(order[(turn * rest + i) % size]) for i in range(rest)]
        columns.append(rng.permutation(column))
    return [[int(column[row]) for column in columns] for row in range(rows)]


def budget_paths(net: Supernet, config: TrainConfig, seed: int) -> Callable[[int], Paths]:
    """Uniform among the architectures within the bounds that `config` names; see the module for `cost_bins`.

    One cost is counted, and the bounds on others are met by drawing again.
    """
    constraints = bounds_of(config)
    _, exact = reachable(net, constraints)
    allowed = feasible(net, constraints)
    parts = [] if config.cost_bins == 1 else _bins(net, constraints, config.cost_bins)

    def paths(step: int) -> Paths:
        rng = generator(seed, "path", step)
        if not parts and exact is None:
            draw = net.space.sample
        else:
            draw = (parts[int(rng.integers(len(parts)))] if parts else exact).sample  # type: ignore[union-attr]
        for _ in range(_ATTEMPTS):
            if allowed(arch := draw(rng)):
                return (arch,)
        limits = " and ".join(map(str, constraints))
        raise UnsatisfiableError(f"{limits}: none of {_ATTEMPTS:,} random architectures meets this at step {step}")

    return paths


def _bins(net: Supernet, constraints: Sequence[Constraint], count: int) -> list[BudgetSampler]:
    """Cut the range of the bounded cost, or of the FLOPs, into equal parts; those without architectures are left out.

    The cost has to be countable, ValueError says so, and the only one that is bounded.
    """
    costs = list({c.cost.name: c.cost for c in constraints}.values()) or [flops]
    if len(costs) > 1:
        names = ", ".join(cost.name for cost in costs)
        raise ValueError(f"cost_bins = {count} with bounds on {names}: expected bounds on one cost, or 1")
    [cost] = costs
    table = cost.table(net)
    whole = BudgetSampler(net.space, table)  # ValueError says why costs cannot be counted
    low, high = table.range() or (0, 0)
    for constraint in constraints:
        bound = constraint.bound * cost.unit
        low, high = (low, min(high, int(bound // 1))) if constraint.upper else (max(low, -int(-bound // 1)), high)
    edges = [low + (high + 1 - low) * i // count for i in range(count + 1)]
    parts = [whole.between(a, b - 1) for a, b in pairwise(edges) if b > a]
    return [part for part in parts if part.count]


def note(paths: Paths) -> dict[str, Any]:
    """Return what the record of a step says of its paths: "arch", or "archs" where there are several."""
    listed = [arch.to_json() for arch in paths]
    return {"arch": listed[0]} if len(listed) == 1 else {"archs": listed}


def load_function(name: str) -> PathFunction:
    """Import the function that "module:function" names. ValueError if there is none."""
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"sampler = {name!r}: {error}; expected 'module:function' that can be imported") from None
    if not callable(found):
        raise ValueError(f"sampler = {name!r}: it is a {type(found).__name__}, expected a function")
    function: PathFunction = found
    return function


def function_name(function: Callable[..., Any]) -> str:
    """Return by what name a run knows a function."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _own_paths(space: SearchSpace, function: PathFunction, seed: int) -> Callable[[int], Paths]:
    def paths(step: int) -> Paths:
        drawn = list(function(space, step, generator(seed, "path", step)))
        several = bool(drawn) and all(isinstance(entry, Sequence | np.ndarray) for entry in drawn)
        try:
            return tuple(space.arch(arch) for arch in drawn) if several else (space.arch(drawn),)
        except (TypeError, ValueError) as error:
            raise type(error)(f"sampler {function_name(function)} at step {step}: {error}") from None

    return paths
