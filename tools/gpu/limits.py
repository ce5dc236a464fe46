"""The least time that a launch can take on a device, from what the emulator counted.

    memory   sectors that are first touched here, both ways, at the rate of the device's memory
    L2       sectors that instructions ask for, at the rate out of L2, where that is published
    tensor   multiply-adds of mma instructions at the dense rate of their type
    fp32     multiply-adds that the case states, at the rate of fp32
    shared   passes over the banks, one a clock and multiprocessor
    issue    instructions that the emulator counts, and a 32nd of the stated multiply-adds, four a clock and
             multiprocessor; address arithmetic and the like are not counted, so this limit is a low one

The last four are work of multiprocessors, and blocks are not divided: with equal blocks the busiest one has
ceil(blocks / multiprocessors) of them. The launch takes at least as long as the largest of these; launches follow each
other, so an operation takes at least the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peaks import ISSUES_A_CLOCK, MULTIPLY_ADDS, SECTOR, Device

ISSUED = (
    "global_load",
    "global_store",
    "shared_load",
    "shared_store",
    "atomic",
    "shuffle",
    "vote",
    "reduce",
    "match",
    "block_barrier",
    "warp_barrier",
    "cp_async",
    "ldmatrix",
    "dp4a",
)


@dataclass(frozen=True)
class Launch:
    kernel: str  # short name
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    counters: Mapping[str, int]
    multiply_adds: int  # of the floating-point units, as the case states them

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def memory_bytes(self) -> int:
        return SECTOR * (self.counters["sectors_read"] + self.counters["sectors_written"])

    @property
    def l2_bytes(self) -> int:
        return SECTOR * self.counters["global_sectors"]

    @property
    def tensor_multiply_adds(self) -> int:
        return sum(each * self.counters.get(kind, 0) for kind, each in MULTIPLY_ADDS.items())

    @property
    def instructions(self) -> int:
        # Atomics and dp4a are counted one for each thread.
        of_threads = ("atomic", "dp4a")
        counted = sum(self.counters[kind] for kind in ISSUED if kind not in of_threads)
        counted += sum(self.counters[kind] for kind in of_threads) // 32
        return counted + sum(self.counters.get(kind, 0) for kind in MULTIPLY_ADDS) + self.multiply_adds // 32


@dataclass(frozen=True)
class Bound:
    seconds: float
    limiter: str
    waves: float  # blocks of the busiest multiprocessor, as a multiple of the average


def limits(launch: Launch, device: Device) -> dict[str, float]:
    """Seconds that each resource needs at least."""
    busiest = waves(launch, device)
    clocks = device.clock * device.multiprocessors / busiest
    tensor = sum(
        2 * each * launch.counters.get(kind, 0) / device.tensor[kind]
        for kind, each in MULTIPLY_ADDS.items()
        if kind in device.tensor
    )
    found = {
        "memory": launch.memory_bytes / device.memory,
        "tensor": tensor * busiest,
        "fp32": 2 * launch.multiply_adds / device.fp32 * busiest,
        "shared": launch.counters["shared_wavefronts"] / clocks,
        "issue": launch.instructions / ISSUES_A_CLOCK / clocks,
    }
    if device.l2_bytes_a_clock:
        found["L2"] = launch.l2_bytes / (device.l2_bytes_a_clock * device.clock)
    return found


def waves(launch: Launch, device: Device) -> float:
    return -(-launch.blocks // device.multiprocessors) * device.multiprocessors / launch.blocks


def bound(launch: Launch, device: Device) -> Bound:
    found = limits(launch, device)
    limiter = max(found, key=lambda name: found[name])
    return Bound(found[limiter], limiter, waves(launch, device))


def read_launch(noted: Mapping[str, Any], short_name: str, multiply_adds: int) -> Launch:
    """Of one entry of the emulated module's take_launches()."""
    x, y, z = noted["block"]
    return Launch(short_name, noted["grid"], x * y * z, noted["shared_bytes"], noted["counters"], multiply_adds)
