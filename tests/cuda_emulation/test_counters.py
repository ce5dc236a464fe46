"""Counted instructions, passes over the banks and sectors, for accesses whose numbers are known."""

from __future__ import annotations

import numpy as np
import pytest
from emulation import Emulation, aligned


# Distance of neighbouring lanes in elements, size of an element, passes that one load or store needs.
@pytest.mark.parametrize(
    ("stride", "size", "passes"),
    [(1, 4, 1), (2, 4, 2), (3, 4, 1), (32, 4, 32), (33, 4, 1), (1, 8, 2), (2, 8, 4), (1, 16, 4), (2, 16, 8)],
)
def test_bank_conflicts(emulated: Emulation, stride: int, size: int, passes: int) -> None:
    emulated.configure(count=True)
    given, result = aligned(32 * size, np.uint8), aligned(32 * size, np.uint8)
    given[:] = 1
    assert emulated.run("bank", size, stride, given, result) == 0
    np.testing.assert_array_equal(given, result)
    counters = emulated.counters()
    assert counters["shared_load"] == counters["shared_store"] == 1
    assert counters["global_load"] == counters["global_store"] == 1
    assert counters["block_barrier"] == 1
    assert counters["shared_wavefronts"] == 2 * passes
    assert counters["global_bytes"] == 2 * 32 * size
    assert counters["global_sectors"] == 2 * size


@pytest.mark.parametrize(("pitch", "passes"), [(16, 1), (128, 8), (144, 1), (32, 2)])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_conflicts(emulated: Emulation, count: int, pitch: int, passes: int) -> None:
    emulated.configure(count=True)
    rows, result = aligned(32 * 16, np.uint8), aligned(32 * 4 * count, np.uint8)
    assert emulated.run("ldmatrix", count, 0, pitch, rows, result) == 0
    counters = emulated.counters()
    assert counters["ldmatrix"] == 1
    assert counters["ldmatrix_wavefronts"] == count * passes


def test_tensor_core_instructions_are_counted(emulated: Emulation) -> None:
    emulated.configure(count=True)
    words = [
        aligned(32 * 16, np.uint8),
        aligned(32 * 8, np.uint8),
        aligned(32 * 16, np.uint8),
        aligned(32 * 16, np.uint8),
    ]
    assert emulated.run("mma_m16n8k32_s8", *words) == 0
    assert emulated.run("mma_m16n8k256_b1", *words) == 0
    counters = emulated.counters()
    assert {name: number for name, number in counters.items() if name.startswith("mma")} == {
        "mma_f16": 0,
        "mma_bf16": 0,
        "mma_tf32": 0,
        "mma_s8": 1,
        "mma_u8s8": 0,
        "mma_s4": 0,
        "mma_b1": 1,
    }


def test_nothing_is_counted_unasked(emulated: Emulation) -> None:
    words = [
        aligned(32 * 16, np.uint8),
        aligned(32 * 8, np.uint8),
        aligned(32 * 16, np.uint8),
        aligned(32 * 16, np.uint8),
    ]
    assert emulated.run("mma_m16n8k32_s8", *words) == 0
    assert not any(emulated.counters().values())
