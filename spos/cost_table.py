"""The cost of every architecture of a supernet, from a few measured paths."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import nn

from spos.choices import ChoiceBlock, WidthChoice
from spos.measurement import Measurement, Place, Shapes, SlicedCost
from spos.sliced import SlicedModule
from spos.space import Arch, SearchSpace
from spos.supernet import Supernet

Measure = Callable[[Supernet, Arch], Measurement]
Scope = tuple[int, ...]  # positions in the arch, ascending

Key = TypeVar("Key")
Value = TypeVar("Value")

# Entries that a table of the decisions met in one step of finding the range may have: decisions that all meet each
# other would need more than there are architectures.
_LARGEST_TABLE = 1 << 22


# Combinations of options that decisions may have which only count together.
_LARGEST_COMPONENT = 1 << 16


class Component(NamedTuple):
    """Decisions that meet in no term with others, by position, and what each combination of their options adds."""

    scope: Scope
    costs: NDArray[np.int64]


def _sum(numbers: Iterable[int]) -> int:
    return sum(numbers)


class CostTable:
    """A sum of terms, each a table over the few decisions that it depends on.

    These are a branch's own decision, those of the branches around it, and the widths of the sliced layer that a term
    counts, and its bits where these count. `additive` says whether that is how the costs are; where it is not, each
    architecture is measured by itself.
    """

    # What makes it a sum: of numbers, and of arrays.
    total: Callable[[Iterable[int]], int] = staticmethod(_sum)
    combine: np.ufunc = np.add

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._single: Callable[[Arch], int] | None = None
        self._terms: dict[Scope, dict[tuple[int, ...], int]] = {}

    @classmethod
    def of(cls, net: Supernet, measure: Measure) -> CostTable:
        """Run the paths that together show every option."""
        table = cls(net.space)
        if not table._fill(net, measure):
            table._single = lambda arch: measure(net, arch).total(arch)
        return table

    def fingerprint(self) -> str:
        """Return the SHA-256 of the terms."""
        terms = [[list(scope), sorted(term.items())] for scope, term in sorted(self._terms.items())]
        return hashlib.sha256(json.dumps(terms).encode()).hexdigest()

    @property
    def additive(self) -> bool:
        """Whether the terms add up to the costs."""
        return self._single is None

    def _fill(self, net: Supernet, measure: Measure) -> bool:
        """Add all terms, unless they turn out not to add up."""
        places: dict[Place, int] = {}
        sliced: dict[tuple[Place, SlicedModule], SlicedCost] = {}
        owners: dict[int, Place] = {}
        for base in _extreme_widths(net):
            shapes: dict[tuple[Place, int], list[Shapes]] = {}  # channels may be others for other widths
            for arch in _covering(net, base):
                found = measure(net, arch)
                if not (
                    found.additive
                    and _agree(places, found.costs)
                    and _agree(sliced, found.sliced)
                    and _agree(shapes, found.shapes)
                    and _agree(owners, found.owners)
                ):
                    return False
        for place, cost in places.items():
            self.add(dict(place), cost)
        for (place, module), sliced_cost in sliced.items():
            self._add_sliced(dict(place), module, sliced_cost)
        return True

    def __call__(self, arch: Sequence[int]) -> int:
        checked = self._space.arch(arch)
        if self._single is not None:
            return self._single(checked)
        return self.total(term.get(tuple(checked[p] for p in scope), 0) for scope, term in self._terms.items())

    def counting(self, low: int | None, high: int | None) -> tuple[CostTable, int | None, int | None]:
        """Return a table that is a sum, and bounds, which the same architectures lie within as within these."""
        return self, low, high

    def range(self) -> tuple[int, int] | None:
        """Return the lowest and highest cost over what the space offers.

        None where it is not known: where costs do not add up, and where too many decisions meet in one term.
        """
        if not self.additive:
            return None
        low, high = self._extreme(np.min), self._extreme(np.max)
        return None if low is None or high is None else (low, high)

    def components(self) -> list[Component]:
        """Return the costs as a sum over groups of decisions, every decision in one; constants are in the first.

        ValueError where costs do not add up, or too many decisions meet.
        """
        if not self.additive:
            raise ValueError("the costs of its parts do not add up")
        owner = {p: {p} for p in range(len(self._space))}
        for scope in self._terms:
            joined = set().union(*(owner[p] for p in scope))
            owner |= dict.fromkeys(joined, joined)
        found = []
        constant = sum(self._terms.get((), {}).values())
        for scope in sorted({tuple(sorted(positions)) for positions in owner.values()}):
            if self._size(scope) > _LARGEST_COMPONENT:
                names = ", ".join(self._space.decisions[p].name for p in scope[:4])
                raise ValueError(
                    f"{names}{' and others' * (len(scope) > 4)} meet in {self._size(scope):,} combinations"
                )
            costs = np.full([self._options(p) for p in scope], constant, np.int64)
            for part in self._terms:
                if part and set(part) <= set(scope):
                    costs += self._array(part).reshape([self._options(p) if p in part else 1 for p in scope])
            found.append(Component(scope, costs))
            constant = 0
        return found

    def add(self, options: Mapping[int, int], cost: int) -> None:
        """Add what architectures cost that take these options, by position."""
        scope = tuple(sorted(options))
        term, key = self._terms.setdefault(scope, {}), tuple(options[p] for p in scope)
        term[key] = self.total((term.get(key, 0), cost))

    def _add_sliced(self, options: dict[int, int], module: SlicedModule, cost: SlicedCost) -> None:
        """Add what a sliced layer costs in its place at every combination of the choices that it reads."""
        free = sorted({c.position or 0 for c in cost.choices(module)} - set(options))
        arch = [0] * len(self._space)
        for position, index in options.items():
            arch[position] = index
        for indices in product(*(range(len(self._space.decisions[p].options)) for p in free)):
            for position, index in zip(free, indices, strict=True):
                arch[position] = index
            self.add(options | dict(zip(free, indices, strict=True)), cost.total(module, arch))

    def _options(self, position: int) -> int:
        """Return how many options a search draws from: others have a cost, but do not count to the range."""
        return self._space.decisions[position].drawn

    def _extreme(self, reduce: Callable[..., NDArray[np.int64]]) -> int | None:
        """Minimise or maximise by eliminating one decision after the other, the one that meets the fewest others first.

        (Bertelè and Brioschi, "Nonserial Dynamic Programming", 1972.)
        """
        tables = [(scope, self._array(scope)) for scope in self._terms]
        while True:
            joints = {p: _join(s for s, _ in tables if p in s) for scope, _ in tables for p in scope}
            if not joints:
                return int(functools.reduce(self.combine, (table for _, table in tables), 0))
            position, joint = min(joints.items(), key=lambda item: self._size(item[1]))
            if self._size(joint) > _LARGEST_TABLE:
                return None
            met = [(s, t) for s, t in tables if position in s]
            spread = (t.reshape([self._options(p) if p in s else 1 for p in joint]) for s, t in met)
            whole = functools.reduce(self.combine, spread)
            left = tuple(p for p in joint if p != position)
            tables = [(s, t) for s, t in tables if position not in s]
            tables.append((left, reduce(whole, axis=joint.index(position))))

    def _array(self, scope: Scope) -> NDArray[np.int64]:
        sizes = [self._options(p) for p in scope]
        array = np.zeros(sizes, np.int64)
        for key, cost in self._terms[scope].items():
            if all(index < size for index, size in zip(key, sizes, strict=True)):
                array[key] = cost
        return array

    def _size(self, scope: Scope) -> int:
        return math.prod(self._options(p) for p in scope)


def _join(scopes: Iterator[Scope]) -> Scope:
    return tuple(sorted({p for scope in scopes for p in scope}))


def _agree(known: dict[Key, Value], found: dict[Key, Value]) -> bool:
    return all(known.setdefault(key, value) == value for key, value in found.items())


def _extreme_widths(net: Supernet) -> list[Arch]:
    """Two architectures to start from, all widths the narrowest and the widest; one where there is no width."""
    widths = {m.position: len(m.widths) - 1 for m in net.modules() if isinstance(m, WidthChoice)}
    narrow = Arch([0] * len(net.space))
    return [narrow, Arch(widths.get(p, 0) for p in range(len(net.space)))] if widths else [narrow]


def _covering(net: Supernet, base: Arch) -> Iterator[Arch]:
    """Yield architectures that together run every branch, also those inside of branches, and else are as `base`."""
    blocks = [m for m in net.modules() if isinstance(m, ChoiceBlock)]
    missing = {(id(block), index) for block in blocks for index in range(len(block.labels))}
    while True:
        choices: dict[int, int] = {}
        _pick(net.module, choices, missing)
        arch = Arch(choices.get(position, index) for position, index in enumerate(base))
        for module in net.path_modules(arch):
            if isinstance(module, ChoiceBlock):
                missing.discard((id(module), module.option(arch)))
        yield arch
        if not missing:
            return


def _pick(module: nn.Module, choices: dict[int, int], missing: set[tuple[int, int]]) -> None:
    """Choose, from the outside in, options under which something is still to be run."""
    if not isinstance(module, ChoiceBlock):
        for child in module.children():
            _pick(child, choices, missing)
        return
    position = module.position or 0
    if position not in choices:

        def open_branches(index: int) -> int:
            inner = [m for m in module.branch(index).modules() if isinstance(m, ChoiceBlock)]
            nested = sum((id(m), i) in missing for m in inner for i in range(len(m.labels)))
            return nested + ((id(module), index) in missing)

        choices[position] = max(range(len(module.labels)), key=open_branches)
    _pick(module.branch(choices[position]), choices, missing)
