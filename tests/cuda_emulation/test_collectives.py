"""What threads do together, with whole and partial masks, against a model of each in Python."""

from __future__ import annotations

import functools
import operator

import numpy as np
import pytest
from emulation import Emulation, aligned

RESULTS = 21
MASKS = [0xFFFFFFFF, 0x0000FFFF, 0xFFFF0000, 0x55555555, 0x80000001, 0x00000010, 0x0FF0F00F]


def unsigned(value: int) -> int:
    return int(value) % 2**32


def signed(value: int) -> int:
    return (unsigned(value) + 2**31) % 2**32 - 2**31


def source(kind: int, lane: int, operand: int, width: int) -> int:
    """The lane that a shuffle reads: index, up, down, exclusive or. Outside of its segment, a lane reads itself."""
    first = lane - lane % width
    within = (operand % width, lane % width - operand, lane % width + operand, (lane % width) ^ operand)[kind]
    return first + within if 0 <= within < width else lane


def model(values: list[int], mask: int, operand: int, width: int, lane: int) -> list[int | None]:
    """None stands for a value that CUDA leaves undefined: that of a lane outside of the mask."""
    lanes = [i for i in range(32) if mask >> i & 1]
    taking_part = [values[i] for i in lanes]
    bits = [unsigned(value) for value in taking_part]
    shuffled = []
    for kind in range(4):
        other = source(kind, lane, operand, width)
        shuffled.append(values[other] if other in lanes else None)
    equal = sum(1 << i for i in lanes if values[i] == values[lane])
    all_equal = mask if equal == mask else 0
    return [
        *shuffled,
        signed(sum(1 << i for i in lanes if values[i] & 1)),
        int(all(value & 1 for value in taking_part)),
        int(any(value & 1 for value in taking_part)),
        signed(sum(taking_part)),
        min(taking_part),
        max(taking_part),
        signed(min(bits)),
        signed(max(bits)),
        signed(functools.reduce(operator.and_, bits)),
        signed(functools.reduce(operator.or_, bits)),
        signed(functools.reduce(operator.xor, bits)),
        signed(equal),
        signed(all_equal),
        int(all_equal != 0),
        signed(mask),
        1,
        None if shuffled[0] is None else 2 * shuffled[0] + 1,
    ]


@pytest.mark.parametrize("mask", MASKS, ids=hex)
@pytest.mark.parametrize(("operand", "width"), [(1, 32), (3, 32), (16, 32), (2, 8), (5, 16), (0, 1), (31, 32)])
@pytest.mark.parametrize("seed", [0, 5])
def test_collectives(checked_library: Emulation, mask: int, operand: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(mask + operand)
    values = rng.integers(-(2**20), 2**20, 32).astype(np.int32)
    values[rng.integers(0, 32, 16)] = values[3]  # some are equal
    results = np.full((32, RESULTS), 77, np.int32)
    checked_library.configure(seed)
    code = checked_library.run("collectives", values, np.uint32(mask).astype(np.int32).item(), operand, width, results)
    assert code == 0
    undefined = False
    for lane in range(32):
        if not mask >> lane & 1:
            assert np.all(results[lane] == 77)
            continue
        expected = model([int(value) for value in values], mask, operand, width, lane)
        undefined |= None in expected
        for i, value in enumerate(expected):
            assert value is None or results[lane, i] == value, (lane, i)
    reports = checked_library.reports()
    assert {report.kind for report in reports} == ({"undefined_result"} if undefined else set())


@pytest.mark.parametrize(("blocks", "threads"), [(1, 32), (3, 33), (2, 256)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_atomics_and_block_votes(emulated: Emulation, blocks: int, threads: int, seed: int) -> None:
    emulated.configure(seed)
    words, total = np.zeros(10, np.int32), np.zeros(1, np.float32)
    words[4] = 1
    assert emulated.run("atomics", blocks, threads, words, total) == 0
    n = blocks * threads
    assert words[0] == n * (n - 1) // 2
    assert words[1] == n - 1
    assert words[2] == -(n - 1)
    assert 0 <= words[3] < n
    assert words[4] == pow(2, n, 10007)
    assert unsigned(words[5]) == 2**32 - 1
    assert words[6] == n
    thirds = len(range(0, threads, 3))
    assert words[7] == n * thirds
    assert words[8] == n
    assert words[9] == 0
    assert total[0] == n / 4


@pytest.mark.parametrize("missing", [0, 1, 3])
@pytest.mark.parametrize("width", [4, 8, 16])
def test_async_copies(either: Emulation, width: int, missing: int) -> None:
    given = aligned(64 * width, np.uint8)
    given[:] = np.random.default_rng(0).integers(1, 256, given.size)
    result = np.full(64 * width, 77, np.uint8)
    assert either.run("async_copy", width, missing, given, result, read_only=("argument2",)) == 0
    expected = given.reshape(64, width).copy()
    if missing:
        expected[:, -missing:] = 0
    np.testing.assert_array_equal(result.reshape(64, width), expected)


@pytest.mark.parametrize("shape", [(0, 32), (1, 1025)])
def test_a_launch_that_no_device_would_take(checked_library: Emulation, shape: tuple[int, int]) -> None:
    words, total = np.zeros(10, np.int32), np.zeros(1, np.float32)
    assert checked_library.run("atomics", *shape, words, total) == 9  # cudaErrorInvalidConfiguration
    assert [report.kind for report in checked_library.reports()] == ["invalid_launch"]
    assert not words.any()


def test_lanes_that_have_exited_are_absent_from_masks(either: Emulation) -> None:
    result = np.zeros(40, np.int32)
    assert either.run("exited_lanes", 40, result) == 0
    np.testing.assert_array_equal(result, [24] * 24 + [0] * 8 + [8] * 8)
