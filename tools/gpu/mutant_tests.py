"""A pytest plugin for mutants.py, loaded with -p in a copy of the tree whose kernels have mutants behind numbers.

MUTANT_REPORT names the file that it writes. Without MUTANT_TESTS all tests run, and the report says of each how long it
took, whether it passed and which mutants' places it reached. With MUTANT_TESTS (a file of node ids) these run in that
order, and the report says which failed first and how.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REPORTS = re.compile(
    r": (out_of_bounds|misaligned|write_to_constant|uninitialised_shared|pending_copy|shared_race|global_race|"
    r"divergent_barrier|missing_participant|undefined_result|invalid_launch): "
)
_tests: dict[str, dict[str, Any]] = {}
_failed: dict[str, str] = {}


def reached() -> list[int]:
    """Mutants whose place was reached since the last call."""
    import spos_kernels._cuda_emulated as module

    library = ctypes.CDLL(module.__file__)
    numbers = (ctypes.c_int * 65536)()
    count = library.mutants_take_reached(numbers, len(numbers))
    return list(numbers[:count])


def how(report: str) -> str:
    """What a failure comes to in a few words."""
    kinds = list(dict.fromkeys(REPORTS.findall(report)))
    if kinds:
        return ", ".join(kinds)
    return (
        "wrong result" if "Error" not in report or "AssertionError" in report else report.split(":")[0].split(".")[-1]
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "MUTANT_TESTS" in os.environ:
        wanted = {name: i for i, name in enumerate(Path(os.environ["MUTANT_TESTS"]).read_text().splitlines())}
        items[:] = sorted((each for each in items if each.nodeid in wanted), key=lambda each: wanted[each.nodeid])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    test = _tests.setdefault(item.nodeid, {"seconds": 0.0, "outcome": "passed", "reached": []})
    test["seconds"] += call.duration
    test["reached"] = sorted({*test["reached"], *reached()})
    if call.excinfo is not None:
        test["outcome"] = report.outcome
        if report.failed and not _failed:
            _failed.update(test=item.nodeid, how=how(call.excinfo.exconly()))
    return report


def pytest_sessionfinish() -> None:
    content = _failed if "MUTANT_TESTS" in os.environ else _tests
    Path(os.environ["MUTANT_REPORT"]).write_text(json.dumps(content))
