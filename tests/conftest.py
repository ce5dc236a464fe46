"""Settings that all tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

# Triton's own functions are for the interpreter or for a GPU from the moment that anything imports triton.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def torch_state() -> Iterator[None]:
    """Start every test from one seed and at most two threads, and leave the thread count as it was."""
    threads = torch.get_num_threads()
    torch.set_num_threads(min(2, threads))
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
