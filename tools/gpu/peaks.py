"""What three GPUs can do at most, as their maker publishes it. Dense rates, multiply-adds counted as two operations.

A100  SXM4 80 GB: "NVIDIA A100 Tensor Core GPU" datasheet; 5120 bytes a clock out of L2: "NVIDIA A100 Tensor Core GPU
      Architecture" whitepaper.
H100  SXM5: "NVIDIA H100 Tensor Core GPU Architecture" whitepaper; 989 of its 1979 "with sparsity" are the dense rate.
B200  HGX, 1000 W: "NVIDIA Blackwell Architecture Technical Brief", HGX B200 column.

Clocks are those that the stated fp32 rate means: rate / (2 operations x fp32 lanes x multiprocessors), the most that
the datasheet allows. The tensor rates of H100 and B200 are of wgmma and tcgen05; mma.sync, which these kernels use, is
said to reach less (for H100: Luo et al., arXiv 2402.13499), so a bound by tensor cores is far from what can be reached
there. Rates that no source states are left out, and so is the limit that would follow from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Device:
    name: str
    architecture: int
    multiprocessors: int
    memory: float  # bytes a second
    fp32: float  # operations a second
    fp32_lanes: int  # of a multiprocessor
    tensor: Mapping[str, float] = field(default_factory=dict)  # by counter of the emulator
    l2_bytes_a_clock: int | None = None  # read, of the whole device

    @property
    def clock(self) -> float:
        return self.fp32 / (2 * self.fp32_lanes * self.multiprocessors)


def _tensor(fp16: float, tf32: float, int8: float, int4: float | None, bits: float | None) -> dict[str, float]:
    rates = {"mma_f16": fp16, "mma_bf16": fp16, "mma_tf32": tf32, "mma_s8": int8, "mma_u8s8": int8}
    if int4:
        rates |= {"mma_s4": int4, "mma_u4s4": int4}
    return rates | ({"mma_b1": bits} if bits else {})


DEVICES = (
    Device("A100", 80, 108, 2.039e12, 19.5e12, 64, _tensor(312e12, 156e12, 624e12, 1248e12, 4992e12), 5120),
    Device("H100", 90, 132, 3.35e12, 66.9e12, 128, _tensor(989.4e12, 494.7e12, 1978.9e12, None, None)),
    Device("B200", 100, 148, 8e12, 80e12, 128, _tensor(2250e12, 1100e12, 4500e12, None, None)),
)

# Multiply-adds of one instruction of a warp.
MULTIPLY_ADDS = {
    "mma_f16": 16 * 8 * 16,
    "mma_bf16": 16 * 8 * 16,
    "mma_tf32": 16 * 8 * 8,
    "mma_s8": 16 * 8 * 32,
    "mma_u8s8": 16 * 8 * 32,
    "mma_s4": 16 * 8 * 64,
    "mma_u4s4": 16 * 8 * 64,
    "mma_b1": 16 * 8 * 256,
}
# Of all of these: four schedulers issue an instruction each, and shared memory gives 128 bytes, in a clock
# ("CUDA C++ Best Practices Guide").
ISSUES_A_CLOCK = 4
SECTOR = 32
