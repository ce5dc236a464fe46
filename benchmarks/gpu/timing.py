"""How long a call takes on the GPU: by events around it, called from Python and replayed from a CUDA graph.

The first says what a user of eager PyTorch waits for, launches included; the second what the GPU itself needs. Between
two calls a buffer larger than the second-level cache is written, so that operands come from memory, as they do within a
training step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Call = Callable[[], object]
CACHE = 256 << 20  # bytes, more than any second-level cache


@dataclass(frozen=True)
class Times:
    """Medians in microseconds. replayed: None where the call cannot be captured, and why not."""

    called: float
    replayed: float | None
    why_not: str = ""


def by_events(call: Call, rounds: int) -> float:
    flush = torch.empty(CACHE // 4, dtype=torch.int32, device="cuda")
    starts, ends = ([torch.cuda.Event(enable_timing=True) for _ in range(rounds)] for _ in range(2))
    for start, end in zip(starts, ends, strict=True):
        flush.zero_()
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(1e3 * start.elapsed_time(end) for start, end in zip(starts, ends, strict=True))


def by_clock(call: Call, rounds: int) -> float:
    """On the CPU, where only that everything runs is of interest."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def captured(call: Call) -> Call:
    """A replay of a call that has been made before."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # memory is reserved, algorithms are chosen
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def measure(call: Call, device: str, rounds: int) -> Times:
    for _ in range(3):
        call()
    if device != "cuda":
        return Times(by_clock(call, rounds), None, "no GPU")
    called = by_events(call, rounds)
    try:
        replay = captured(call)
    except RuntimeError as error:
        return Times(called, None, str(error).splitlines()[0])
    return Times(called, by_events(replay, rounds))
