"""What the tests of the CUDA kernels share: the backends that are there, and where their tensors are."""

from __future__ import annotations

import pytest
import torch

from spos_kernels.cuda.modules import availability

_AVAILABLE = {name: availability(name) for name in ("cuda-emulated", "cuda")}
# For pytest.mark.parametrize: each runs where it is available.
CUDA_BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(not available, reason=f"{name}: {why}"))
    for name, (available, why) in _AVAILABLE.items()
]
needs_emulator = pytest.mark.skipif(not _AVAILABLE["cuda-emulated"][0], reason=_AVAILABLE["cuda-emulated"][1])
SEEDS = (0, 1, 2)  # of the emulator's schedules: blocks and warps in their order, then in random ones
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def device_of(backend: str) -> str:
    return "cuda" if backend == "cuda" else "cpu"
