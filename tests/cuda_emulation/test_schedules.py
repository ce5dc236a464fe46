"""Seeds give other orders, and without hooks too wrong programs compute wrong values."""

from __future__ import annotations

import numpy as np
import pytest
from emulation import Emulation
from planted import BLOCKS, THREADS, run

STEPS = 20


def arrivals(emulated: Emulation, seed: int, blocks: int, threads: int) -> np.ndarray:
    """Number of each step of each thread in the order in which they happened."""
    counter, result = np.zeros(1, np.int32), np.zeros((blocks, threads, STEPS), np.int32)
    emulated.configure(seed)
    assert emulated.run("arrivals", blocks, threads, counter, result) == 0
    assert sorted(result.reshape(-1)) == list(range(result.size))
    return result


def test_without_a_seed_everything_is_in_order(either: Emulation) -> None:
    result = arrivals(either, 0, 3, 96)
    np.testing.assert_array_equal(result.reshape(-1), np.arange(result.size))


def test_a_seed_always_gives_the_same_order(either: Emulation) -> None:
    np.testing.assert_array_equal(arrivals(either, 7, 3, 96), arrivals(either, 7, 3, 96))


def test_seeds_give_different_orders(either: Emulation) -> None:
    results = [arrivals(either, seed, 4, 128) for seed in range(1, 9)]
    assert len({tuple(np.argsort(result[:, 0, 0])) for result in results}) > 4, "of blocks"
    assert len({tuple(np.argsort(result[0, ::32, 0])) for result in results}) > 4, "of warps"
    assert len({int(np.argmin(result[0, :32, 0])) for result in results}) > 4, "of lanes"


def test_only_checked_threads_are_preempted(emulated: Emulation, plain: Emulation) -> None:
    def interrupted(result: np.ndarray) -> int:
        return int(np.sum(np.diff(result, axis=2) != 1))

    assert interrupted(arrivals(plain, 3, 2, 128)) == 0
    checked = arrivals(emulated, 3, 2, 128)
    assert 10 < interrupted(checked) < checked.size / 20
    warps = checked[0].reshape(4, -1)
    assert any(warps[i].min() < warps[j].min() < warps[i].max() for i in range(4) for j in range(4)), "other warps"


def expected(name: str) -> np.ndarray:
    given = np.arange(THREADS * BLOCKS, dtype=np.float32).reshape(BLOCKS, THREADS)
    if name == "missing_trailing_barrier":
        return np.broadcast_to(np.roll(given, -33, axis=1).sum(axis=0), given.shape)
    if name == "missing_leading_barrier":
        return given + np.roll(given, -32, axis=1)
    return {"missing_copy_wait": given, "uninitialised_read": np.roll(given, -1, axis=1)}[name]


@pytest.mark.parametrize(
    "name", ["missing_leading_barrier", "missing_trailing_barrier", "missing_copy_wait", "uninitialised_read"]
)
@pytest.mark.parametrize("seed", range(4))
def test_values_without_hooks(plain: Emulation, name: str, seed: int) -> None:
    for correct in (True, False):
        code, result = run(plain, name, correct, seed)
        assert code == 0
        if name == "uninitialised_read":  # poison
            assert np.isnan(result[6]) == (not correct)
        same = np.array_equal(result[: THREADS * BLOCKS].reshape(BLOCKS, THREADS), expected(name))
        assert same == correct


def test_shared_memory_beyond_the_limit(checked_library: Emulation) -> None:
    result = np.zeros(32, np.int32)
    checked_library.configure()
    assert checked_library.run("large_arrays", (227 - 40) * 1024, result) == 0
    assert checked_library.reports() == []
    assert result.all()
    assert checked_library.run("large_arrays", (227 - 40) * 1024 + 1, result) == 719
    assert [report.kind for report in checked_library.reports()] == ["invalid_launch"]
    assert checked_library.run("large_arrays", 227 * 1024 + 1, result) == 9
    assert [report.kind for report in checked_library.reports()] == ["invalid_launch"]
