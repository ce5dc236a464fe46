"""Each planted mistake is reported with its kind and its line on every schedule; the kernel without it is not."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from emulation import Emulation
from planted import NAMES, NOTHING_PLANTED, PLANTED, SOURCE, run

ENDS_THE_LAUNCH = {"out_of_bounds", "misaligned", "write_to_constant", "divergent_barrier", "missing_participant"}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("seed", range(6))
def test_mistake_is_reported(checked_library: Emulation, name: str, seed: int) -> None:
    kind, line = PLANTED[name]
    code, _ = run(checked_library, name, correct=False, seed=seed)
    reports = checked_library.reports()
    here = [report for report in reports if (report.kind, report.line) == (kind, line)]
    assert here, reports
    assert here[0].file == str(SOURCE)
    assert f"{name}<false>" in here[0].kernel
    assert code == (719 if kind in ENDS_THE_LAUNCH else 0)  # cudaErrorLaunchFailure


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(6))
def test_kernel_without_it_is_not_reported(emulated: Emulation, name: str, seed: int) -> None:
    code, _ = run(emulated, name, correct=True, seed=seed)
    assert code == 0


def test_every_kernel_has_a_mistake_but_one() -> None:
    assert set(NAMES) == {*PLANTED, NOTHING_PLANTED}


def test_a_report_says_who_and_where(checked_library: Emulation) -> None:
    run(checked_library, "halo_off_by_one", correct=False, seed=0)
    (report,) = checked_library.reports()
    assert (report.block, report.thread) == (2, 63)
    assert report.text == "read of 4 bytes that end 4 bytes beyond 'given'"
    run(checked_library, "same_word_from_blocks", correct=False, seed=0)
    (report,) = checked_library.reports()
    assert (report.block, report.thread) == (1, 0)
    place = f"{SOURCE}:{PLANTED['same_word_from_blocks'][1]}"
    assert report.text == f"write not ordered after the write by thread (0,0,0) of block (0,0,0) at {place}"


@pytest.mark.parametrize(("name", "allowed"), [("constant_words", True), ("variable_words", False)])
def test_of_unregistered_memory_only_constants_may_be_read(
    checked_library: Emulation, name: str, allowed: bool
) -> None:
    words = (ctypes.c_uint * 3).in_dll(checked_library.calls, name)
    result = np.zeros((2, 4), np.int32)
    checked_library.configure()
    with checked_library.memory(result=result):
        code = checked_library.calls.run_integer(2, words, ctypes.c_void_p(result.ctypes.data))
    assert code == (0 if allowed else 719)
    assert {report.kind for report in checked_library.reports()} == (set() if allowed else {"out_of_bounds"})
