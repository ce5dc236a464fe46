"""The Triton kernels run on a GPU where there is one, else in Triton's interpreter (tests/conftest.py asks for it)."""

import os

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
