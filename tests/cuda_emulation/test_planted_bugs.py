"""Each planted mistake is reported with its kind and its line on every schedule; the kernel without it is not."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator

import numpy as np
import pytest
from emulation import KERNELS, Emulation, Report, aligned

SOURCE = KERNELS / "planted_bugs.cu"
SEEDS = range(6)
NOTHING_PLANTED = "neighbouring_bytes"


# As they are listed in the source.
NAMES = re.findall(r"ENTRY\((\w+)\),", SOURCE.read_text())


def planted() -> dict[str, tuple[str, int]]:
    """Kernel -> kind and line, from the comments in the source."""
    found, kernel = {}, ""
    for number, line in enumerate(SOURCE.read_text().splitlines(), 1):
        if match := re.match(r"__global__ void (\w+)\(", line):
            kernel = match[1]
        if kernel and (match := re.search(r"// planted: (\w+)$", line)):
            found[kernel] = (match[1], number)
    return found


PLANTED = planted()


def run(emulated: Emulation, name: str, correct: bool, seed: int) -> tuple[int, list[Report]]:
    index = NAMES.index(name)
    given, result, words = aligned(192, np.float32), aligned(256, np.float32), np.zeros(2, np.int32)
    given[:] = np.arange(given.size)
    emulated.configure(seed)
    with emulated.memory(given=given, result=result, words=words, read_only=("given",)):
        code = emulated.calls.run_planted(
            index, int(correct), *(ctypes.c_void_p(array.ctypes.data) for array in (given, result, words))
        )
    return code, emulated.reports()


@pytest.fixture(params=SEEDS)
def seed(request: pytest.FixtureRequest) -> Iterator[int]:
    yield request.param


@pytest.mark.parametrize("name", PLANTED)
def test_mistake_is_reported(checked_library: Emulation, name: str, seed: int) -> None:
    kind, line = PLANTED[name]
    code, reports = run(checked_library, name, correct=False, seed=seed)
    here = [report for report in reports if (report.kind, report.line) == (kind, line)]
    assert here, reports
    assert here[0].file == str(SOURCE)
    assert f"{name}<false>" in here[0].kernel
    ends_the_launch = {"out_of_bounds", "misaligned", "write_to_constant", "divergent_barrier", "missing_participant"}
    assert code == (719 if kind in ends_the_launch else 0)  # cudaErrorLaunchFailure


@pytest.mark.parametrize("name", [*PLANTED, NOTHING_PLANTED])
def test_kernel_without_it_is_not_reported(checked_library: Emulation, name: str, seed: int) -> None:
    assert run(checked_library, name, correct=True, seed=seed) == (0, [])


def test_every_kernel_has_a_mistake_but_one() -> None:
    assert set(NAMES) == {*PLANTED, NOTHING_PLANTED}


def test_a_report_says_who_and_where(checked_library: Emulation) -> None:
    _, (report,) = run(checked_library, "halo_off_by_one", correct=False, seed=0)
    assert (report.block, report.thread) == (2, 63)
    assert report.text == "read of 4 bytes that end 4 bytes beyond 'given'"
    _, reports = run(checked_library, "same_word_from_blocks", correct=False, seed=0)
    assert (reports[0].block, reports[0].thread) == (1, 0)
    line = PLANTED["same_word_from_blocks"][1]
    assert reports[0].text == (
        f"write not ordered after the write by thread (0,0,0) of block (0,0,0) at {SOURCE}:{line}"
    )
