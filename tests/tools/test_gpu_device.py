"""What `make gpu-test` and `make gpu-bench` say on machines that cannot run the kernels, and what they run else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import device
import device_tests
import pytest
import toolchain
import torch
from device import Gpu

from spos_kernels.cuda.modules import availability

QUERY = "NVIDIA A100-SXM4-80GB, 580.65.06, 8.0, 80000"
VERSION = "Cuda compilation tools, release 13.0, V13.0.88"
TARGETS = "compute_80\ncompute_90\ncompute_120\n"


def machine(
    query: str | None = QUERY, version: str = VERSION, targets: str = TARGETS
) -> Callable[[Sequence[str]], str | None]:
    """A machine whose programs print this."""

    def run(command: Sequence[str]) -> str | None:
        return query if command[0] == "nvidia-smi" else version if command[1] == "--version" else targets

    return run


@pytest.fixture(autouse=True)
def some_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDACXX", "/usr/local/cuda/bin/nvcc")


def said(run: Callable[[Sequence[str]], str | None], purpose: str = "test", torch: str | None = None) -> str:
    return "\n".join(device.complaints(device.first_gpu(run), purpose, run, lambda _: torch))


def test_a_machine_that_can() -> None:
    assert device.first_gpu(machine()) == Gpu("NVIDIA A100-SXM4-80GB", "580.65.06", (8, 0), 80000)
    assert said(machine()) == ""
    assert said(machine(QUERY.replace("80000", "[N/A]"))) == ""  # memory that the CPU shares


def test_no_gpu() -> None:
    assert "no NVIDIA GPU is visible" in said(machine(None))
    assert "lists no GPU" in said(machine("\n"))


def test_an_old_gpu() -> None:
    text = said(machine("Tesla V100-SXM2-16GB, 580.65.06, 7.0, 16000"))
    assert "V100-SXM2-16GB is sm_70: the kernels need sm_80" in text
    assert "nvcc 13.0 does not know sm_70" in text


def test_a_gpu_newer_than_the_toolkit() -> None:
    assert "does not know sm_121" in said(machine("NVIDIA GB10, 580.65.06, 12.1, 80000"))


def test_an_old_driver() -> None:
    assert "driver 535.1 is too old for nvcc 13.0, which needs 580" in said(
        machine(QUERY.replace("580.65.06", "535.1"))
    )
    old = VERSION.replace("13.0", "12.4")
    assert said(machine(QUERY.replace("580.65.06", "535.1"), old)) == ""


def test_too_little_memory() -> None:
    little = machine(QUERY.replace("80000", "3000"))
    assert said(little) == ""
    assert "3000 MiB of NVIDIA A100-SXM4-80GB are free, 6000 are needed" in said(little, "bench")


def test_no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDACXX")
    monkeypatch.setenv("PATH", "")
    assert "install the CUDA toolkit" in said(machine())


GPU = Gpu("NVIDIA A100", "580.65.06", (8, 0), 80000)


def test_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is a CPU build" in str(device.torch_complaint(GPU))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees no GPU" in str(device.torch_complaint(GPU))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for architectures, fits in ((["sm_80"], True), (["sm_75", "compute_75"], True), (["sm_86", "sm_90"], False)):
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda found=architectures: found)
        assert (device.torch_complaint(GPU) is None) == fits, architectures


def test_here_it_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(device, "first_gpu", lambda: "no GPU")
    assert device.main("test") == 1
    assert "error: no GPU\nWithout a GPU: make test" in capsys.readouterr().err


def test_what_runs_on_a_gpu() -> None:
    (tests,) = device_tests.commands("python", None)
    assert tests[1 : 3 + len(device_tests.TESTS)] == ["-m", "pytest", *device_tests.TESTS]
    checked = device_tests.commands("python", "compute-sanitizer")[1:]
    assert [each[2] for each in checked] == list(device_tests.SANITIZERS)
    assert all("--error-exitcode" in each and "python" in each for each in checked)
    assert all((toolchain.ROOT / path).exists() for path in device_tests.TESTS)


def test_failures_are_explained() -> None:
    assert "end" not in str(device_tests.explained(1, "assert 1 == 2"))
    assert "holds the GPU's memory" in str(
        device_tests.explained(1, "torch.OutOfMemoryError: CUDA out of memory. Tried")
    )
    assert "compute-sanitizer found" in str(device_tests.explained(99, ""))
    assert device_tests.run(["sh", "-c", "echo one; echo two >&2; exit 3"], {}) == (3, "one\ntwo\n")


@pytest.mark.skipif(not availability("cuda-emulated")[0], reason=availability("cuda-emulated")[1])
def test_every_benchmark_runs() -> None:
    """At a small size on the CPU, networks in the emulator."""
    folder = Path(__file__).parents[2] / "benchmarks" / "gpu"
    command = [sys.executable, str(folder), "--device", "cpu"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 21 and "failed" not in result.stdout
