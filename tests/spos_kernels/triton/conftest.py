"""The Triton kernels run on a GPU where there is one, else in Triton's interpreter, which has to be asked for early."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

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
