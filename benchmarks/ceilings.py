"""The limits of this machine, measured in the run that they are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

import spos_kernels as sk
from spos_kernels import _C


@dataclass(frozen=True)
class Bound:
    """The shortest time that a piece of work could take here, and what limits it."""

    seconds: float
    limit: str


@lru_cache
def fma_rate(threads: int) -> float:
    """Floating-point operations a second of multiply-adds on registers, by the instruction set that the kernels use."""
    return _operations_rate(_C.Ceiling.fma, threads)


@lru_cache
def load_rate(threads: int) -> float:
    """The same with one operand of every multiply-add loaded from the first-level cache."""
    return _operations_rate(_C.Ceiling.load, threads)


@lru_cache
def byte_rate(threads: int) -> float:
    """Operations a second of multiply-adds of bytes: by tiles, or four where a vector has one of floats."""
    return _operations_rate(_C.Ceiling.tiles, threads) if sk.isa() == "amx" else 4 * fma_rate(threads)


@lru_cache
def copy_rate(size: int) -> float:
    """Bytes a second, read and written together, of torch's copy between two buffers of `size` bytes in all.

    At the size of the work itself, since what fits into a cache moves faster than what does not.
    """
    source = torch.ones(max(size // 8, 1024))
    target = torch.empty_like(source)
    seconds = _best(lambda: target.copy_(source))
    return 2 * source.nbytes / seconds


def bound(operations: float, size: int, threads: int) -> Bound:
    """Return the bound of work with so many floating-point operations that reads and writes `size` bytes."""
    arithmetic, memory = operations / fma_rate(threads), size / copy_rate(_round_up(size))
    return Bound(arithmetic, "FMA") if arithmetic >= memory else Bound(memory, "memory")


def _operations_rate(ceiling: _C.Ceiling, threads: int) -> float:
    isa, iterations = _C.Isa.__members__[sk.isa()], 200_000
    operations = _C.run_ceiling(ceiling, isa, 1, threads) * iterations
    return operations / _best(lambda: _C.run_ceiling(ceiling, isa, iterations, threads))


def _best(work: Callable[[], object], seconds: float = 0.3) -> float:
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def _round_up(size: int) -> int:
    """To a power of two: shapes of about the same size share one measurement."""
    return 1 << max(size - 1, 1).bit_length()
