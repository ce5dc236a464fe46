"""The twins of AVX-512 intrinsics, by which `make test-avx512` runs that instruction set's kernels on AVX2."""

import re
import subprocess
from pathlib import Path

import pytest

from spos_kernels import _C

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).parent / "intrinsics.cpp"
TWINS = ["-mavx2", "-mfma", "-include", "avx512_twins/names.h", "-Wno-psabi", "-Wno-ignored-attributes"]


@pytest.mark.skipif(not _C.isa_supported(_C.Isa.avx2), reason="this processor has no AVX2")
def test_twins_do_what_is_said_of_the_intrinsics(tmp_path: Path) -> None:
    program = tmp_path / "intrinsics"
    command = ["c++", "-std=c++17", "-O1", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}"]
    subprocess.run([*command, *TWINS, str(SOURCE), "-o", str(program)], check=True)
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.stdout == "all as defined\n", run.stdout + run.stderr


def test_every_twin_is_used_and_compared() -> None:
    names = re.findall(r"#define (_mm\w+)", (ROOT / "csrc" / "avx512_twins" / "names.h").read_text())
    assert len(names) > 60
    kernels = "".join(
        path.read_text()
        for folder in ("core", "cpu")
        for path in (ROOT / "csrc" / folder).iterdir()
        if path.suffix in (".cpp", ".h", ".inl")
    )
    without = set(re.findall(r"_mm512_\w+", kernels)) - set(names)
    assert not without, f"kernels use intrinsics that have no twin: {sorted(without)}"
    for text in (SOURCE.read_text(), kernels):
        assert not set(names) - set(re.findall(r"_mm\w+", text))
