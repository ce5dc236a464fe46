"""`make gpu-static`: what can be known of the CUDA kernels without a GPU, checked.

Compiles every csrc/cuda/*.cu for every architecture of the module and compares registers, shared memory and occupancy
with csrc/cuda/resources.md, and the machine code's instructions with csrc/cuda/expectations.toml.
"""

from __future__ import annotations

import argparse
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import census
import compilation
import resources
import toolchain
from compilation import Compiled

TABLE = toolchain.KERNELS / "resources.md"
EXPECTATIONS = toolchain.KERNELS / "expectations.toml"


def read_expectations(path: Path) -> tuple[dict[str, int], list[census.Expectation]]:
    """Bytes of dynamic shared memory, and instructions, that the file declares."""
    content: dict[str, Any] = tomllib.loads(path.read_text())
    unknown = set(content) - {"dynamic_shared", "instructions"}
    if unknown:
        raise ValueError(f"{path.name}: unknown {', '.join(sorted(unknown))}")
    return content.get("dynamic_shared", {}), [census.Expectation.read(each) for each in content["instructions"]]


def compile_with_progress(sources: list[Path]) -> list[Compiled]:
    start, done = time.monotonic(), []
    for compiled in compilation.compile_all(sources):
        done.append(compiled)
        if compiled.seconds and sys.stdout.isatty():
            print(f"\r{len(done)} of {len(sources) * len(toolchain.ARCHITECTURES)}", end="", flush=True)
    fresh = [each for each in done if each.seconds]
    if fresh:
        print(
            f"\rgpu-static: {len(fresh)} of {len(done)} compiled in {time.monotonic() - start:.0f} s "
            f"(longest: {resources.slowest(fresh)})"
        )
    return sorted(done, key=lambda each: (each.source, each.architecture))


def census_complaints(compiled: list[Compiled], expectations: list[census.Expectation]) -> list[str]:
    program = toolchain.disassembler()
    if program is None:
        print("gpu-static: no nvdisasm (pip install nvidia-cuda-nvdisasm): instructions are not looked at")
        return []
    counted = census.of_all(compiled, program)
    page = toolchain.BUILD / "census.md"
    page.write_text(census.page(counted))
    print(f"gpu-static: instructions of {len(counted)} kernels counted, in {page.relative_to(toolchain.ROOT)}")
    return census.complaints(counted, expectations)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--update", action="store_true", help="write the table of registers anew")
    update = parser.parse_args().update
    if toolchain.nvcc() is None:
        print(f"gpu-static: skipped, {toolchain.NO_NVCC}")
        return 0
    dynamic_shared, expectations = read_expectations(EXPECTATIONS)
    try:
        compiled = compile_with_progress(toolchain.kernel_files())
    except compilation.CompilationFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    kernels = resources.kernels_of(compiled, dynamic_shared)
    release = toolchain.release()
    if update:
        TABLE.write_text(resources.table(kernels, release))
        print(f"gpu-static: wrote {TABLE.relative_to(toolchain.ROOT)}")
    page = TABLE.read_text() if TABLE.exists() else ""
    if page and resources.release_in(page) != release:
        print(f"gpu-static: nvcc {release}, the table is of {resources.release_in(page)}: registers are not compared")
    complaints = resources.memory_complaints(kernels.values())
    complaints += resources.table_complaints(kernels, page, release)
    complaints += census_complaints(compiled, expectations)
    for complaint in complaints:
        print(f"error: {complaint}", file=sys.stderr)
    if complaints:
        print(
            f"error: {len(complaints)} complaints; after a change that is meant: {resources.COMMAND}", file=sys.stderr
        )
        return 1
    print(f"gpu-static: {len(kernels)} kernels on {len(toolchain.ARCHITECTURES)} architectures as in {TABLE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
