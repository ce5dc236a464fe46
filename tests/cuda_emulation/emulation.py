"""Builds the emulator with the kernels of this folder and calls them."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "csrc" / "cuda_emulation"
KERNELS = Path(__file__).parent / "kernels"
CACHE = ROOT / "build" / "cuda_emulation_tests"

FLAGS = ["-std=c++17", "-O2", "-g", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
CHECKED = ["-fsanitize=thread", "-fno-tree-sra"]

INSTRUCTIONS = [
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
    "mma_f16",
    "mma_bf16",
    "mma_tf32",
    "mma_s8",
    "mma_u8s8",
    "mma_s4",
    "mma_u4s4",
    "mma_b1",
    "dp4a",
]
COUNTERS = [*INSTRUCTIONS, "shared_wavefronts", "ldmatrix_wavefronts", "global_bytes", "global_sectors"]


@dataclass(frozen=True)
class Report:
    kind: str
    file: str
    line: int
    block: int
    thread: int
    kernel: str
    text: str


def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "g++"))
    assert found, "no C++ compiler found"
    return found


def cached(name: str, inputs: list[Path], command: list[str]) -> Path:
    """What `command` -o makes, made once for each content of `inputs` and each command."""
    digest = hashlib.sha256("\0".join(command).encode())
    for path in inputs:
        digest.update(path.read_bytes())
    CACHE.mkdir(parents=True, exist_ok=True)
    made = CACHE / f"{digest.hexdigest()[:16]}-{name}"
    if not made.exists():
        unfinished = made.with_name(f"{os.getpid()}-{made.name}")
        result = subprocess.run([*command, "-o", str(unfinished)], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        unfinished.rename(made)
    return made


def compiled(source: Path, flags: list[str]) -> Path:
    headers = sorted(RUNTIME.glob("*.h"))
    command = [compiler(), *FLAGS, *flags, "-c", "-x", "c++", str(source)]
    return cached(f"{source.stem}.o", [source, *headers], command)


def linked(name: str, kernels: list[Path], flags: list[str], options: list[str]) -> Path:
    """The emulator and these sources, of which the .cu are compiled with `flags`, linked with `options`."""
    jobs = [(source, []) for source in sorted(RUNTIME.glob("*.cpp"))]
    jobs += [(source, flags if source.suffix == ".cu" else []) for source in kernels]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda job: compiled(*job), jobs))
    return cached(name, objects, [compiler(), *options, *map(str, objects)])


def library(kernels: list[str], checked: bool) -> Path:
    """A shared library of the emulator and these kernels."""
    sources = [KERNELS / "control.cpp", *(KERNELS / f"{name}.cu" for name in kernels)]
    return linked("checked.so" if checked else "plain.so", sources, CHECKED if checked else [], ["-shared"])


def aligned(shape: int | tuple[int, ...], dtype: type, alignment: int = 128) -> np.ndarray:
    """Zeros at a multiple of `alignment`, as device memory is, with room around them that belongs to no array."""
    nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = np.zeros(nbytes + 3 * alignment, np.uint8)
    start = alignment + -room.ctypes.data % alignment
    return room[start : start + nbytes].view(dtype).reshape(shape)


class Emulation:
    """Kernels of one library. Arrays are numpy's; those of `memory` are what a checked kernel may access."""

    def __init__(self, path: Path) -> None:
        self.calls = ctypes.CDLL(str(path))
        self.calls.register_memory.restype = ctypes.c_void_p
        self.calls.register_memory.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_int]
        self.calls.release_memory.argtypes = [ctypes.c_void_p]
        self.calls.configure.argtypes = [ctypes.c_uint64, ctypes.c_int]
        self.calls.take_reports.restype = ctypes.c_char_p
        self.calls.take_launches.restype = ctypes.c_char_p

    @contextmanager
    def memory(self, *, read_only: tuple[str, ...] = (), **arrays: np.ndarray) -> Iterator[None]:
        with ExitStack() as stack:
            for name, array in arrays.items():
                handle = self.calls.register_memory(
                    array.ctypes.data, array.nbytes, name.encode(), int(name in read_only)
                )
                stack.callback(self.calls.release_memory, handle)
            yield

    def configure(self, seed: int = 0, count: bool = False) -> None:
        self.calls.configure(seed, int(count))

    def run(self, name: str, *arguments: int | np.ndarray, read_only: tuple[str, ...] = ()) -> int:
        """Calls run_<name> with these arrays registered; returns the error code of the launch."""
        arrays = {f"argument{i}": each for i, each in enumerate(arguments) if isinstance(each, np.ndarray)}
        values = [
            ctypes.c_void_p(each.ctypes.data) if isinstance(each, np.ndarray) else ctypes.c_int(each)
            for each in arguments
        ]
        with self.memory(read_only=read_only, **arrays):
            return int(self.calls[f"run_{name}"](*values))

    def reports(self) -> list[Report]:
        lines = self.calls.take_reports().decode().splitlines()
        parts = [line.split("|", 6) for line in lines]
        return [Report(kind, file, int(a), int(b), int(c), kernel, text) for kind, file, a, b, c, kernel, text in parts]

    def launches(self) -> list[list[str]]:
        return [line.split("|") for line in self.calls.take_launches().decode().splitlines()]

    def counters(self) -> dict[str, int]:
        numbers = (ctypes.c_uint64 * len(COUNTERS))()
        self.calls.take_counters(numbers)
        return dict(zip(COUNTERS, numbers, strict=True))
