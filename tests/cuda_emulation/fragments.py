"""Which element of a matrix a lane holds, as the tables of the PTX ISA say it (section "Matrix Fragments for mma").

Each function takes an index i within the lane's fragment and the lane's group (lane >> 2) and position (lane % 4), and
returns (row, column). The tables are copied shape by shape; that they follow one rule is for the emulator to use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Place = Callable[[int, int, int], tuple[int, int]]


def c_place(i: int, group: int, position: int) -> tuple[int, int]:  # of all shapes m16n8
    return (group if i < 2 else group + 8, position * 2 + (i & 1))


def f16_a(i: int, group: int, position: int) -> tuple[int, int]:  # .m16n8k16, .f16 and .bf16
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    return (row, position * 2 + (i & 1) if i < 4 else position * 2 + (i & 1) + 8)


def f16_b(i: int, group: int, position: int) -> tuple[int, int]:
    return (position * 2 + (i & 1) if i < 2 else position * 2 + (i & 1) + 8, group)


def tf32_a(i: int, group: int, position: int) -> tuple[int, int]:  # .m16n8k8, .tf32
    return (group if i in (0, 2) else group + 8, position if i in (0, 1) else position + 4)


def tf32_b(i: int, group: int, position: int) -> tuple[int, int]:
    return (position if i == 0 else position + 4, group)


def s8_a(i: int, group: int, position: int) -> tuple[int, int]:  # .m16n8k32, .u8 and .s8
    row = group if 0 <= i < 4 or 8 <= i < 12 else group + 8
    return (row, position * 4 + (i & 3) if i < 8 else position * 4 + (i & 3) + 16)


def s8_b(i: int, group: int, position: int) -> tuple[int, int]:
    return (position * 4 + (i & 3) if i < 4 else position * 4 + (i & 3) + 16, group)


def s4_a(i: int, group: int, position: int) -> tuple[int, int]:  # .m16n8k64, .u4 and .s4
    row = group if 0 <= i < 8 or 16 <= i < 24 else group + 8
    return (row, position * 8 + (i & 7) if i < 16 else position * 8 + (i & 7) + 32)


def s4_b(i: int, group: int, position: int) -> tuple[int, int]:
    return (position * 8 + (i & 7) if i < 8 else position * 8 + (i & 7) + 32, group)


def b1_a(i: int, group: int, position: int) -> tuple[int, int]:  # .m16n8k256, .b1
    row = group if 0 <= i < 32 or 64 <= i < 96 else group + 8
    return (row, position * 32 + (i & 0x1F) if i < 64 else position * 32 + (i & 0x1F) + 128)


def b1_b(i: int, group: int, position: int) -> tuple[int, int]:
    return (position * 32 + (i & 0x1F) if i < 32 else position * 32 + (i & 0x1F) + 128, group)


@dataclass(frozen=True)
class Shape:
    depth: int
    bits: int  # of an element
    a: Place
    b: Place


SHAPES = {
    "m16n8k16_f16": Shape(16, 16, f16_a, f16_b),
    "m16n8k16_bf16": Shape(16, 16, f16_a, f16_b),
    "m16n8k8_tf32": Shape(8, 32, tf32_a, tf32_b),
    "m16n8k32_s8": Shape(32, 8, s8_a, s8_b),
    "m16n8k32_u8s8": Shape(32, 8, s8_a, s8_b),
    "m16n8k64_s4": Shape(64, 4, s4_a, s4_b),
    "m16n8k64_u4s4": Shape(64, 4, s4_a, s4_b),
    "m16n8k256_b1": Shape(256, 1, b1_a, b1_b),
}


def distribute(codes: np.ndarray, place: Place, bits: int, registers: int) -> np.ndarray:
    """Puts a matrix of `bits`-bit codes into `registers` 32-bit registers for each of 32 lanes."""
    words = np.zeros((32, registers), np.uint32)
    per_register = 32 // bits
    for lane in range(32):
        for i in range(registers * per_register):
            code = int(codes[place(i, lane >> 2, lane % 4)]) & (2**bits - 1)
            words[lane, i // per_register] |= np.uint32(code << (i % per_register * bits))
    return words


def distribute_c(matrix: np.ndarray) -> np.ndarray:
    values = np.zeros((32, 4), matrix.dtype)
    for lane in range(32):
        for i in range(4):
            values[lane, i] = matrix[c_place(i, lane >> 2, lane % 4)]
    return values
