"""The Triton kernels run on a GPU where there is one, else in Triton's interpreter (tests/conftest.py asks for it)."""

import os
from collections.abc import Iterator

import pytest

from spos_kernels.cuda.modules import availability, is_interpreted


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = os.path.dirname(__file__)
    available, reason = availability("triton")
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.gpu)
            if not available:
                item.add_marker(pytest.mark.skip(reason=f"triton: {reason}"))


@pytest.fixture
def device() -> str:
    return "cpu" if is_interpreted() else "cuda"


@pytest.fixture(autouse=True)
def bounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every access of every kernel in these tests is one of the tensors that it was given."""
    if not (availability("triton")[0] and is_interpreted()):
        yield
        return
    from bounds_support import checked_bounds

    with checked_bounds(monkeypatch):
        yield
