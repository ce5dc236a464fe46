"""Counted costs of an architecture, and constraints on them.

`spos.flops(net, arch)` and `spos.params(net, arch)` count one path; `spos.flops <= 330e6` is a constraint. FLOPs are
multiply-accumulates of convolutions, matrix products and attention for one image, as in arXiv 1904.00420 and most of
the field (recurrent layers are not counted);
parameters are trainable weights on the path.

A supernet is measured once for each option, not once for each architecture: the costs of the options on a path, plus
those of what every path shares, add up as long as the options of each block turn the same input shape into the same
output shape. That is checked on the way; where it fails, each architecture is measured by itself instead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Real

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from spos.choices import ChoiceBlock
from spos.draws import generator
from spos.space import Arch
from spos.supernet import Supernet
from spos_kernels import use_backend

Place = tuple[tuple[int, int], ...]  # options taken from the outside in, each (position in the arch, option index)
Shapes = tuple[tuple[int, ...], ...]


@dataclass
class Measurement:
    """One path's cost by place, () for what every path shares, and the shapes that each choice block took and gave."""

    costs: dict[Place, int] = field(default_factory=lambda: {(): 0})
    shapes: dict[tuple[Place, int], list[Shapes]] = field(default_factory=dict)
    owners: dict[int, Place] = field(default_factory=dict)  # where the weight with this id was counted
    additive: bool = True

    def add(self, place: Place, cost: int) -> None:
        self.costs[place] = self.costs.get(place, 0) + cost


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
    """A counted cost: call it with (net, arch) for the value, compare it with a number for a constraint."""

    def __init__(self, name: str, measure: Callable[[Supernet, Arch], Measurement]) -> None:
        self.name = name
        self.measure = measure

    def __call__(self, net: Supernet, arch: Sequence[int]) -> int:
        """Return the cost of `arch`, exactly."""
        return self.table(net)(arch)

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
        key = (self.name, net.input_shape, tuple(p.requires_grad for p in net.parameters()))
        if key not in cache:
            cache[key] = CostTable(net, self.measure)
        return cache[key]


def _bound(name: str, bound: float) -> float:
    if isinstance(bound, bool) or not isinstance(bound, Real) or not bound == bound:
        raise TypeError(f"{name} compared with {bound!r}: expected a number")
    return float(bound)


class CostTable:
    """The cost of each option in its place among nested choices, and the exact range over all architectures."""

    def __init__(self, net: Supernet, measure: Callable[[Supernet, Arch], Measurement]) -> None:
        self._space = net.space
        self._single: Callable[[Arch], int] = lambda arch: sum(measure(net, arch).costs.values())
        self._places: dict[Place, int] = {}
        self.additive = True
        shapes: dict[tuple[Place, int], list[Shapes]] = {}
        owners: dict[int, Place] = {}
        for arch in _covering(net):
            found = measure(net, arch)
            self.additive &= found.additive
            for weight, owner in found.owners.items():
                self.additive &= owners.setdefault(weight, owner) == owner
            for place, cost in found.costs.items():
                self.additive &= self._places.setdefault(place, cost) == cost
            for block, calls in found.shapes.items():
                self.additive &= shapes.setdefault(block, calls) == calls

    def __call__(self, arch: Sequence[int]) -> int:
        checked = self._space.arch(arch)
        if not self.additive:
            return self._single(checked)
        taken = set(enumerate(checked))
        return sum(cost for place, cost in self._places.items() if taken.issuperset(place))

    def range(self) -> tuple[int, int] | None:
        """Return the lowest and highest cost over the space; None where costs do not add up, so that it is not known.

        Blocks that share a decision from inside of different branches are taken to be free of each other, which can
        only widen the range.
        """
        if not self.additive:
            return None
        return self._extreme((), min), self._extreme((), max)

    def _extreme(self, around: Place, choose: Callable[[Collection[int]], int]) -> int:
        options: dict[int, dict[int, int]] = {}
        for place in self._places:
            if len(place) == len(around) + 1 and place[:-1] == around:
                position, index = place[-1]
                options.setdefault(position, {})[index] = self._extreme(place, choose)
        return self._places[around] + sum(choose(costs.values()) for costs in options.values())


def _covering(net: Supernet) -> Iterator[Arch]:
    """Yield architectures that together run every branch, also those inside of branches."""
    blocks = [m for m in net.modules() if isinstance(m, ChoiceBlock)]
    missing = {(id(block), index) for block in blocks for index in range(len(block.labels))}
    while missing:
        choices: dict[int, int] = {}
        _pick(net.module, choices, missing)
        arch = Arch(choices.get(position, 0) for position in range(len(net.space)))
        for module in net.path_modules(arch):
            if isinstance(module, ChoiceBlock):
                missing.discard((id(module), arch[module.position or 0]))
        yield arch


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


def _measure_flops(net: Supernet, arch: Arch) -> Measurement:
    """Run one image along `arch` and attribute each multiply-accumulate to the innermost branch that did it."""
    if net.input_shape is None:
        raise ValueError("input_shape is unknown: pass Supernet(module, input_shape=(channels, height, width))")
    found = Measurement()
    stack: list[tuple[int, int]] = []
    started: list[int] = []
    counter = FlopCounterMode(display=False)

    def enter(option: tuple[int, int]) -> Callable[..., None]:
        def hook(*_: object) -> None:
            stack.append(option)
            started.append(counter.get_total_flops())

        return hook

    def leave(_: object, inputs: object, keywords: object, output: object) -> None:
        place, cost = tuple(stack), counter.get_total_flops() - started.pop()
        position, _option = stack.pop()
        found.add(place, cost // 2)  # a multiply-accumulate is two of the counter's operations
        leaves = tree_leaves((inputs, keywords, output))
        shapes = tuple(tuple(t.shape) for t in leaves if isinstance(t, torch.Tensor))
        found.shapes.setdefault((place[:-1], position), []).append(shapes)
        if started:
            started[-1] += cost

    handles = []
    for module in net.path_modules(arch):
        if isinstance(module, ChoiceBlock):
            position = module.position or 0
            handles.append(module.register_forward_pre_hook(enter((position, arch[position]))))
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        with net.path(arch):
            _run_once(net.module, net.input_shape, counter)
    finally:
        for handle in handles:
            handle.remove()
    found.add((), counter.get_total_flops() // 2 - sum(found.costs.values()))
    return found


def _run_once(module: nn.Module, input_shape: Sequence[int], counter: FlopCounterMode) -> None:
    """Run one image of zeros through a module in eval mode, under `counter`, and restore its modes."""
    weight = next(module.parameters(), torch.empty(0))
    image = torch.zeros(1, *input_shape, device=weight.device, dtype=weight.dtype)
    modes = [(m, m.training) for m in module.modules()]
    fused_attention = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know fused attention
        module.eval()
        with torch.no_grad(), use_backend("reference"), sdpa_kernel(SDPBackend.MATH), counter:
            module(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused_attention)
        for layer, training in modes:
            layer.training = training


def count_flops(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Return the multiply-accumulates of a plain module, such as an extracted child, for one image (C, H, W)."""
    counter = FlopCounterMode(display=False)
    _run_once(module, input_shape, counter)
    return int(counter.get_total_flops()) // 2


def _measure_params(net: Supernet, arch: Arch) -> Measurement:
    """Count trainable weights on the path, each under the innermost branch that holds it."""
    found = Measurement()

    def visit(module: nn.Module, place: Place) -> None:
        if isinstance(module, ChoiceBlock):
            position = module.position or 0
            visit(module.chosen(arch), (*place, (position, arch[position])))
            return
        found.add(place, 0)  # a branch without weights is an option too
        for weight in (p for p in module.parameters(recurse=False) if p.requires_grad):
            if id(weight) not in found.owners:
                found.owners[id(weight)] = place
                found.add(place, weight.numel())
            # A weight that several branches share costs once on a path, so their costs do not add up.
            found.additive &= found.owners[id(weight)] == place
        for child in module.children():
            visit(child, place)

    visit(net.module, ())
    return found


flops = Cost("flops", _measure_flops)
params = Cost("params", _measure_params)


class UnsatisfiableError(ValueError):
    """No architecture of the space meets the constraints, or none was found that does."""


@dataclass(frozen=True)
class Profile:
    """What constraints mean for a space: each one's reachable (low, high), and the fraction of draws that pass."""

    ranges: dict[str, tuple[int, int] | None]
    feasible_fraction: float | None
    draws: int


def feasible(net: Supernet, constraints: Sequence[Constraint]) -> Callable[[Arch], bool]:
    """Return the test that an architecture meets every constraint. TypeError names an entry that is no constraint."""
    if isinstance(constraints, Constraint):
        raise TypeError(f"constraints = {constraints}: expected a list, [{constraints}]")
    for constraint in constraints:
        if not isinstance(constraint, Constraint):
            raise TypeError(f"constraints has {constraint!r}: expected entries such as spos.flops <= 330e6")
    tables = [(c, c.cost.table(net)) for c in constraints]
    return lambda arch: all(c.allows(table(arch)) for c, table in tables)


def profile(net: Supernet, constraints: Sequence[Constraint] = (), *, draws: int = 2000, seed: int = 0) -> Profile:
    """Say, before anything runs, what can be reached: raises UnsatisfiableError, with the range, for a bound outside
    it.

    The fraction is an estimate from `draws` uniform architectures, None for no draws.
    """
    allowed = feasible(net, constraints)
    ranges: dict[str, tuple[int, int] | None] = {}
    for constraint in constraints:
        reachable = constraint.cost.table(net).range()
        ranges[constraint.cost.name] = reachable
        if reachable is not None and not constraint.allows(reachable[0] if constraint.upper else reachable[1]):
            raise UnsatisfiableError(
                f"{constraint} cannot be met: {net.name} reaches {constraint.cost.name} "
                f"from {reachable[0]:,} to {reachable[1]:,}"
            )
    rng = generator(seed, "profile")
    passed = sum(allowed(net.space.sample(rng)) for _ in range(draws))
    return Profile(ranges, passed / draws if draws else None, draws)
