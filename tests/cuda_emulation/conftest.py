from __future__ import annotations

from collections.abc import Iterator

import pytest
from emulation import Emulation, library

KERNELS = ["instructions", "planted_bugs", "gemm"]


@pytest.fixture(scope="session")
def checked_library() -> Emulation:
    return Emulation(library(KERNELS, checked=True))


@pytest.fixture
def emulated(checked_library: Emulation) -> Iterator[Emulation]:
    """Kernels built with hooks, with the default schedule. No report may be left over at the end."""
    checked_library.configure()
    yield checked_library
    assert checked_library.reports() == []


@pytest.fixture(scope="session")
def plain() -> Emulation:
    """The same kernels built without hooks."""
    return Emulation(library(KERNELS, checked=False))


@pytest.fixture(params=["checked", "plain"])
def either(request: pytest.FixtureRequest) -> Emulation:
    return request.getfixturevalue("emulated" if request.param == "checked" else "plain")
