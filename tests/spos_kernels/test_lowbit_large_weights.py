"""Weights of which L2 does not hold all panels, so that each thread unpacks the one that it multiplies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from isa_support import LOWBIT_ISAS
from lowbit_support import force, poisoned

import spos_kernels as sk
from spos_kernels import _C, lowbit_products


@pytest.mark.parametrize("isa", LOWBIT_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("w_bits", [3, 4, 8])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_convolution(isa: _C.Isa, w_bits: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(w_bits)
    x = torch.randint(0, 256, (2, 128, 9, 7), generator=generator, dtype=torch.int32).to(torch.uint8)
    codes = torch.randint(0, 2**w_bits, (531, 128, 3, 3), generator=generator, dtype=torch.int32).to(torch.uint8)
    force(monkeypatch, isa, "dots")
    monkeypatch.setattr(lowbit_products, "threads_for", lambda *_: threads)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for zero, x_zero in (((2**w_bits - 1) / 2, 0), (1, 131)):
        weight = sk.pack_weight(codes, w_bits, zero_point=zero)
        times = 2 if weight.doubled else 1
        centred = F.pad(x.double() - x_zero, (1, 1, 1, 1))
        exact = F.conv2d(centred, codes.double() - zero, stride=(1, 2)) * times
        with poisoned():
            found = sk.lowbit_conv2d(x, weight, x_quantizer=sk.Quantizer(1.0, 8, x_zero), padding=1, stride=(1, 2))
        assert torch.equal(found, exact.long()), zero


@pytest.mark.parametrize("isa", LOWBIT_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("groups", [1, 4])
def test_product(isa: _C.Isa, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(groups)
    x = torch.randint(0, 16, (77, 1024), generator=generator, dtype=torch.int32).to(torch.uint8)
    codes = torch.randint(0, 16, (611, 1024), generator=generator, dtype=torch.int32).to(torch.uint8)
    scale = torch.rand(611, groups, generator=generator).double() + 0.5
    force(monkeypatch, isa, "dots")
    monkeypatch.setattr(lowbit_products, "threads_for", lambda *_: 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    weight = sk.pack_weight(codes, 4, scale=scale if groups > 1 else scale[:, 0], zero_point=7.5)
    with poisoned():
        found = sk.lowbit_matmul(x, weight, x_quantizer=sk.Quantizer(0.25, 4))
    wide = scale.repeat_interleave(1024 // groups, 1)
    torch.testing.assert_close(found.double(), 0.25 * x.double() @ ((codes.double() - 7.5) * wide).T)
