"""Counted instructions, passes over the banks and sectors, for accesses whose numbers are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from emulation import Emulation, aligned

# Size of an element, which one each lane loads, passes over the banks: 8 bytes go half a warp at a time, 16 a quarter.
PATTERNS = [
    (4, lambda lane: lane, 1),
    (4, lambda lane: 0, 1),
    (4, lambda lane: 2 * lane, 2),
    (4, lambda lane: 3 * lane, 1),
    (4, lambda lane: 32 * (lane % 8), 8),
    (4, lambda lane: 31 * lane, 1),
    (8, lambda lane: lane, 2),
    (8, lambda lane: 2 * lane, 4),
    (8, lambda lane: 16 * lane if lane < 16 else 16 * lane + 1, 32),
    (16, lambda lane: lane, 4),
    (16, lambda lane: 2 * lane, 8),
    (16, lambda lane: 8 * lane + lane // 8, 32),
]


@pytest.mark.parametrize(("size", "offset", "passes"), PATTERNS)
def test_bank_conflicts(emulated: Emulation, size: int, offset: Callable[[int], int], passes: int) -> None:
    emulated.configure(count=True)
    count = 1024
    given, result = aligned((count, size), np.uint8), aligned((32, size), np.uint8)
    given[:] = np.random.default_rng(0).integers(0, 256, given.shape)
    offsets = aligned(32, np.int32)
    offsets[:] = [offset(lane) for lane in range(32)]
    assert emulated.run("bank", size, count, given, offsets, result) == 0
    np.testing.assert_array_equal(result, given[offsets])
    counters = emulated.counters()
    assert counters["shared_load"] == 1
    assert counters["shared_store"] == count // 32
    assert counters["global_load"] == count // 32 + 1
    assert counters["global_store"] == 1
    assert counters["block_barrier"] == 1
    assert counters["shared_wavefronts"] == count // 32 * (size // 4) + passes
    assert counters["global_bytes"] == given.nbytes + offsets.nbytes + result.nbytes
    assert counters["global_sectors"] == counters["global_bytes"] // 32


@pytest.mark.parametrize(("pitch", "passes"), [(16, 1), (128, 8), (144, 1), (32, 2)])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix_conflicts(emulated: Emulation, count: int, pitch: int, passes: int) -> None:
    emulated.configure(count=True)
    rows, result = aligned(32 * 16, np.uint8), aligned(32 * 4 * count, np.uint8)
    assert emulated.run("ldmatrix", count, 0, pitch, rows, result) == 0
    counters = emulated.counters()
    assert counters["ldmatrix"] == 1
    assert counters["ldmatrix_wavefronts"] == count * passes


def test_sectors_of_each_launch(emulated: Emulation) -> None:
    """One counter and a store for each step: what was touched before counts no more, until launches are taken."""
    counter, arrivals = aligned(1, np.int32), aligned(3 * 64 * 20, np.int32)
    emulated.configure(count=True)
    emulated.launches()
    for _ in range(2):
        for _ in range(2):
            assert emulated.run("arrivals", 3, 64, counter, arrivals) == 0
        first, second = [numbers for _, *numbers in emulated.launches()]
        assert first == ["3", "64", "0", "1", str(1 + arrivals.nbytes // 32)]
        assert second == ["3", "64", "0", "0", "0"]


def operands() -> list[np.ndarray]:
    """Memory for a warp's registers of A, B, C and D, 16 bytes a lane at most."""
    return [aligned(32 * size, np.uint8) for size in (16, 8, 16, 16)]


def test_tensor_core_instructions_are_counted(emulated: Emulation) -> None:
    emulated.configure(count=True)
    words = operands()
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
        "mma_u4s4": 0,
        "mma_b1": 1,
    }


def test_dp4a_is_counted_by_thread(emulated: Emulation) -> None:
    emulated.configure(count=True)
    words, results = aligned(65, np.uint32), aligned(4 * 64, np.int32)
    assert emulated.run("integer", 64, words, results) == 0
    assert emulated.counters()["dp4a"] == 64


def test_nothing_is_counted_unasked(emulated: Emulation) -> None:
    words = operands()
    assert emulated.run("mma_m16n8k32_s8", *words) == 0
    assert not any(emulated.counters().values())
