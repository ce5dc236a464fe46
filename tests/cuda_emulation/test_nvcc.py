"""The kernels of these tests are CUDA too: nvcc compiles them, and every wrapper is its instruction."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from emulation import KERNELS, ROOT, RUNTIME, cached

ARCHITECTURES = (80, 90, 100, 120)
nvcc = shutil.which("nvcc")
pytestmark = pytest.mark.skipif(nvcc is None, reason="no nvcc: the CUDA half of device.h is not compiled")


def compiled(name: str, output: str, options: list[str]) -> Path:
    source = KERNELS / f"{name}.cu"
    command = [str(nvcc), "-std=c++17", f"-I{ROOT / 'csrc'}", "-Werror", "all-warnings", *options, str(source)]
    return cached(f"{name}.{output}", [source, *sorted(RUNTIME.glob("*.h"))], command)


@pytest.mark.parametrize("name", ["instructions", "planted_bugs", "gemm"])
def test_compiles_for_every_architecture(name: str) -> None:
    codes = [f"-gencode=arch=compute_{each},code=sm_{each}" for each in ARCHITECTURES]
    assert compiled(name, "o", ["-c", *codes]).stat().st_size > 0


def test_wrappers_are_their_instructions() -> None:
    ptx = compiled("instructions", "ptx", ["-ptx", "-arch=sm_80"]).read_text()
    kernels = re.findall(r"__global__ void (\w+?)\(", (KERNELS / "instructions.cu").read_text())
    entries = re.findall(r"\.entry \w+", ptx)
    for kernel in kernels:
        assert any(kernel in entry for entry in entries), kernel
    for instruction in (
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32",
        "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32",
        "mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32",
        "mma.sync.aligned.m16n8k64.row.col.s32.u4.s4.s32",
        "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc",
        *(f"ldmatrix.sync.aligned.m8n8.x{count}.shared.b16" for count in (1, 2, 4)),
        *(f"ldmatrix.sync.aligned.m8n8.x{count}.trans.shared.b16" for count in (1, 2, 4)),
        "cp.async.cg.shared.global",
        "cp.async.ca.shared.global",
        "cp.async.commit_group",
        "cp.async.wait_group",
        "cvt.rna.tf32.f32",
        "atom.global.cas.b32",
        "redux.sync.add.s32",
        "match.any.sync.b32",
        "dp4a.s32.s32",
    ):
        assert instruction in ptx, instruction
