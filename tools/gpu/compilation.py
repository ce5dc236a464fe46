"""PTX and machine code of kernel files, made once for each content of a file and what it includes.

The options are those of the shipped module (csrc/cuda/module.cmake) as far as they reach device code. PTX first,
machine code of it in a second step, as nvcc does itself: one compilation serves everything that is asked of a kernel.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import toolchain

OPTIONS = ["-std=c++17", "-O3", "-DNDEBUG", "-lineinfo", f"-I{toolchain.SOURCES}"]
TO_PTX = [*OPTIONS, "-ptx", "-Werror", "all-warnings"]
TO_CODE = ["-lineinfo", "-cubin", "-Xptxas", "-v,--warn-on-spills,--warn-on-local-memory-usage"]


class CompilationFailed(Exception):
    """What nvcc said."""


@dataclass(frozen=True)
class Compiled:
    source: Path
    architecture: int
    ptx: Path
    cubin: Path
    log: Path  # of ptxas -v
    seconds: float  # 0: it was there


def digest_of(source: Path, architecture: int) -> str:
    digest = hashlib.sha256(repr((TO_PTX, TO_CODE, architecture, toolchain.release())).encode())
    for path in [source, *toolchain.headers_of(source)]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def run(command: Sequence[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise CompilationFailed(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    return result.stdout + result.stderr


def compile_one(source: Path, architecture: int, folder: Path = toolchain.BUILD) -> Compiled:
    """Compile one file for one architecture, or take what was made of the same content before."""
    stem = f"{source.stem}.sm_{architecture}"
    made = folder / f"{stem}.{digest_of(source, architecture)}"
    ptx, cubin, log = (Path(f"{made}.{suffix}") for suffix in ("ptx", "cubin", "log"))
    if log.exists():
        return Compiled(source, architecture, ptx, cubin, log, 0.0)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    code = f"-arch=sm_{architecture}"
    partial = folder / f"{os.getpid()}.{stem}"
    run([str(toolchain.nvcc()), *TO_PTX, code, "-o", f"{partial}.ptx", str(source)])
    text = run([str(toolchain.nvcc()), *TO_CODE, code, "-o", f"{partial}.cubin", f"{partial}.ptx"])
    for old in folder.glob(f"{stem}.*"):  # of another content
        old.unlink(missing_ok=True)
    Path(f"{partial}.ptx").rename(ptx)
    Path(f"{partial}.cubin").rename(cubin)
    Path(f"{partial}.log").write_text(text)
    Path(f"{partial}.log").rename(log)  # last: it says that the others are whole
    return Compiled(source, architecture, ptx, cubin, log, time.monotonic() - start)


def compile_all(
    sources: Sequence[Path], architectures: Sequence[int] = toolchain.ARCHITECTURES, folder: Path = toolchain.BUILD
) -> Iterator[Compiled]:
    """Compile every file for every architecture, as many at once as there are cores; in the order they are done."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = [pool.submit(compile_one, source, each, folder) for source in sources for each in architectures]
        try:
            for job in as_completed(jobs):
                yield job.result()
        finally:
            for job in jobs:
                job.cancel()
