"""Functions of one thread: conversions against NumPy and PyTorch, integer instructions against Python."""

from __future__ import annotations

import numpy as np
import torch
from emulation import Emulation


def test_conversions(either: Emulation) -> None:
    rng = np.random.default_rng(0)
    every_half = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
    anything = rng.integers(0, 2**32, 50_000, dtype=np.uint32).view(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 65519.996, 65520, 1e-8, -6e-8, 3e38, 1e-45], np.float32)
    with np.errstate(all="ignore"):
        between = np.nextafter(every_half, np.float32(np.inf))
        middle = ((every_half[:-1].astype(np.float64) + every_half[1:].astype(np.float64)) / 2).astype(np.float32)
        values = np.concatenate([every_half, between, middle, anything, special])
    n = values.size
    halves, brains = np.zeros(n, np.uint16), np.zeros(n, np.uint16)
    tf32, back = np.zeros(n, np.uint32), np.zeros((n, 2), np.float32)
    assert either.run("conversions", values, halves, brains, tf32, back, n) == 0

    number = ~np.isnan(values)
    with np.errstate(all="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(halves[number], expected.view(np.uint16)[number])
    assert np.all(halves[~number] == 0x7FFF)
    as_torch = torch.from_numpy(values).to(torch.bfloat16)
    np.testing.assert_array_equal(brains[number], as_torch.view(torch.int16).numpy().view(np.uint16)[number])
    assert np.all(brains[~number] == 0x7FFF)
    np.testing.assert_array_equal(back[number, 0], expected.astype(np.float32)[number])
    np.testing.assert_array_equal(back[number, 1], as_torch.float().numpy()[number])

    finite = np.isfinite(values) & (np.abs(values) < 3e38)
    error = np.abs(tf32.view(np.float32)[finite].astype(np.float64) - values[finite])
    assert np.all(tf32[finite] & 0x1FFF == 0)
    spacing = np.maximum(2.0 ** np.floor(np.log2(np.maximum(np.abs(values[finite]), 2.0**-126))), 2.0**-126)
    assert np.all(error <= spacing * 2.0**-11)


def test_integer_instructions(either: Emulation) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 65, dtype=np.uint32)
    values[:4] = 0, 1, 0x80808080, 0xFFFFFFFF
    results = np.zeros((64, 4), np.int32)
    assert either.run("integer", 64, values, results) == 0
    for i in range(64):
        x, y = int(values[i]), int(values[i + 1])
        x_bytes, y_bytes = (values[j : j + 1].view(np.int8).astype(int) for j in (i, i + 1))
        assert results[i, 0] == 7 + int(x_bytes @ y_bytes)
        perm = [x & 255, x >> 16 & 255, y & 255, y >> 16 & 255]
        assert int(results[i, 1]) % 2**32 == int.from_bytes(perm, "little")
        lowest = (x & -x).bit_length()
        assert results[i, 2] == x.bit_count() + 100 * (32 - x.bit_length()) + 10000 * lowest
        reversed_bits = int(f"{x:032b}"[::-1], 2)
        assert int(results[i, 3]) % 2**32 == reversed_bits ^ ((y << 32 | x) >> 5) % 2**32
