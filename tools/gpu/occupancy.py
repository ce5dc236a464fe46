"""How many blocks of a kernel a multiprocessor holds, and what it has room for.

Limits are those of the table "Technical Specifications per Compute Capability" of the CUDA C++ Programming Guide; how
registers and shared memory are handed out is what the CUDA Occupancy Calculator says of these architectures: registers
to warps, 256 at a time; shared memory to blocks, 128 bytes at a time, and 1 KB of it is the system's in each block.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Multiprocessor:
    warps: int
    blocks: int
    shared_bytes: int
    registers: int = 65536
    register_unit: int = 256
    shared_unit: int = 128
    reserved_bytes: int = 1024


MULTIPROCESSORS = {
    80: Multiprocessor(warps=64, blocks=32, shared_bytes=164 * 1024),
    90: Multiprocessor(warps=64, blocks=32, shared_bytes=228 * 1024),
    100: Multiprocessor(warps=64, blocks=32, shared_bytes=228 * 1024),
    120: Multiprocessor(warps=48, blocks=24, shared_bytes=100 * 1024),
}


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def resident_blocks(architecture: int, threads: int, registers: int, shared_bytes: int) -> int:
    """Blocks of so many threads that a multiprocessor holds at once; 0 if not even one fits."""
    has = MULTIPROCESSORS[architecture]
    warps = -(-threads // 32)
    of_a_warp = _up(max(registers, 1) * 32, has.register_unit)
    # A quarter of the registers belongs to each of the four schedulers, and a warp to one of them.
    warps_by_registers = has.registers // 4 // of_a_warp * 4
    of_a_block = _up(shared_bytes + has.reserved_bytes, has.shared_unit)
    return min(has.blocks, has.warps // warps, warps_by_registers // warps, has.shared_bytes // of_a_block)


def occupancy(architecture: int, threads: int, registers: int, shared_bytes: int) -> float:
    """Resident warps as a part of those that a multiprocessor could hold."""
    blocks = resident_blocks(architecture, threads, registers, shared_bytes)
    return blocks * -(-threads // 32) / MULTIPROCESSORS[architecture].warps
