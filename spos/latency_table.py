"""The time of every block of a packed network at every option, measured where it runs; a network's is their sum.

Each block of a supernet with bit widths is measured at all combinations of its decisions, its bits and its width,
inside of whole networks: extracted, packed by `spos.deploy`, and run with a clock around each block. As few networks as
show every combination are enough, for one network shows an option of every block. What is left of a network's time, its
first and last layers, counts as one number for all. Sums predict the time of any other network because blocks run one
after another and none changes the shapes of the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spos.atomic_files import write_json
from spos.choices import Choice, ChoiceBlock
from spos.cost_table import CostTable
from spos.costs import latency
from spos.deployment import deploy
from spos.draws import generator
from spos.progress import Progress
from spos.quantized import SlicedQuantizedConv2d, has_bits
from spos.run_directory import RunDirectoryError, read_json_object, versions
from spos.space import Arch, SearchSpace
from spos.supernet import Supernet
from spos_kernels import PackedBlock, PackedConv2d, PackedNetwork

SCHEMA = 1
MOST_NETWORKS = 1000


@dataclass(frozen=True)
class BlockLatency:
    """A block's name, the names of the decisions inside of it, and by their options' labels, joined by a space, the
    median time in nanoseconds and the quartiles' distance from each other, relative to it.
    """

    name: str
    decisions: tuple[str, ...]
    nanoseconds: Mapping[str, int]
    spread: Mapping[str, float]


@dataclass(frozen=True)
class LatencyTable:
    """Latencies of the networks of a search space, for `batch` images of `input_shape` at a time.

    rest: nanoseconds of what is in no block. machine: versions, processor, instruction set and threads they hold for.
    """

    space: str
    fingerprint: str
    input_shape: tuple[int, ...]
    batch: int
    machine: Mapping[str, Any]
    rest: int
    blocks: tuple[BlockLatency, ...]

    def attach(self, net: Supernet) -> LatencyTable:
        """Make this what `spos.latency` sums for `net`, and return it. ValueError for a table of another space."""
        if not isinstance(net, Supernet):
            raise TypeError(f"net is a {type(net).__name__}: expected a spos.Supernet")
        if (net.space.fingerprint(), net.input_shape) != (self.fingerprint, self.input_shape):
            raise ValueError(
                f"the table is of {self.space} for images of {list(self.input_shape)}: expected one of {net.name} with "
                f"the same options, for {list(net.input_shape or ())}"
            )
        latency.attach(net, _Sums(net.space, self))
        return self

    def save(self, path: str | Path) -> None:
        """Write the table as JSON, atomically."""
        write_json(Path(path), {"schema": SCHEMA} | asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read what `save` wrote. FileNotFoundError, or RunDirectoryError, a ValueError, for a damaged file."""
        content = read_json_object(Path(path))
        if content.pop("schema", None) != SCHEMA:
            raise RunDirectoryError(f"{path} is no table of latencies of schema {SCHEMA}")
        try:
            blocks = tuple(_read_block(block) for block in content.pop("blocks"))
            shape = tuple(_count(n) for n in content.pop("input_shape"))
            rest, batch = _count(content.pop("rest")), _count(content.pop("batch"))
            return cls(**content, input_shape=shape, batch=batch, rest=rest, blocks=blocks)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise RunDirectoryError(f"{path} is damaged: {error}") from None


class _Sums(CostTable):
    """A table of latencies as a cost. Options that were not measured have none."""

    def __init__(self, space: SearchSpace, table: LatencyTable) -> None:
        super().__init__(space)
        self.add({}, table.rest)
        names = [decision.name for decision in space.decisions]
        self._blocks = []
        for block in table.blocks:
            try:
                scope = tuple(names.index(name) for name in block.decisions)
                options = [space.decisions[p].options for p in scope]
                for key in product(*(range(space.decisions[p].drawn) for p in scope)):
                    label = " ".join(o[i] for o, i in zip(options, key, strict=True))
                    self.add(dict(zip(scope, key, strict=True)), block.nanoseconds[label])
            except (KeyError, ValueError) as error:
                raise ValueError(f"the table does not fit the space: {block.name}: {error}") from None
            self._blocks.append((block, scope))

    def __call__(self, arch: Sequence[int]) -> int:
        checked = self._space.arch(arch)
        for block, scope in self._blocks:
            decisions = [self._space.decisions[p] for p in scope]
            if any(checked[p] >= d.drawn for p, d in zip(scope, decisions, strict=True)):
                taken = " ".join(d.options[checked[p]] for p, d in zip(scope, decisions, strict=True))
                raise ValueError(f"{block.name} was not measured at {taken}: expected options that a search draws from")
        return super().__call__(checked)


def measure_latency(
    net: Supernet, *, batch: int = 1, rounds: int = 30, progress: Progress | None = None
) -> LatencyTable:
    """Measure every block of a supernet with bit widths, packed, at every option, and attach the table to `net`.

    batch: images at a time. rounds: how often each network runs; the median counts. Networks take turns, so that what
    disturbs the machine disturbs all alike. Weights and modes of `net` stay as they are, and do not matter.

    Raises TypeError or ValueError: no quantized layer, no input_shape, a block that is not found again in the packed
    network, more than 1,000 networks to run.
    """
    _check(net, batch, rounds)
    blocks = _blocks(net)
    archs = list(_covering(net.space, [scope for _, scope in blocks]))
    times: list[dict[tuple[int, ...], list[int]]] = [{} for _ in blocks]
    rest: list[int] = []
    networks = [_Timed(deploy(net.extract(arch).eval()), [name for name, _ in blocks]) for arch in archs]
    images = _images(net, batch)
    for number in range(rounds):
        for arch, network in zip(archs, networks, strict=True):
            network.run(images)  # brings what it needs into the caches; at first, chooses methods
            total, parts = network.run(images), network.run_parts(images)
            rest.append(total - sum(parts))
            for (_, scope), found, part in zip(blocks, times, parts, strict=True):
                found.setdefault(tuple(arch[p] for p in scope), []).append(part)
        if progress:
            progress("latency", number + 1, rounds, {"networks": len(networks)})
    measured = []
    for (name, scope), found in zip(blocks, times, strict=True):
        decisions = [net.space.decisions[p] for p in scope]
        labels = {key: " ".join(d.options[i] for d, i in zip(decisions, key, strict=True)) for key in sorted(found)}
        measured.append(
            BlockLatency(
                name,
                tuple(d.name for d in decisions),
                {label: int(median(found[key])) for key, label in labels.items()},
                {label: _spread(found[key]) for key, label in labels.items()},
            )
        )
    shape = tuple(net.input_shape or ())
    table = LatencyTable(
        net.name, net.space.fingerprint(), shape, batch, versions(), max(0, int(median(rest))), tuple(measured)
    )
    return table.attach(net)


def time_network(net: Supernet, arch: Sequence[int], *, batch: int = 1, rounds: int = 30) -> float:
    """Return the median time of one packed network, whole, in milliseconds, as `measure_latency` measures it."""
    _check(net, batch, rounds)
    network, images = _Timed(deploy(net.extract(arch).eval()), []), _images(net, batch)
    network.run(images)
    return median(network.run(images) for _ in range(rounds)) / latency.unit


class _Timed:
    """A packed network with a clock around each of its blocks."""

    def __init__(self, network: PackedNetwork, names: Sequence[str]) -> None:
        self._network = network
        self._parts = [_part(network, name) for name in names]

    def run(self, images: Tensor) -> int:
        start = time.perf_counter_ns()
        self._network(images)
        return time.perf_counter_ns() - start

    def run_parts(self, images: Tensor) -> list[int]:
        """Return the time of each block. A block that is called several times has the sum."""
        times = [0] * len(self._parts)

        def clocked(number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
            def call(*inputs: Any, **options: Any) -> Any:
                start = time.perf_counter_ns()
                result = forward(*inputs, **options)
                times[number] += time.perf_counter_ns() - start
                return result

            return call

        for number, part in enumerate(self._parts):
            part.forward = clocked(number, part.forward)
        try:
            self._network(images)
        finally:
            for part in self._parts:
                del part.forward
        return times


def _part(network: PackedNetwork, name: str) -> nn.Module:
    """Return what became of the module `name` of a child."""
    prefix = f"{name}."
    for module in network.modules():
        layers = [m.layer for m in module.modules() if isinstance(m, PackedConv2d)]
        if isinstance(module, PackedBlock) and layers and all(layer.startswith(prefix) for layer in layers):
            return module
        if isinstance(module, PackedConv2d) and module.layer == name:
            return module
    try:
        return network.network.get_submodule(name)
    except AttributeError:
        raise ValueError(
            f"{name} is not found in the packed network: expected a residual block of the library's spaces, a "
            "quantized convolution, or a module outside of torch.nn.Sequential, which spos.deploy leaves in place"
        ) from None


def _blocks(net: Supernet) -> list[tuple[str, tuple[int, ...]]]:
    """The outermost modules with decisions and quantized layers inside, and the positions of these decisions."""
    found: list[tuple[str, tuple[int, ...]]] = []

    def visit(module: nn.Module, name: str) -> None:
        if isinstance(module, ChoiceBlock) or any(isinstance(m, Choice) for m in module.children()):
            if any(isinstance(m, SlicedQuantizedConv2d) for m in module.modules()):
                scope = sorted({m.position or 0 for m in module.modules() if isinstance(m, Choice)})
                found.append((name, tuple(scope)))
            return
        for label, child in module.named_children():
            visit(child, f"{name}.{label}" if name else label)

    visit(net.module, "")
    return found


def _covering(space: SearchSpace, scopes: Sequence[tuple[int, ...]]) -> Iterator[Arch]:
    """Yield architectures that together show every combination of options in every scope, mixed."""
    rng = generator(0, "latency")
    missing = []
    for scope in scopes:
        keys = list(product(*(range(space.decisions[p].drawn) for p in scope)))
        if len(keys) > MOST_NETWORKS:
            names = ", ".join(space.decisions[p].name for p in scope)
            raise ValueError(f"{names} have {len(keys):,} combinations: expected at most {MOST_NETWORKS:,}")
        missing.append([keys[i] for i in rng.permutation(len(keys))])
    while any(missing):
        taken: dict[int, int] = {}
        for scope, keys in zip(scopes, missing, strict=True):
            fits = (k for k in keys if all(taken.get(p, i) == i for p, i in zip(scope, k, strict=True)))
            taken |= dict(zip(scope, next(fits, ()), strict=False))
        arch = Arch(taken.get(p, 0) for p in range(len(space)))
        for scope, keys in zip(scopes, missing, strict=True):
            shown = tuple(arch[p] for p in scope)
            if shown in keys:
                keys.remove(shown)
        yield arch


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
    return round((high - low) / middle, 4)


def _read_block(block: Mapping[str, Any]) -> BlockLatency:
    nanoseconds = {label: _count(number) for label, number in block["nanoseconds"].items()}
    return BlockLatency(str(block["name"]), tuple(map(str, block["decisions"])), nanoseconds, dict(block["spread"]))


def _count(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError(f"expected whole numbers, got {number!r}")
    return number
