"""Fixtures of the CUDA kernels' tests."""

from collections.abc import Iterator
from types import ModuleType

import pytest

from spos_kernels.cuda.modules import module_of


@pytest.fixture
def emulator() -> Iterator[ModuleType]:
    """The emulated module; its schedule is left as it was."""
    module = module_of("cuda-emulated")
    yield module
    module.configure()
