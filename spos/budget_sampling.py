"""Exact uniform draws from the architectures whose cost lies within bounds, without rejection.

A cost that is a sum over groups of decisions, which is what counted costs and latencies are, takes values on a lattice.
`ways[i][r]` is the number of ways to take the options of group i and all behind it at a cost of at most r, found group
by group from the last one on. The architectures within the bounds are thereby numbered, and a number is turned into its
architecture by walking the groups: a draw is a uniform number. Counts are exact integers, in limbs of 32 bits.
(Ranking and unranking by counting: Nijenhuis and Wilf, "Combinatorial Algorithms", 1978.)
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spos.cost_table import Component, CostTable
from spos.space import Arch, SearchSpace

MEMORY = 2 << 30  # bytes that the counts may take
_LIMB = 32


@dataclass(frozen=True)
class _Group:
    """Decisions at `scope`: their combinations of options by cost, cheapest first, `starts` where a cost's begin."""

    scope: tuple[int, ...]
    combinations: NDArray[np.int64]  # [combinations, decisions]
    costs: NDArray[np.int64]  # different ones, in steps of the lattice above the cheapest
    starts: list[int]
    multiplicities: list[int]


class BudgetSampler:
    """The architectures of a space with `low` <= cost <= `high`, numbered from 0 to `count` - 1.

    table: of the cost, in its own whole numbers. A bound of None is none. Raises ValueError, saying why, where the cost
    is no sum of terms over few decisions, or its lattice has more points than `memory` bytes hold.
    """

    def __init__(
        self,
        space: SearchSpace,
        table: CostTable,
        *,
        low: int | None = None,
        high: int | None = None,
        memory: int = MEMORY,
    ) -> None:
        self._space = space
        self.components = components = table.components()
        self._base = sum(int(c.costs.min()) for c in components)
        self._step = math.gcd(*(int(n) for c in components for n in np.unique(c.costs - c.costs.min()))) or 1
        self._groups = [_group(c, self._step) for c in components]
        self._high = sum(int(g.costs[-1]) for g in self._groups)
        self._low = 0
        self._narrow(low, high)
        self._ways = self._count(max(self._high, 0), memory)
        self.count = self._counted()

    def between(self, low: int, high: int) -> BudgetSampler:
        """Return the sampler of narrower bounds, both included, that shares what was counted."""
        part = copy.copy(self)
        part._narrow(low, high)
        part.count = part._counted()
        return part

    @property
    def bounds(self) -> tuple[int, int]:
        """The bounds, both included, in the table's numbers, brought within what the space reaches."""
        return self._base + self._low * self._step, self._base + self._high * self._step

    def _narrow(self, low: int | None, high: int | None) -> None:
        """Bring the bounds, in steps of the lattice above the cheapest, within others, in the table's numbers."""
        if high is not None:
            self._high = min(self._high, (high - self._base) // self._step)
        if low is not None:
            self._low = max(self._low, -((self._base - low) // self._step))

    def _counted(self) -> int:
        return max(0, self._at(0, self._high) - self._at(0, self._low - 1))

    def arch(self, number: int) -> Arch:
        """Return the architecture of a number. IndexError for one that is not below `count`."""
        if not 0 <= number < self.count:
            raise IndexError(f"number = {number}: expected 0 to {self.count - 1}")
        choices = [0] * len(self._space)
        low, high = self._low, self._high
        for i, group in enumerate(self._groups):
            ways = self._many(i + 1, high - group.costs)
            if low > 0:
                less = self._many(i + 1, low - 1 - group.costs)
                ways = [a - b for a, b in zip(ways, less, strict=True)]
            for at, count in enumerate(group.multiplicities):
                each = ways[at]
                if number < each * count:
                    break
                number -= each * count
            place, number = divmod(number, each)
            combination = group.combinations[group.starts[at] + place]
            for position, option in zip(group.scope, combination.tolist(), strict=True):
                choices[position] = option
            cost = int(group.costs[at])
            low, high = low - cost, high - cost
        return Arch(choices)

    def sample(self, rng: np.random.Generator) -> Arch:
        """Draw one uniformly. ValueError where there is none."""
        if self.count < 1:
            raise ValueError("no architecture lies within the bounds")
        bits = (self.count - 1).bit_length()
        while True:
            number = int.from_bytes(rng.bytes(-(-bits // 8)), "little") >> -bits % 8
            if number < self.count:
                return self.arch(number)

    def _count(self, high: int, memory: int) -> list[NDArray[np.uint32]]:
        """Return for each group the ways at 0, 1, … up to `high` or its largest cost: uint32 [limbs, costs]."""
        limbs = -(-self._space.size().bit_length() // _LIMB)
        lengths, largest = [1], 0
        for group in reversed(self._groups):
            largest += int(group.costs[-1])
            lengths.append(min(high, largest) + 1)
        needed = 4 * limbs * sum(lengths) + 16 * lengths[-1]
        if needed > memory:
            raise ValueError(f"counting takes {needed / 1e9:.1f} GB: expected at most {memory / 1e9:.1f}")
        last = np.zeros((limbs, 1), np.uint32)
        last[0] = 1
        ways = [last]
        for group, length in zip(reversed(self._groups), lengths[1:], strict=True):
            after, found = ways[-1], np.empty((limbs, length), np.uint32)
            carry: NDArray[np.uint64] = np.zeros(length, np.uint64)
            for limb in range(limbs):
                for cost, count in zip(group.costs.tolist(), group.multiplicities, strict=True):
                    if cost >= length:
                        break
                    part = after[limb].astype(np.uint64) * np.uint64(count)
                    known = min(len(part), length - cost)
                    carry[cost : cost + known] += part[:known]
                    carry[cost + known :] += part[-1]  # no more ways from the largest cost on
                found[limb] = carry & np.uint64(2**_LIMB - 1)
                carry >>= np.uint64(_LIMB)
            ways.append(found)
        return ways[::-1]

    def _at(self, group: int, cost: int) -> int:
        return self._many(group, np.array([cost]))[0]

    def _many(self, group: int, costs: NDArray[np.int64]) -> list[int]:
        """Return the ways of a group and those behind it, at most so dear, for several costs."""
        ways = self._ways[group]
        columns = ways[:, np.clip(costs, 0, ways.shape[1] - 1)].T.tobytes()
        size = 4 * ways.shape[0]
        numbers = [int.from_bytes(columns[i : i + size], "little") for i in range(0, len(columns), size)]
        return [number if cost >= 0 else 0 for number, cost in zip(numbers, costs.tolist(), strict=True)]


def _group(component: Component, step: int) -> _Group:
    costs = (component.costs - component.costs.min()).ravel() // step
    order = np.argsort(costs, kind="stable")
    different, starts = np.unique(costs[order], return_index=True)
    combinations = np.stack(np.unravel_index(order, component.costs.shape), axis=1)
    multiplicities = np.diff(np.append(starts, len(order)))
    return _Group(component.scope, combinations, different, starts.tolist(), multiplicities.tolist())
