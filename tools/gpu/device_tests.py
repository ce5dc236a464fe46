"""`make gpu-test`, after device.py and the build: the CUDA kernels' tests on the GPU, then under compute-sanitizer.

What the emulator checks in other runs the sanitizer checks here, on the real machine: accesses out of bounds (memcheck)
and races in shared memory (racecheck). It is slow, so each tool takes a part of the tests, the plainest of each file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

import toolchain

TESTS = ("tests/spos_kernels/cuda", "tests/spos_kernels/triton", "tests/spos/core/test_captured_step.py")
ON_THE_GPU = "not emulated"  # ids of parameters: "cuda" and "cuda-emulated"
SANITIZERS = ("memcheck", "racecheck", "synccheck")
PART = "float32"


def sanitizer() -> str | None:
    """compute-sanitizer of the toolkit or on the path."""
    folder = toolchain.toolkit_programs() if toolchain.nvcc() else None
    return shutil.which("compute-sanitizer") or (
        shutil.which("compute-sanitizer", path=os.fspath(folder)) if folder else None
    )


def commands(python: str, sanitizer: str | None) -> list[list[str]]:
    tests = [python, "-m", "pytest", *TESTS, "-k"]
    found = [[*tests, ON_THE_GPU]]
    if sanitizer:
        options = ["--target-processes", "all", "--error-exitcode", "99", "--print-limit", "20"]
        found += [
            [sanitizer, "--tool", tool, *options, *tests, f"{ON_THE_GPU} and {PART}", "-q", "--timeout=0"]
            for tool in SANITIZERS
        ]
    return found


def explained(code: int, output: str) -> str | None:
    """A line on what a failure most likely means, where that is plain."""
    known = {
        "CUDA out of memory": "another program holds the GPU's memory, or it is smaller than 4 GB",
        "no kernel image is available": "the module was compiled for another GPU: remove build/cuda-* and run again",
        "driver version is insufficient": "the driver is older than the toolkit: update it",
        "unspecified launch failure": "a kernel failed on the device: compute-sanitizer, if it is there, says where",
    }
    if code == 99:
        return "compute-sanitizer found errors, above"
    return next((text for words, text in known.items() if words in output), None)


def run(command: Sequence[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run, and show what it prints as it comes."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    return process.wait(), "".join(lines)


def main() -> int:
    program = sanitizer()
    if program is None:
        print("gpu-test: no compute-sanitizer (part of the CUDA toolkit): the tests run without it")
    # Memory of its own for each tensor, so that an access past its end is seen.
    for command in commands(sys.executable, program):
        unchecked = command[0] != program
        code, output = run(command, {**os.environ, **({} if unchecked else {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})})
        if code != 0:
            reason = explained(code, output)
            print(f"error: {' '.join(command[:3])} ... failed" + (f": {reason}" if reason else ""), file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
