"""What every block of a supernet's networks takes at every option, as measured; a network's latency is the sum.

`spos.measure_latency` makes the table, `spos.latency` sums it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spos.blocks import Labels, blocks_of, check_measured, labels_of, options_of
from spos.cost_table import CostTable
from spos.costs import latency
from spos.identity import hash_network
from spos.supernet import Supernet


@dataclass(frozen=True)
class BlockLatency:
    """A block's name, those of the decisions inside of it, and by the labels of their options the least time in
    nanoseconds and how far the quartiles of its times are from each other, relative to their median.
    """

    name: str
    decisions: tuple[str, ...]
    nanoseconds: Mapping[Labels, int]
    spread: Mapping[Labels, float]


@dataclass(frozen=True)
class LatencyTable:
    """Latencies of the networks of a search space, for `batch` images of `input_shape` at a time.

    network: a hash of the supernet's layers and their sizes. rest: nanoseconds of what is in no block. machine: the
    versions, processor, instruction set, threads, device and backend that they hold for.
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
    """A table of latencies, `source`, as a cost. Options that were not measured have none."""

    def __init__(self, net: Supernet, table: LatencyTable) -> None:
        super().__init__(net.space)
        self.add({}, table.rest)
        self._blocks = blocks_of(net)
        self.source = table
        decisions = net.space.decisions
        expected = [(name, tuple(decisions[p].name for p in scope)) for name, scope in self._blocks]
        if expected != [(block.name, block.decisions) for block in table.blocks]:
            raise ValueError(f"the table of latencies has other blocks than {net.name}: expected {_named(expected)}")
        for block, (_, scope) in zip(table.blocks, self._blocks, strict=True):
            keys = {labels_of(net.space, scope, key): key for key in options_of(net.space, scope)}
            if keys.keys() != block.nanoseconds.keys():
                raise ValueError(f"the table of latencies has other options of {block.name} than {net.name}")
            for labels, key in keys.items():
                self.add(dict(zip(scope, key, strict=True)), block.nanoseconds[labels])

    def __call__(self, arch: Sequence[int]) -> int:
        checked = self._space.arch(arch)
        check_measured(self._space, self._blocks, checked)
        return super().__call__(checked)


def _named(blocks: Sequence[tuple[str, tuple[str, ...]]]) -> str:
    return ", ".join(name for name, _ in blocks[:5]) + (f" and {len(blocks) - 5} more" if len(blocks) > 5 else "")
