"""Measuring what every block of a supernet's networks takes at every option, where it runs.

Each block is measured at all combinations of the decisions inside of it, its operator, bits and widths, in whole
networks with a clock around each block. As few networks as show every combination are enough, for one network shows an
option of every block: 40 for twenty blocks of four operators and ten widths each, whose inputs and outputs no choice
changes. What is left of a network's time, its first and last layers and what runs between blocks, counts as one number
for all. Sums predict the time of any other network because blocks run one after another and none changes the shapes of
the next.

The networks are those that a user would deploy: in a space with bit widths packed by `spos.deploy`, in any other the
child on the library's kernels, `spos.fuse(net.extract(arch).eval())` in channels last without gradients. There a
ShuffleNet runs as one operation and its blocks are timed one by one; calls that they thereby need are part of their
times, and as they are the same for all options, the one number for all takes them off again.

The least of the times counts: other processes can only add to it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spos.blocks import blocks_of, covering, labels_of, uncovered
from spos.costs import latency
from spos.deployment import convert
from spos.draws import generator
from spos.identity import hash_network
from spos.latency_table import BlockLatency, LatencyTable
from spos.modules import channels_last, fuse
from spos.progress import Progress
from spos.quantized import has_bits
from spos.run_directory import versions
from spos.space import Arch
from spos.supernet import Supernet
from spos_kernels.backends import GPU, resolve_backend

GROUP = 50  # networks that are in memory at a time, and take turns
ROUNDS = 10


def measure_latency(
    net: Supernet, *, batch: int = 1, rounds: int = ROUNDS, progress: Progress | None = None
) -> LatencyTable:
    """Measure every block of a supernet's networks at every option, and attach the table to `net`.

    A block is the outermost module that a choice is made in, see `spos.blocks.blocks_of`. The networks are packed ones
    on the CPU in a space with bit widths; in any other, float ones on the device of `net` and on the backend in force.

    batch: images at a time. rounds: how often each network runs; the least time counts. Networks take turns, so that
    what disturbs the machine disturbs all alike. Weights and modes of `net` stay as they are, and do not matter.

    Raises TypeError or ValueError: no input_shape, a decision that is made in no block, a block that is not called,
    more than 1,000 combinations of options in a block, or networks to run.
    """
    _check(net, batch, rounds)
    blocks = blocks_of(net)
    if missing := uncovered(net.space, blocks):
        raise ValueError(
            f"{missing[0]!r} is made in no block that can be timed: expected a ChoiceBlock, a sliced layer, or a "
            "module that has it as a part"
        )
    archs, images = covering(net.space, blocks), _images(net, batch)
    times: list[dict[tuple[int, ...], list[int]]] = [{} for _ in blocks]
    totals: list[int] = []
    groups = [archs[i : i + GROUP] for i in range(0, len(archs), GROUP)]
    for number, group in enumerate(groups):
        networks = [_Timed(net, arch, [name for name, _ in blocks]) for arch in group]
        whole: list[list[int]] = [[] for _ in group]
        for turn in range(rounds):
            for arch, network, found in zip(group, networks, whole, strict=True):
                network.run(images)  # brings what it needs into the caches; at first, chooses methods
                found.append(network.run(images))
                for (_, scope), known, part in zip(blocks, times, network.run_parts(images), strict=True):
                    known.setdefault(tuple(arch[p] for p in scope), []).append(part)
            if progress:
                progress("latency", number * rounds + turn + 1, len(groups) * rounds, {})
        totals += map(min, whole)
    measured = []
    for (name, scope), known in zip(blocks, times, strict=True):
        by_labels = {labels_of(net.space, scope, key): known[key] for key in sorted(known)}
        nanoseconds = {labels: min(values) for labels, values in by_labels.items()}
        spread = {labels: _spread(values) for labels, values in by_labels.items()}
        decisions = tuple(net.space.decisions[p].name for p in scope)
        measured.append(BlockLatency(name, decisions, nanoseconds, spread))
    least = [{key: min(values) for key, values in known.items()} for known in times]
    sums = [sum(t[tuple(a[p] for p in s)] for (_, s), t in zip(blocks, least, strict=True)) for a in archs]
    rest = max(0, int(median(total - parts for total, parts in zip(totals, sums, strict=True))))
    network_hash, shape = hash_network(net.module, net.input_shape), tuple(net.input_shape or ())
    machine = versions() | _runs_on(net)
    return LatencyTable(net.name, network_hash, shape, batch, machine, rest, tuple(measured)).attach(net)


def time_networks(
    net: Supernet, archs: Sequence[Sequence[int]], *, batch: int = 1, rounds: int = ROUNDS
) -> list[float]:
    """Return the least time of each network, whole, in milliseconds, run as `measure_latency` does and in turns."""
    _check(net, batch, rounds)
    images = _images(net, batch)
    least: list[float] = []
    for start in range(0, len(archs), GROUP):
        networks = [_Timed(net, arch, []) for arch in archs[start : start + GROUP]]
        times: list[list[int]] = [[] for _ in networks]
        for _ in range(rounds):
            for network, found in zip(networks, times, strict=True):
                network.run(images)
                found.append(network.run(images))
        least += [min(found) / latency.unit for found in times]
    return least


def other_machine(table: LatencyTable, net: Supernet) -> str:
    """Say in what this machine, as it runs now, differs from the table's; empty where it does not."""
    now = versions() | _runs_on(net)
    names = ("processor", "device", "backend", "isa", "threads")
    return "; ".join(f"{n} {table.machine[n]}, now {now[n]}" for n in names if table.machine.get(n, now[n]) != now[n])


def spread_networks(net: Supernet, count: int, seed: int = 0) -> list[Arch]:
    """Draw random architectures that are wide apart in cost, to compare predictions with.

    Uniform draws of many widths are all of about the mean cost. Here each architecture has a centre of its own among
    the widths, from the narrowest to the widest in equal steps, and every width is drawn uniformly from the options
    within a fifth of them of it; other decisions are drawn uniformly.
    """
    rng = generator(seed, "latency check")
    found = []
    for number in range(count):
        centre, choices = number / max(1, count - 1), list(net.space.sample(rng))
        for position, decision in enumerate(net.space.decisions):
            if decision.kind == "width":
                last = decision.drawn - 1
                near = [i for i in range(last + 1) if abs(i - round(centre * last)) <= decision.drawn / 5]
                choices[position] = near[int(rng.integers(len(near)))]
        found.append(Arch(choices))
    return found


class _Timed:
    """One network as it is deployed, with a clock around each of its blocks."""

    def __init__(self, net: Supernet, arch: Sequence[int], names: Sequence[str]) -> None:
        child = net.extract(arch).eval().requires_grad_(False)
        self._names = names
        if has_bits(net):
            packed = convert(child, names)
            self._network: nn.Module = packed.network
            self._parts = {name: packed.places[name] for name in names if name not in packed.gone}
        else:
            self._network = channels_last(fuse(child))
            self._parts = {}
            for name in names:
                part = child.get_submodule(name)
                if any(part is other for other in self._parts.values()):  # an Identity of several blocks
                    part = copy.copy(part)
                    child.set_submodule(name, part)
                self._parts[name] = part

    def run(self, images: Tensor) -> int:
        start = _now(images)
        with torch.no_grad():
            self._network(images)
        return _now(images) - start

    def run_parts(self, images: Tensor) -> list[int]:
        """Return the time of each block, 0 for one of which nothing is left. Several calls add up."""
        times = dict.fromkeys(self._names, 0)
        called: set[str] = set()

        def clocked(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
            def call(*inputs: Any, **options: Any) -> Any:
                called.add(name)
                start = _now(images)
                result = forward(*inputs, **options)
                times[name] += _now(images) - start
                return result

            return call

        for name, part in self._parts.items():
            part.forward = clocked(name, part.forward)
        try:
            with torch.no_grad():
                self._network(images)
        finally:
            for part in self._parts.values():
                with suppress(AttributeError):
                    del part.forward
        if missing := [name for name in self._parts if name not in called]:
            raise ValueError(f"{missing[0]} is not called in the network: expected blocks that run at each call")
        return list(times.values())


def _now(images: Tensor) -> int:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter_ns()


def _runs_on(net: Supernet) -> dict[str, str]:
    images = _images(net, 1)
    device = torch.cuda.get_device_name(images.device) if images.is_cuda else str(images.device)
    return {"device": device, "backend": "cpu" if has_bits(net) else resolve_backend(images, ("cpu", *GPU))}


def _check(net: Supernet, batch: int, rounds: int) -> None:
    if not isinstance(net, Supernet):
        raise TypeError(f"net is a {type(net).__name__}: expected a spos.Supernet")
    if net.input_shape is None:
        raise ValueError("input_shape is unknown: pass Supernet(module, input_shape=(channels, height, width))")
    for name, value in (("batch", batch), ("rounds", rounds)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} = {value!r}: expected a positive integer")


def _images(net: Supernet, batch: int) -> Tensor:
    pixels = torch.from_numpy(
        generator(0, "latency images").standard_normal((batch, *(net.input_shape or ())), dtype=np.float32)
    )
    weight = next(net.parameters(), pixels)
    if not has_bits(net):
        pixels = pixels.to(weight)
    return pixels.contiguous(memory_format=torch.channels_last) if pixels.ndim == 4 else pixels


def _spread(times: Sequence[int]) -> float:
    if len(times) < 2:
        return 0.0
    low, middle, high = quantiles(times, n=4)
    return round((high - low) / max(middle, 1), 4)
