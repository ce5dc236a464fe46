"""Which method runs a low-bit operation: measured at the first call of a shape, then remembered.

All methods give the same bits, so the measurement is the call itself, a few times over, and what another run of the
program chooses makes no difference but in time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

__all__ = ["lowbit_plans"]

METHODS = ("dots", "bits", "row")  # numbered as in csrc/cpu/lowbit_conv2d.h
MOST_PLANS = 4096
Key = tuple[int | str, ...]

_lock = threading.Lock()
_plans: dict[Key, dict[str, float]] = {}
_computed: dict[Key, str] = {}  # of the CUDA kernels, in words


def lowbit_plans() -> dict[str, str]:
    """Return the plans made so far, in words: of each shape and pair of bit widths the method taken and the times.

    Empty until operations have run that more than one method can do. The CUDA kernels' plans are computed, not
    measured: they say which instructions multiply, and how.
    """
    measured = {_describe(key): _times(times) for key, times in sorted(_plans.items(), key=str)}
    return measured | {_describe(key): words for key, words in sorted(_computed.items(), key=str)}


def record(key: Key, words: str) -> None:
    """Keep a plan that was computed, for `lowbit_plans`."""
    if len(_computed) >= MOST_PLANS:
        _computed.clear()
    _computed[key] = words


def choose(key: Key, methods: Sequence[str], work: Callable[[int], None], *, rounds: int = 3) -> int:
    """Return the number of the fastest of `methods` for the work that `key` names."""
    if (known := chosen(key, methods)) is not None:
        return known
    times = _plans.get(key)
    if times is None:
        with _lock:  # two threads that measure at once would measure each other
            times = _plans.get(key)
            if times is None:
                if len(_plans) >= MOST_PLANS:
                    _plans.clear()
                times = _plans[key] = _measure(methods, work, rounds)
    return METHODS.index(min(times, key=times.__getitem__))


def chosen(key: Key, methods: Sequence[str]) -> int | None:
    """Return the number of the method that the work named by `key` has been given to; None if it has not been."""
    if len(methods) == 1:
        return METHODS.index(methods[0])
    times = _plans.get(key)
    return None if times is None else METHODS.index(min(times, key=times.__getitem__))


def _measure(methods: Sequence[str], work: Callable[[int], None], rounds: int) -> dict[str, float]:
    times = dict.fromkeys(methods, float("inf"))
    for _ in range(rounds):
        for name in methods:
            start = time.perf_counter()
            work(METHODS.index(name))
            times[name] = min(times[name], time.perf_counter() - start)
    return times


def _describe(key: Key) -> str:
    batch, height, width, _, _, groups, inputs, outputs, kh, kw, sh, sw, ph, pw, dh, dw, scales, a, w, *where = key
    if (batch, height, kh, kw, groups, sh, sw, ph, pw) == (1, 1, 1, 1, 1, 1, 1, 0, 0):
        what = f"matmul {width}x{inputs} by {inputs}x{outputs}"
    else:
        what = f"conv {batch}x{int(groups) * int(inputs)}x{height}x{width} to {int(groups) * int(outputs)}, {kh}x{kw}"
        for label, pair, plain in (("stride", (sh, sw), 1), ("padding", (ph, pw), 0), ("dilation", (dh, dw), 1)):
            what += f", {label} {pair[0]}x{pair[1]}" if pair != (plain, plain) else ""
        what += f", {groups} groups" if groups != 1 else ""
    return (
        f"{what}, w{w}a{a}"
        + (f", {scales} scales a row" if scales != 1 else "")
        + f", {where[0]}"
        + (f", {where[1]} threads" if len(where) > 1 else "")
    )


def _times(times: dict[str, float]) -> str:
    best = min(times, key=lambda name: times[name])
    return best + " (" + ", ".join(f"{name} {seconds * 1e6:.0f} µs" for name, seconds in times.items()) + ")"
