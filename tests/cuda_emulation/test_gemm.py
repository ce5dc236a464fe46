"""A matrix product with everything in it: copies ahead, ldmatrix, mma, vector stores, a swizzle that pays."""

from __future__ import annotations

import numpy as np
import pytest
from emulation import Emulation, aligned

M, N, K = 128, 64, 192


def operands() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a, b = aligned((M, K), np.int8), aligned((N, K), np.int8)
    a[:], b[:] = rng.integers(-128, 128, a.shape), rng.integers(-128, 128, b.shape)
    return a, b, aligned((M, N), np.int32)


@pytest.mark.parametrize("swizzled", [0, 1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_product(either: Emulation, swizzled: int, seed: int) -> None:
    a, b, c = operands()
    either.configure(seed)
    assert either.run("gemm", swizzled, M, N, K, a, b, c, read_only=("argument4", "argument5")) == 0
    np.testing.assert_array_equal(c, a.astype(np.int64) @ b.astype(np.int64).T)


@pytest.mark.parametrize(("swizzled", "passes"), [(0, 4), (1, 1)])
def test_counters(emulated: Emulation, swizzled: int, passes: int) -> None:
    a, b, c = operands()
    emulated.configure(count=True)
    emulated.launches()
    assert emulated.run("gemm", swizzled, M, N, K, a, b, c) == 0
    counters = emulated.counters()
    blocks, steps = M // 64 * (N // 64), K // 64
    assert counters["mma_s8"] == M * N * K // (16 * 8 * 32)
    assert counters["ldmatrix"] == blocks * steps * 4 * 2 * (2 + 2)  # of x4, by four warps, in two parts
    assert counters["ldmatrix_wavefronts"] == 4 * passes * counters["ldmatrix"]
    assert counters["cp_async"] == blocks * steps * 2 * 64 * 64 // (16 * 32)
    assert counters["block_barrier"] == blocks * steps * 4
    assert counters["global_store"] == blocks * 4 * 16
    assert counters["global_bytes"] == blocks * steps * 2 * 64 * 64 + c.nbytes
    assert counters["global_sectors"] == counters["global_bytes"] // 32
    assert counters["shared_wavefronts"] == counters["ldmatrix_wavefronts"] + 4 * counters["cp_async"]
    kernel, *numbers = emulated.launches()[0]
    assert f"gemm<{'true' if swizzled else 'false'}>" in kernel
    assert numbers == [*map(str, (N // 64, 128, 0, (a.nbytes + b.nbytes) // 32, c.nbytes // 32))]
    assert emulated.launches() == []
