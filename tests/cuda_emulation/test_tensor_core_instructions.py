"""mma.sync and ldmatrix against the fragment tables of the PTX ISA and products in double or 64-bit integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from emulation import Emulation, aligned
from fragments import SHAPES, distribute, distribute_c

FLOATS = ["m16n8k16_f16", "m16n8k16_bf16", "m16n8k8_tf32"]
INTEGERS = {  # the values of a and of b
    "m16n8k32_s8": ((-128, 127), (-128, 127)),
    "m16n8k32_u8s8": ((0, 255), (-128, 127)),
    "m16n8k64_s4": ((-8, 7), (-8, 7)),
    "m16n8k64_u4s4": ((0, 15), (-8, 7)),
    "m16n8k256_b1": ((0, 1), (0, 1)),
}


def rounded(values: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The values as the type holds them, in double, and their codes."""
    if name.endswith("_f16"):
        halves = values.astype(np.float16)
        return halves.astype(np.float64), halves.view(np.uint16)
    if name.endswith("_bf16"):
        brains = torch.from_numpy(values).to(torch.bfloat16)
        return brains.double().numpy(), brains.view(torch.int16).numpy().view(np.uint16)
    bits = values.astype(np.float32).view(np.uint32)
    return (bits & 0xFFFFE000).view(np.float32).astype(np.float64), bits  # tensor cores do not read the last 13 bits


def product(emulated: Emulation, name: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """What the instruction makes of codes a (16, depth), b (depth, 8) and the accumulator c, by lane."""
    shape = SHAPES[name]
    result = np.full((32, 4), 77, c.dtype)
    a_words, b_words = distribute(a, shape.a, shape.bits, 4), distribute(b, shape.b, shape.bits, 2)
    assert emulated.run(f"mma_{name}", a_words, b_words, distribute_c(c), result) == 0
    return result


@pytest.mark.parametrize("name", FLOATS)
def test_float_products(either: Emulation, name: str) -> None:
    rng = np.random.default_rng(0)
    depth = SHAPES[name].depth
    a, a_codes = rounded(rng.integers(-8, 9, (16, depth)).astype(np.float32), name)
    b, b_codes = rounded(rng.integers(-8, 9, (depth, 8)).astype(np.float32), name)
    c = rng.integers(-1000, 1000, (16, 8)).astype(np.float32)
    exact = product(either, name, a_codes, b_codes, c)
    np.testing.assert_array_equal(exact, distribute_c((a @ b + c).astype(np.float32)))

    a, a_codes = rounded(rng.standard_normal((16, depth), np.float32), name)
    b, b_codes = rounded(rng.standard_normal((depth, 8), np.float32), name)
    c = rng.standard_normal((16, 8), np.float32)
    close = product(either, name, a_codes, b_codes, c)
    bound = 2.0**-24 * (np.abs(a) @ np.abs(b) + np.abs(c))
    assert np.all(np.abs(close - distribute_c(a @ b + c)) <= distribute_c(bound))


@pytest.mark.parametrize("name", INTEGERS)
def test_integer_products(either: Emulation, name: str) -> None:
    rng = np.random.default_rng(1)
    depth = SHAPES[name].depth
    (a_low, a_high), (b_low, b_high) = INTEGERS[name]
    a = rng.integers(a_low, a_high + 1, (16, depth))
    b = rng.integers(b_low, b_high + 1, (depth, 8))
    a[0], a[1], b[:, 0], b[:, 1] = a_low, a_high, b_low, b_high
    c = rng.integers(-(2**31), 2**31, (16, 8)).astype(np.int32)  # some sums wrap
    result = product(either, name, a, b, c)
    np.testing.assert_array_equal(result, distribute_c((a @ b + c).astype(np.int32)))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(either: Emulation, count: int, transposed: bool) -> None:
    pitch = 48
    rows = np.arange(32 * 8, dtype=np.uint16).reshape(32, 8)
    given = aligned(rows.shape, np.uint16)
    given[:] = rows
    result = np.zeros((32, count), np.uint32)
    assert either.run("ldmatrix", count, int(transposed), pitch, given, result) == 0
    for lane in range(32):
        for matrix in range(count):
            elements = rows[8 * matrix : 8 * matrix + 8]
            if transposed:
                elements = elements.T
            low, high = elements[lane // 4, lane % 4 * 2], elements[lane // 4, lane % 4 * 2 + 1]
            assert result[lane, matrix] == int(low) | int(high) << 16, (lane, matrix)
