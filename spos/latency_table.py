"""The time of every block of a packed network at every option, measured where it runs; a network's is their sum.

Each block of a supernet with bit widths is measured at all combinations of the decisions inside of it, its bits and its
width, in whole networks: extracted, packed by `spos.deploy`, and run with a clock around each block. As few networks as
show every combination are enough, for one network shows an option of every block. What is left of a network's time, its
first and last layers, counts as one number for all. Sums predict the time of any other network because blocks run one
after another and none changes the shapes of the next.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spos.choices import Choice, ChoiceBlock
from spos.cost_table import CostTable
from spos.costs import latency
from spos.deployment import Deployed, convert
from spos.draws import generator
from spos.identity import hash_network
from spos.progress import Progress
from spos.quantized import has_bits
from spos.run_directory import versions
from spos.sliced import SlicedModule
from spos.space import Arch, SearchSpace
from spos.supernet import Supernet

MOST_NETWORKS = 1000
Labels = tuple[str, ...]


@dataclass(frozen=True)
class BlockLatency:
    """A block's name, those of the decisions inside of it, and by the labels of their options the median time in
    nanoseconds and the distance of the quartiles from each other, relative to it.
    """

    name: str
    decisions: tuple[str, ...]
    nanoseconds: Mapping[Labels, int]
    spread: Mapping[Labels, float]


@dataclass(frozen=True)
class LatencyTable:
    """Latencies of the networks of a search space, for `batch` images of `input_shape` at a time.

    network: a hash of the supernet's layers and their sizes. rest: nanoseconds of what is in no block. machine:
    versions, processor, instruction set and threads that they hold for.
    """

    space: str
    network: str
    input_shape: tuple[int, ...]
    batch: int
    machine: Mapping[str, Any]
    rest: int
    blocks: tuple[BlockLatency, ...]

    def attach(self, net: Supernet) -> LatencyTable:
        """Make this what `spos.latency` sums for `net`, and return it. ValueError for a table of another network, and
        for one that does not have every block at every option.
        """
        if not isinstance(net, Supernet):
            raise TypeError(f"net is a {type(net).__name__}: expected a spos.Supernet")
        if self.network != hash_network(net.module, net.input_shape):
            raise ValueError(
                f"the table of latencies is of another network, {self.space} for images of {list(self.input_shape)}: "
                f"expected one of this {net.name}, whose layers, sizes and options are the same"
            )
        latency.attach(net, _Sums(net, self))
        return self


class _Sums(CostTable):
    """A table of latencies as a cost. Options that were not measured have none."""

    def __init__(self, net: Supernet, table: LatencyTable) -> None:
        super().__init__(net.space)
        self.add({}, table.rest)
        self._blocks = _blocks(net)
        decisions = net.space.decisions
        expected = [(name, tuple(decisions[p].name for p in scope)) for name, scope in self._blocks]
        if expected != [(block.name, block.decisions) for block in table.blocks]:
            raise ValueError(f"the table of latencies has other blocks than {net.name}: expected {_named(expected)}")
        for block, (_, scope) in zip(table.blocks, self._blocks, strict=True):
            keys = {_labels(net.space, scope, key): key for key in _options(net.space, scope)}
            if keys.keys() != block.nanoseconds.keys():
                raise ValueError(f"the table of latencies has other options of {block.name} than {net.name}")
            for labels, key in keys.items():
                self.add(dict(zip(scope, key, strict=True)), block.nanoseconds[labels])

    def __call__(self, arch: Sequence[int]) -> int:
        checked = self._space.arch(arch)
        for name, scope in self._blocks:
            if any(checked[p] >= self._space.decisions[p].drawn for p in scope):
                taken = " ".join(_labels(self._space, scope, [checked[p] for p in scope]))
                raise ValueError(f"{name} was not measured at {taken}: expected options that a search draws from")
        return super().__call__(checked)


def measure_latency(
    net: Supernet, *, batch: int = 1, rounds: int = 30, progress: Progress | None = None
) -> LatencyTable:
    """Measure every block of a supernet with bit widths, packed, at every option, and attach the table to `net`.

    A block is the outermost module that a choice is made in: a ChoiceBlock, a sliced layer, or a module of which a
    BitsChoice or a WidthChoice is a part.

    batch: images at a time. rounds: how often each network runs; the median counts. Networks take turns, so that what
    disturbs the machine disturbs all alike. Weights and modes of `net` stay as they are, and do not matter.

    Raises TypeError or ValueError: no quantized layer, no input_shape, a decision that is made in no block, a block
    that is not called, more than 1,000 combinations of options in a block, or networks to run.
    """
    _check(net, batch, rounds)
    blocks = _blocks(net)
    archs = _covering(net.space, blocks)
    times: list[dict[tuple[int, ...], list[int]]] = [{} for _ in blocks]
    rest: list[int] = []
    names = [name for name, _ in blocks]
    networks = [_Timed(convert(net.extract(arch).eval(), names), names) for arch in archs]
    images = _images(net, batch)
    for number in range(rounds):
        for arch, network in zip(archs, networks, strict=True):
            network.run(images)  # brings what it needs into the caches; at first, chooses methods
            total, parts = network.run(images), network.run_parts(images)
            rest.append(total - sum(parts))
            for (_, scope), found, part in zip(blocks, times, parts, strict=True):
                found.setdefault(tuple(arch[p] for p in scope), []).append(part)
        if progress:
            progress("latency", number + 1, rounds, {})
    measured = []
    for (name, scope), found in zip(blocks, times, strict=True):
        by_labels = {_labels(net.space, scope, key): found[key] for key in sorted(found)}
        nanoseconds = {labels: int(median(values)) for labels, values in by_labels.items()}
        spread = {labels: _spread(values) for labels, values in by_labels.items()}
        decisions = tuple(net.space.decisions[p].name for p in scope)
        measured.append(BlockLatency(name, decisions, nanoseconds, spread))
    network_hash, shape = hash_network(net.module, net.input_shape), tuple(net.input_shape or ())
    others = max(0, int(median(rest)))
    return LatencyTable(net.name, network_hash, shape, batch, versions(), others, tuple(measured)).attach(net)


def time_networks(net: Supernet, archs: Sequence[Sequence[int]], *, batch: int = 1, rounds: int = 30) -> list[float]:
    """Return the median time of each packed network, whole, in milliseconds. They take turns, as elsewhere."""
    _check(net, batch, rounds)
    networks, images = [_Timed(convert(net.extract(arch).eval()), []) for arch in archs], _images(net, batch)
    times: list[list[int]] = [[] for _ in networks]
    for _ in range(rounds):
        for network, found in zip(networks, times, strict=True):
            network.run(images)
            found.append(network.run(images))
    return [median(found) / latency.unit for found in times]


class _Timed:
    """A packed network with a clock around each of its blocks."""

    def __init__(self, deployed: Deployed, names: Sequence[str]) -> None:
        self._network = deployed.network
        self._names = names
        self._parts = {name: deployed.places[name] for name in names if name not in deployed.gone}

    def run(self, images: Tensor) -> int:
        start = time.perf_counter_ns()
        self._network(images)
        return time.perf_counter_ns() - start

    def run_parts(self, images: Tensor) -> list[int]:
        """Return the time of each block, 0 for one of which nothing is left. Several calls add up."""
        times = dict.fromkeys(self._names, 0)
        called: set[str] = set()

        def clocked(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
            def call(*inputs: Any, **options: Any) -> Any:
                called.add(name)
                start = time.perf_counter_ns()
                result = forward(*inputs, **options)
                times[name] += time.perf_counter_ns() - start
                return result

            return call

        for name, part in self._parts.items():
            part.forward = clocked(name, part.forward)
        try:
            self._network(images)
        finally:
            for part in self._parts.values():
                del part.forward
        if missing := [name for name in self._parts if name not in called]:
            raise ValueError(f"{missing[0]} is not called in the packed network: expected blocks that run at each call")
        return list(times.values())


def _blocks(net: Supernet) -> list[tuple[str, tuple[int, ...]]]:
    """The outermost modules that choices are made in, and the positions of the decisions inside. They cover all."""
    found: list[tuple[str, tuple[int, ...]]] = []
    seen: set[int] = set()

    def visit(module: nn.Module, name: str) -> None:
        if id(module) in seen or (isinstance(module, Choice) and not isinstance(module, ChoiceBlock)):
            return
        seen.add(id(module))
        own = [m for m in module.children() if isinstance(m, Choice) and not isinstance(m, ChoiceBlock)]
        scope = sorted({m.position or 0 for m in module.modules() if isinstance(m, Choice)})
        if scope and name and (own or isinstance(module, ChoiceBlock | SlicedModule)):
            if not isinstance(module, _BatchNorm):  # most go into the layer before them; what others take is little
                found.append((name, tuple(scope)))
            return
        for label, child in module.named_children():
            visit(child, f"{name}.{label}" if name else label)

    visit(net.module, "")
    covered = {position for _, scope in found for position in scope}
    for position, decision in enumerate(net.space.decisions):
        if position not in covered:
            raise ValueError(f"{decision.name!r} is made in no block that can be timed: expected a ChoiceBlock, a "
                             "sliced layer, or a module that has it as a part")  # fmt: skip
    return found


def _covering(space: SearchSpace, blocks: Sequence[tuple[str, tuple[int, ...]]]) -> list[Arch]:
    """Return architectures that together show every combination of options in every block, mixed."""
    rng = generator(0, "latency")
    missing = []
    for name, scope in blocks:
        count = math.prod(space.decisions[p].drawn for p in scope)
        if count > MOST_NETWORKS:
            raise ValueError(f"{name} has {count:,} combinations of options: expected at most {MOST_NETWORKS:,}")
        keys = list(_options(space, scope))
        missing.append([keys[i] for i in rng.permutation(len(keys))])
    archs: list[Arch] = []
    while any(missing):
        taken: dict[int, int] = {}
        for (_, scope), keys in zip(blocks, missing, strict=True):
            fits = (k for k in keys if all(taken.get(p, i) == i for p, i in zip(scope, k, strict=True)))
            taken |= dict(zip(scope, next(fits, ()), strict=False))
        archs.append(Arch(taken.get(p, 0) for p in range(len(space))))
        if len(archs) > MOST_NETWORKS:
            raise ValueError(
                f"options meet in more than {MOST_NETWORKS:,} networks: expected fewer decisions in blocks"
            )
        for (_, scope), keys in zip(blocks, missing, strict=True):
            shown = tuple(archs[-1][p] for p in scope)
            if shown in keys:
                keys.remove(shown)
    return archs


def _options(space: SearchSpace, scope: Sequence[int]) -> Iterator[tuple[int, ...]]:
    return product(*(range(space.decisions[p].drawn) for p in scope))


def _labels(space: SearchSpace, scope: Sequence[int], key: Sequence[int]) -> Labels:
    return tuple(space.decisions[p].options[i] for p, i in zip(scope, key, strict=True))


def _named(blocks: Sequence[tuple[str, tuple[str, ...]]]) -> str:
    return ", ".join(name for name, _ in blocks[:5]) + (f" and {len(blocks) - 5} more" if len(blocks) > 5 else "")


def _check(net: Supernet, batch: int, rounds: int) -> None:
    if not isinstance(net, Supernet):
        raise TypeError(f"net is a {type(net).__name__}: expected a spos.Supernet")
    if not has_bits(net):
        raise ValueError(f"{net.name} has no quantized layer: latencies are measured of packed networks")
    if net.input_shape is None:
        raise ValueError("input_shape is unknown: pass Supernet(module, input_shape=(channels, height, width))")
    for name, value in (("batch", batch), ("rounds", rounds)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} = {value!r}: expected a positive integer")


def _images(net: Supernet, batch: int) -> Tensor:
    pixels = generator(0, "latency images").standard_normal((batch, *(net.input_shape or ())), dtype=np.float32)
    return torch.from_numpy(pixels).contiguous(memory_format=torch.channels_last)


def _spread(times: Sequence[int]) -> float:
    if len(times) < 2:
        return 0.0
    low, middle, high = quantiles(times, n=4)
    return round((high - low) / max(middle, 1), 4)
