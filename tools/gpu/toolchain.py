"""Where nvcc and the disassembler are, and what of the sources belongs together."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc"
KERNELS = SOURCES / "cuda"
BUILD = ROOT / "build" / "gpu"

# Machine code that the CUDA module has (csrc/cuda/module.cmake).
ARCHITECTURES = (80, 90, 100, 120)
NO_NVCC = "no nvcc on the path and none named by CUDACXX"


def kernel_files() -> list[Path]:
    """Every .cu of csrc/cuda, whether or not anything says that it is there."""
    return sorted(KERNELS.glob("*.cu"))


def headers_of(source: Path, include: Path = SOURCES) -> list[Path]:
    """The project's own headers that a source includes, directly or not."""
    found: dict[Path, None] = {}
    waiting = [source]
    while waiting:
        current = waiting.pop()
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', current.read_text(), re.MULTILINE):
            for header in (current.parent / name, include / name):
                if header.exists() and header.resolve() not in found:
                    found[header.resolve()] = None
                    waiting.append(header)
                    break
    return sorted(found)


def nvcc() -> str | None:
    """The nvcc that setup.py would take."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


@lru_cache(maxsize=1)
def release() -> str:
    """The release of nvcc: "13.0"."""
    text = subprocess.run([str(nvcc()), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    if found is None:
        raise RuntimeError(f"{nvcc()} --version says no release:\n{text}")
    return found[1]


@lru_cache(maxsize=1)
def toolkit_programs() -> Path | None:
    """The folder that nvcc runs its own programs from; what is on the path may be a script that starts it."""
    command = [str(nvcc()), "--dryrun", "-E", "-x", "cu", os.devnull]
    text = subprocess.run(command, capture_output=True, text=True).stderr
    found = re.search(r"^#\$ _HERE_=(.+)$", text, re.MULTILINE)
    return Path(found[1]) if found else None


def disassembler() -> str | None:
    """nvdisasm of the toolkit, the path, the package nvidia-cuda-nvdisasm or triton, in this order."""
    folders = [toolkit_programs()] if nvcc() else []
    on_path = shutil.which("nvdisasm")
    folders += [Path(on_path).parent] if on_path else []
    packages = Path(sysconfig.get_path("purelib"))
    folders += [*sorted(packages.glob("nvidia/*/bin")), packages / "triton" / "backends" / "nvidia" / "bin"]
    for folder in folders:
        if folder and os.access(folder / "nvdisasm", os.X_OK):
            return str(folder / "nvdisasm")
    return None
