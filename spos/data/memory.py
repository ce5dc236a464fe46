"""How much memory can still be had, and a refusal in time when a set of images would not fit."""

from __future__ import annotations

import os
from pathlib import Path


def require_memory(needed: int, what: str) -> None:
    """Raises ValueError, stating both sizes, if `needed` bytes for `what` exceed the memory that is available.

    Checked before anything is allocated: a set that does not fit would otherwise end in the kernel killing the process.
    """
    available = available_memory()
    if available is not None and needed > available:
        raise ValueError(f"{what} needs {_gigabytes(needed)} of memory, but only {_gigabytes(available)} is available")


def available_memory() -> int | None:
    """Bytes to be had without swapping, the lesser of the machine's and the control group's; None: unknown."""
    found = [size for size in (_machine_available(), _group_available()) if size is not None]
    return min(found) if found else None


def _machine_available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _group_available() -> int | None:
    """A container's limit less what it uses, without the file cache, which the kernel gives back when asked."""
    group = Path("/sys/fs/cgroup")
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most, used = int((group / limit).read_text()), int((group / usage).read_text())
            statistics = (group / limit).with_name("memory.stat").read_text().splitlines()
        except (OSError, ValueError):  # no such file, or the word "max" for no limit
            continue
        counts = dict(line.split() for line in statistics)
        return max(0, most - used + int(counts.get("inactive_file", 0)) + int(counts.get("active_file", 0)))
    return None


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
