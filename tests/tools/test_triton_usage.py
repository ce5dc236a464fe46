"""What `make triton-static` refuses: spills, lost tensor cores, a table that does not fit. Nothing is compiled here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import usage
from usage import ARCHITECTURES, Usage

ROOT = Path(__file__).parents[2]
PINNED = re.search(r"^triton==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def compiled(**other: Any) -> list[Usage]:
    """A kernel without and one with tensor cores, on each architecture; `other` of the second on the first."""
    plain = [Usage("a.sum_kernel", "fp32, block=256, 4 warps", each, 40, 1024) for each in ARCHITECTURES]
    product = [Usage("b.product_kernel", "fp16, 8 warps", each, 168, 8192, tensor_cores=4) for each in ARCHITECTURES]
    return [*plain, product[0]._replace(**other), *product[1:]]


def differences(now: list[Usage], release: str = "3.7.1", **options: bool) -> list[str]:
    return list(usage.table_complaints(now, usage.page(compiled(), "3.7.1"), release, **options))


def test_nothing_is_said_of_what_is_right() -> None:
    assert not list(usage.complaints(compiled()))
    assert not differences(compiled())


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"spilled": 6, "stack": 16}, "spills: 6 instructions for 16 bytes"),
        ({"stack": 8}, "spills"),
        ({"tensor_cores": 0}, "no tensor-core instruction"),
        ({"error": "CompilationError: no"}, "does not compile: CompilationError: no"),
    ],
    ids=str,
)
def test_spills_lost_tensor_cores_and_errors_are_refused(other: dict[str, Any], words: str) -> None:
    (found,) = usage.complaints(compiled(**other))
    assert words in found and "b.product_kernel (fp16, 8 warps) for sm_80" in found


def test_kernels_that_the_table_does_not_have_are_refused() -> None:
    new = Usage("a.sum_kernel", "fp16, block=256, 4 warps", 80, 40)
    for release in ("3.7.1", "3.8.0"):
        (found,) = differences([*compiled(), new], release)
        assert "a.sum_kernel (fp16, block=256, 4 warps) is not in the table" in found
        (found,) = differences(compiled()[: len(ARCHITECTURES)], release)
        assert "b.product_kernel (fp16, 8 warps) is in the table, and nothing compiles it" in found
    assert not differences(compiled()[: len(ARCHITECTURES)], whole=False)


def test_numbers_count_with_the_compiler_that_made_the_table() -> None:
    (found,) = differences(compiled(registers=170))
    assert "sm_80: 170 / 8192 / 0 / 0 / 4, in the table 168 / 8192 / 0 / 0 / 4" in found
    assert not differences(compiled(registers=170), "3.8.0")
    (found,) = differences(compiled()[:-1])
    assert "sm_120: —, in the table 168" in found


def test_instructions_are_recognised() -> None:
    products = "HMMA.16816.F32 R4, IMMA.16832.S8.S8 R4, HGMMA.64x64x16.F32 R24, UTCHMMA gdesc[UR4], UTCIMMA gdesc[UR4]"
    assert len(usage.TENSOR_CORES.findall(products)) == 5
    assert len(usage.LOCAL_MEMORY.findall("LDL R1, [R1]; STL.64 [R1+0x8], R2; LDS R1; LDG.E R3; STG.E R4")) == 2


def test_the_committed_table() -> None:
    release, rows = usage.read((ROOT / "docs" / "triton-resources.md").read_text())
    assert PINNED is not None and release == PINNED[1]
    assert len(rows) > 100 and all(set(cells) <= set(ARCHITECTURES) for cells in rows.values())
    for key, cells in rows.items():
        for cell in cells.values():
            _, _, stack, spilled, *tensor_cores = map(int, cell.split(" / "))
            assert stack == spilled == 0 and 0 not in tensor_cores, key
