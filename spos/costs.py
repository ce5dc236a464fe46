"""Costs of an architecture, counted and measured, and constraints on them.

`spos.flops(net, arch)`, `spos.params(net, arch)` and `spos.bitops(net, arch)` count one path; `spos.flops <= 330e6` is
a constraint. FLOPs are multiply-accumulates of convolutions, matrix products and attention for one image, as in arXiv
1904.00420 and most of the field (recurrent layers are not counted); parameters are trainable weights on the path. Bit
operations are the sum of MACs · w_bits · a_bits over the quantized layers, in units of 2³⁰, the "G" in which they are
published: ResNet-18 at 2 bits has 6.32. Layers in full precision, such as the first and the last, count nothing. Counts
are exact integers; in that unit they are floats without rounding, because it is a power of two. Latencies, in
milliseconds, are sums of measured times: `spos.measure_latency` gives them to a supernet.

`spos.peak_memory(net, arch)` is the most bytes of activations that there are at one time while one image goes through
the child in eval mode, in the dtype of the weights; N images take N times as many. `spos.activation_memory` says what
counts. It is the largest of what each block comes to, not a sum.

A supernet is measured once for each option, not once for each architecture: the costs of the options on a path, plus
those of what every path shares, add up as long as the options of each block turn the same input shape into the same
output shape, and what a sliced layer costs goes with the elements of its slice, and with its bits. That is checked on
the way; where it fails, each architecture is measured by itself instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING

from numpy.random import Generator

from spos.activation_memory import PeakTable, count_peak_memory
from spos.budget_sampling import BudgetSampler
from spos.cost_table import CostTable
from spos.draws import generator
from spos.measurement import (
    BITOPS_UNIT,
    Measurement,
    count_bitops,
    count_flops,
    measure_bitops,
    measure_flops,
    measure_params,
)
from spos.space import Arch
from spos.supernet import Supernet

if TYPE_CHECKING:
    from spos.latency_table import LatencyTable

__all__ = [
    "Constraint",
    "Cost",
    "Profile",
    "Share",
    "UnsatisfiableError",
    "bitops",
    "count_bitops",
    "count_flops",
    "count_peak_memory",
    "feasible",
    "flops",
    "latency",
    "params",
    "peak_memory",
    "profile",
]


@dataclass(frozen=True)
class Constraint:
    """A bound on a cost: built by `spos.flops <= 330e6` or `spos.params >= 2e6`."""

    cost: Cost
    upper: bool
    bound: float

    def __bool__(self) -> bool:
        raise TypeError(
            "a constraint has no truth value: a chained comparison such as 1e6 <= spos.flops <= 2e6 must be written "
            "as two, [spos.flops >= 1e6, spos.flops <= 2e6]"
        )

    def allows(self, value: float) -> bool:
        """Say whether a cost of `value` meets the bound."""
        return value <= self.bound if self.upper else value >= self.bound

    def __str__(self) -> str:
        return f"{self.cost.name} {'<=' if self.upper else '>='} {self.bound:.15g}"


class Cost:
    """A cost: call it with (net, arch) for the value, compare it with a number for a constraint.

    Values and bounds are whole numbers divided by `unit`: integers where that is 1, floats otherwise.
    """

    def __init__(self, name: str, measure: Callable[[Supernet, Arch], Measurement], unit: int = 1) -> None:
        self.name = name
        self.measure = measure
        self.unit = unit

    def __call__(self, net: Supernet, arch: Sequence[int]) -> int | float:
        """Return the cost of `arch`."""
        return self.value(self.table(net)(arch))

    def value(self, count: int) -> int | float:
        """Return a count of the table in the unit of the cost."""
        return count if self.unit == 1 else count / self.unit

    def range(self, net: Supernet) -> tuple[int | float, int | float] | None:
        """Return the lowest and highest value over what the space offers, None where it is not known."""
        counts = self.table(net).range()
        return None if counts is None else (self.value(counts[0]), self.value(counts[1]))

    def __le__(self, bound: float) -> Constraint:
        return Constraint(self, True, _bound(self.name, bound))

    def __ge__(self, bound: float) -> Constraint:
        return Constraint(self, False, _bound(self.name, bound))

    def __repr__(self) -> str:
        return f"spos.{self.name}"

    def table(self, net: Supernet) -> CostTable:
        """Return the table of a supernet, measured at first use and kept with it."""
        if not isinstance(net, Supernet):
            raise TypeError(f"net is a {type(net).__name__}: expected a spos.Supernet")
        cache: dict[object, CostTable] = net.__dict__.setdefault("_cost_tables", {})
        key = (self.name, net.input_shape, tuple((p.requires_grad, p.dtype) for p in net.parameters()))
        if key not in cache:
            cache[key] = self._make(net)
        return cache[key]

    def _make(self, net: Supernet) -> CostTable:
        return CostTable.of(net, self.measure)


def _bound(name: str, bound: float) -> float:
    if isinstance(bound, bool) or not isinstance(bound, Real) or not bound == bound:
        raise TypeError(f"{name} compared with {bound!r}: expected a number")
    return float(bound)


flops = Cost("flops", measure_flops)
params = Cost("params", measure_params)
bitops = Cost("bitops", measure_bitops, BITOPS_UNIT)


def _not_counted(net: Supernet, arch: Arch) -> Measurement:
    raise ValueError("this cost is no count of parts")


class _MeasuredCost(Cost):
    """A cost whose table was measured beforehand, on the machine that counts, and given to the supernet."""

    def __init__(self, name: str, unit: int) -> None:
        super().__init__(name, _not_counted, unit)
        self._key = f"_{name}_table"

    def table(self, net: Supernet) -> CostTable:
        if not isinstance(net, Supernet):
            raise TypeError(f"net is a {type(net).__name__}: expected a spos.Supernet")
        if not self.known(net):
            raise ValueError(
                f"{net.name} has no table of latencies: expected spos.measure_latency(net), or "
                "spos.load_latency(path).attach(net), before"
            )
        table: CostTable = net.__dict__[self._key]
        return table

    def attach(self, net: Supernet, table: CostTable) -> None:
        """Make `table` the supernet's."""
        net.__dict__[self._key] = table

    def known(self, net: Supernet) -> bool:
        """Whether the supernet has a table."""
        return self._key in net.__dict__

    def measured(self, net: Supernet) -> LatencyTable:
        """Return the table that was given to the supernet, with what it holds for."""
        found: LatencyTable = self.table(net).source  # type: ignore[attr-defined]
        return found


latency = _MeasuredCost("latency", 10**6)  # nanoseconds in a millisecond


class _PeakCost(Cost):
    """A cost of which the largest part counts, not the sum."""

    def __init__(self, name: str) -> None:
        super().__init__(name, _not_counted)

    def _make(self, net: Supernet) -> CostTable:
        return PeakTable(net)


peak_memory = _PeakCost("peak_memory")


class UnsatisfiableError(ValueError):
    """No architecture of the space meets the constraints, or none was found that does."""


Ranges = dict[str, tuple[int | float, int | float] | None]


@dataclass(frozen=True)
class Share:
    """A fraction of a space's architectures, within an interval of 95 % confidence; exact where `draws` is 0."""

    fraction: float | None
    interval: tuple[float, float] | None
    draws: int

    @classmethod
    def exact(cls, fraction: float) -> Share:
        """Return a fraction that was counted."""
        return cls(fraction, (fraction, fraction), 0)

    @classmethod
    def of(cls, passed: int, draws: int, within: float = 1.0) -> Share:
        """Return what draws say (Clopper and Pearson), where they are from the fraction `within` of the space."""
        if not draws:
            return cls(None, None, 0)
        from scipy.stats import binomtest

        low, high = binomtest(passed, draws).proportion_ci(0.95, "exact")
        return cls(within * passed / draws, (within * float(low), within * float(high)), draws)


@dataclass(frozen=True)
class Profile:
    """What constraints mean for a space: each cost's reachable (low, high), and the fraction of it that passes.

    feasible_fraction: of all constraints; exact where `draws` is 0 and it is known. interval: that it is within, at
    95 % confidence. acceptance: the fraction of `draws` that passes; a search draws as they are drawn, exactly within
    the bounds on one cost where that can be counted, so that only the other bounds refuse any. each: by cost, the
    fraction that passes its bounds alone.
    """

    ranges: Ranges
    feasible_fraction: float | None
    draws: int
    interval: tuple[float, float] | None = None
    acceptance: float | None = None
    each: Mapping[str, Share] = field(default_factory=dict)


def feasible(net: Supernet, constraints: Sequence[Constraint]) -> Callable[[Arch], bool]:
    """Return the test that an architecture meets every constraint. TypeError names an entry that is no constraint."""
    if isinstance(constraints, Constraint):
        raise TypeError(f"constraints = {constraints}: expected a list, [{constraints}]")
    for constraint in constraints:
        if not isinstance(constraint, Constraint):
            raise TypeError(f"constraints has {constraint!r}: expected entries such as spos.flops <= 330e6")
    tables = [(c, c.cost.table(net)) for c in constraints]
    return lambda arch: all(c.allows(c.cost.value(table(arch))) for c, table in tables)


def sampler(net: Supernet, constraints: Sequence[Constraint]) -> BudgetSampler | None:
    """Return exact uniform draws under the constraints on one cost, the one that leaves the fewest architectures.

    None where there is no constraint, or none on a cost that can be counted that way; see `spos.budget_sampling`.
    """
    return _counted(net, constraints).exact


@dataclass(frozen=True)
class _Counted:
    """`sampler`'s result, how many architectures meet the bounds on each cost that can be counted, and of what."""

    exact: BudgetSampler | None
    counts: Mapping[str, int]
    bounds: Sequence[object]


def _counted(net: Supernet, constraints: Sequence[Constraint]) -> _Counted:
    """Count, or return what was counted last of the same: that may take a minute."""
    costs = {c.cost.name: c.cost for c in constraints}
    bounds = [(c.cost.table(net), c.upper, c.bound) for c in constraints]
    last: _Counted | None = net.__dict__.get("_counted")
    if last is not None and last.bounds == bounds:
        return last
    found, counts = None, {}
    for name, cost in costs.items():
        own = [(c.upper, c.bound * cost.unit) for c in constraints if c.cost is cost]
        high = min((math.floor(max(b, -1)) for upper, b in own if upper and b < math.inf), default=None)
        low = max((math.ceil(b) for upper, b in own if not upper and b > -math.inf), default=None)
        try:
            table, low, high = cost.table(net).counting(low, high)
            one = BudgetSampler(net.space, table, low=low, high=high)
        except ValueError:
            continue
        counts[name] = one.count
        if found is None or one.count < found.count:
            found = one
    net.__dict__["_counted"] = result = _Counted(found, counts, bounds)
    return result


def profile(net: Supernet, constraints: Sequence[Constraint] = (), *, draws: int = 2000, seed: int = 0) -> Profile:
    """Say, before anything runs, what can be reached: raises UnsatisfiableError, with the range, for a bound outside
    it, and for bounds that no architecture lies within.

    The fraction is exact for constraints on one cost, where that can be counted. Otherwise it is an estimate from
    `draws` architectures, drawn uniformly within one of the costs where possible; None for no draws. Of costs that
    cannot be counted, the fraction that passes their bounds alone is estimated from as many uniform draws.
    """
    ranges, exact = reachable(net, constraints)
    counts, size = _counted(net, constraints).counts, net.space.size()
    each = {name: Share.exact(count / size) for name, count in counts.items()}
    for name in ranges:
        if name not in each:
            own = [c for c in constraints if c.cost.name == name]
            each[name] = _estimate(net, own, net.space.sample, draws, generator(seed, f"profile {name}"), 1.0)
    if len(ranges) <= 1:
        whole = next(iter(each.values()), Share.exact(1.0))
    else:
        draw, within = (net.space.sample, 1.0) if exact is None else (exact.sample, exact.count / size)
        whole = _estimate(net, constraints, draw, draws, generator(seed, "profile"), within)
    drawn_from = 1.0 if exact is None else exact.count / size
    acceptance = None if whole.fraction is None else whole.fraction / drawn_from
    return Profile(ranges, whole.fraction, whole.draws, whole.interval, acceptance, each)


def _estimate(
    net: Supernet,
    constraints: Sequence[Constraint],
    draw: Callable[[Generator], Arch],
    draws: int,
    rng: Generator,
    within: float,
) -> Share:
    allowed = feasible(net, constraints)
    return Share.of(sum(allowed(draw(rng)) for _ in range(draws)), draws, within)


def reachable(net: Supernet, constraints: Sequence[Constraint]) -> tuple[Ranges, BudgetSampler | None]:
    """Return each cost's (low, high), and `sampler`'s result. UnsatisfiableError as `profile` raises it."""
    feasible(net, constraints)  # which checks them
    ranges: Ranges = {}
    for constraint in constraints:
        both = ranges[constraint.cost.name] = constraint.cost.range(net)
        if both is not None and not constraint.allows(both[0] if constraint.upper else both[1]):
            raise UnsatisfiableError(
                f"{constraint} cannot be met: {net.name} reaches {constraint.cost.name} from {both[0]:,} to {both[1]:,}"
            )
    exact = sampler(net, constraints)
    if exact is not None and exact.count == 0:
        reach = ", ".join(f"{name} from {r[0]:,} to {r[1]:,}" for name, r in ranges.items() if r)
        bounds = " and ".join(sorted(map(str, constraints)))
        raise UnsatisfiableError(f"{bounds}: no architecture lies within, though {net.name} reaches {reach}")
    return ranges, exact
