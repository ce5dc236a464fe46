"""Packed weights that end with the memory that may be read, and sums that end with what 32 bits hold."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from isa_support import LOWBIT_ISAS
from lowbit_support import force

import spos_kernels as sk
from spos_kernels import _C

# Tensors end where a page begins that may not be read: who reads on gets a signal.
PROGRAM = """
import ctypes, mmap, torch
import spos_kernels as sk
from spos_kernels import _C, lowbit_products

libc = ctypes.CDLL(None, use_errno=True)
kept = []

def guarded(tensor):
    size = tensor.numel() * tensor.element_size()
    whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, whole + mmap.PAGESIZE)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(begin + whole), mmap.PAGESIZE, 0) == 0
    kept.append(memory)
    at = (ctypes.c_uint8 * size).from_address(begin + whole - size)
    return torch.frombuffer(at, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)

lowbit_products.methods_of = lambda *_: ("dots",)
lowbit_products.ISA = _C.Isa.ISA
for bits in (1, 2, 3, 4, 5, 8):
    for inputs, groups in ((24, 3), (144, 2), (64, 1), (40, 1), (256, 2), (72, 9)):
        for outputs, rows in ((16, 16), (3, 5), (33, 1)):
            codes = torch.randint(0, 2**bits, (outputs, inputs), dtype=torch.int32).to(torch.uint8)
            plain = sk.pack_weight(codes, bits, scale=torch.ones(outputs, groups))
            parts = (bits, plain.shape, plain.sums, plain.twice_zero, plain.scale)
            weight = sk.PackedWeight(guarded(plain.packed), *parts)
            x = torch.randint(0, 256, (rows, inputs), dtype=torch.int32).to(torch.uint8)
            exact = x.double() @ (codes.double() - 2 ** (bits - 1)).T
            assert torch.equal(sk.lowbit_matmul(guarded(x), weight).double(), exact), (bits, inputs, groups, outputs)
print("done")
"""


@pytest.mark.parametrize("isa", LOWBIT_ISAS, ids=lambda isa: isa.name)
def test_nothing_is_read_behind_the_weights(isa: _C.Isa) -> None:
    program = PROGRAM.replace("Isa.ISA", f"Isa.{isa.name}")
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr


@pytest.mark.parametrize("isa", LOWBIT_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(("zero_point", "x_zero"), [(1.5, 128), (0, 0), (3, 255), (1.5, 0)])
def test_sums_as_large_as_they_may_be(
    isa: _C.Isa, zero_point: float, x_zero: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """x is not centred while it is multiplied: that sum may be larger than the result, and than 32 bits."""
    inputs = 4_200_000
    force(monkeypatch, isa, "dots")
    codes = torch.full((3, inputs), 3, dtype=torch.uint8)
    codes[1] = 0
    codes[2, ::2] = 1
    x = torch.full((2, inputs), 255, dtype=torch.uint8)
    x[1] = 0
    weight = sk.pack_weight(codes, 2, zero_point=zero_point)
    times = 2 if weight.doubled else 1
    exact = (x.double() - x_zero) @ (codes.double() - zero_point).T * times
    found = sk.lowbit_matmul(x, weight, x_quantizer=sk.Quantizer(1.0, 8, x_zero))
    assert torch.equal(found, exact.long())
