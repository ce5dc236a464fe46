"""What stands between this machine and a run of the CUDA kernels on its GPU, a line for each thing and its remedy.

`device.py test` and `device.py bench` check and say which GPU it is; exit status 1 and the complaints where it cannot
run. Everything is asked of nvidia-smi, nvcc and torch, in this order, because each explains what the next would say.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import toolchain

LEAST_CAPABILITY = (8, 0)
# Free memory in MiB. Tests have small tensors; a training step of a supernet at 224 pixels, batch 32, has not.
MEMORY = {"test": 1000, "bench": 6000}
# The oldest driver of each major release of the toolkit (CUDA Compatibility, "CUDA minor version compatibility").
LEAST_DRIVER = {11: 450, 12: 525, 13: 580}

Run = Callable[[Sequence[str]], "str | None"]


def run(command: Sequence[str]) -> str | None:
    """What a command prints; None where it is not there or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None


@dataclass(frozen=True)
class Gpu:
    name: str
    driver: str
    capability: tuple[int, int]
    free: int  # MiB

    @property
    def architecture(self) -> int:
        return self.capability[0] * 10 + self.capability[1]


def first_gpu(run: Run = run) -> Gpu | str:
    """The GPU that is used, or why there is none."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,compute_cap,memory.free", "--format=csv,noheader,nounits"]
    text = run(query)
    if text is None:
        return (
            "no NVIDIA GPU is visible: nvidia-smi is missing or fails. On a machine with one, install its driver; in a "
            "container, start it with --gpus all"
        )
    lines = text.strip().splitlines()
    if not lines:
        return "nvidia-smi lists no GPU"
    name, driver, capability, free = (each.strip() for each in lines[0].rsplit(",", 3))
    major, minor = capability.split(".")
    return Gpu(name, driver, (int(major), int(minor)), int(free) if free.isdigit() else sys.maxsize)


def nvcc_complaint(gpu: Gpu, run: Run = run) -> str | None:
    nvcc = toolchain.nvcc()
    if nvcc is None:
        return f"{toolchain.NO_NVCC}: install the CUDA toolkit, or set CUDACXX"
    version, targets = run([nvcc, "--version"]), run([nvcc, "--list-gpu-arch"])
    if version is None or "release " not in version:
        return f"{nvcc} --version fails"
    release = version.split("release ")[1].split(",")[0]
    least = LEAST_DRIVER.get(int(release.split(".")[0]))
    if least and int(gpu.driver.split(".")[0]) < least:
        return (
            f"driver {gpu.driver} is too old for nvcc {release}, which needs {least} or newer: update "
            "the driver, or take "
            "an older toolkit (CUDACXX=/path/to/nvcc)"
        )
    if targets is not None and f"compute_{gpu.architecture}" not in targets.split():
        return f"nvcc {release} does not know sm_{gpu.architecture} ({gpu.name}): a newer toolkit does"
    return None


def torch_complaint(gpu: Gpu) -> str | None:
    import torch

    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is a CPU build: install the same version for CUDA into this environment "
            "(pytorch.org, 'Get started')"
        )
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees no GPU, most likely for driver {gpu.driver}"
    architectures = torch.cuda.get_arch_list()
    # Code of one minor revision runs on later ones of its major revision; PTX runs on everything newer.
    major, minor = gpu.capability
    suited = [each for each in architectures if each.startswith("sm_") and each[3:].isdigit()]
    if not any(int(each[3:]) // 10 == major and int(each[3:]) % 10 <= minor for each in suited) and not any(
        each.startswith("compute_") and int(each[8:]) <= gpu.architecture for each in architectures
    ):
        return f"torch {torch.__version__} has no code for sm_{gpu.architecture}, only for {', '.join(architectures)}"
    return None


def complaints(
    gpu: Gpu | str, purpose: str, run: Run = run, torch: Callable[[Gpu], str | None] = torch_complaint
) -> list[str]:
    if isinstance(gpu, str):
        return [gpu]
    found = []
    if gpu.capability < LEAST_CAPABILITY:
        found.append(f"{gpu.name} is sm_{gpu.architecture}: the kernels need sm_80 (Ampere) or newer")
    if gpu.free < MEMORY[purpose]:
        found.append(
            f"{gpu.free} MiB of {gpu.name} are free, {MEMORY[purpose]} are needed: end what else runs "
            "there (nvidia-smi "
            "lists it), or choose another GPU with CUDA_VISIBLE_DEVICES"
        )
    return found + [each for each in (nvcc_complaint(gpu, run), torch(gpu)) if each]


def main(purpose: str) -> int:
    gpu = first_gpu()
    found = complaints(gpu, purpose)
    for each in found:
        print(f"error: {each}", file=sys.stderr)
    if found or isinstance(gpu, str):
        print(
            "Without a GPU: make test runs the same kernels in the emulator, make gpu-static compiles them.",
            file=sys.stderr,
        )
        return 1
    print(f"gpu-{purpose}: {gpu.name}, sm_{gpu.architecture}, driver {gpu.driver}, {gpu.free} MiB free")
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in MEMORY:
        sys.exit("usage: device.py test | bench")
    sys.exit(main(sys.argv[1]))
