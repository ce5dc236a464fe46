"""The kernels of planted_bugs.cu: what is wrong with each, and how to run it."""

from __future__ import annotations

import ctypes
import re

import numpy as np
from emulation import KERNELS, Emulation, aligned

SOURCE = KERNELS / "planted_bugs.cu"
THREADS, BLOCKS = 64, 3
NAMES = re.findall(r"ENTRY\((\w+)\),", SOURCE.read_text())  # as they are numbered
NOTHING_PLANTED = "neighbouring_bytes"


def planted() -> dict[str, tuple[str, int]]:
    """Kernel -> kind and line, from the comments in the source."""
    found, kernel = {}, ""
    for number, line in enumerate(SOURCE.read_text().splitlines(), 1):
        if match := re.match(r"__global__ void (\w+)\(", line):
            kernel = match[1]
        if kernel and (match := re.search(r"// planted: (\w+)$", line)):
            found[kernel] = (match[1], number)
    return found


PLANTED = planted()


def run(emulated: Emulation, name: str, correct: bool, seed: int) -> tuple[int, np.ndarray]:
    """The launch's error code and what the kernel wrote, of 0, 1, 2 ... as input."""
    given, result, words = aligned(THREADS * BLOCKS, np.float32), aligned(256, np.float32), aligned(2, np.int32)
    given[:] = np.arange(given.size)
    emulated.configure(seed)
    with emulated.memory(given=given, result=result, words=words, read_only=("given",)):
        code = emulated.calls.run_planted(
            NAMES.index(name), int(correct), *(ctypes.c_void_p(each.ctypes.data) for each in (given, result, words))
        )
    return code, result
