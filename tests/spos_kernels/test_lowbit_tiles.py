"""Products of bytes whose rows, columns and k end anywhere in the tiles of every instruction set."""

from __future__ import annotations

import pytest
import torch
from isa_support import LOWBIT_ISAS
from lowbit_support import force, poisoned

import spos_kernels as sk
from spos_kernels import _C, lowbit_products


@pytest.mark.parametrize("isa", LOWBIT_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("k", [4, 60, 64, 68, 252, 1024, 1028, 2112])
def test_product(isa: _C.Isa, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row of each result is read for every number of rows: a tile's other rows do not change it."""
    force(monkeypatch, isa, "dots")
    generator = torch.Generator().manual_seed(k)
    x = torch.randint(0, 256, (70, k), generator=generator, dtype=torch.int32).to(torch.uint8)
    for outputs in (1, 16, 17, 33, 48, 64, 81):
        codes = torch.randint(0, 8, (outputs, k), generator=generator, dtype=torch.int32).to(torch.uint8)
        weight = sk.pack_weight(codes, 3, zero_point=4)
        exact = x.long() @ (codes.long() - 4).T
        for rows in (1, 15, 16, 17, 31, 32, 33, 48, 70):
            with poisoned():
                found = sk.lowbit_matmul(x[:rows], weight, x_quantizer=sk.Quantizer(1.0, 8))
            assert torch.equal(found, exact[:rows]), (outputs, rows)


@pytest.mark.parametrize("isa", LOWBIT_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(("channels", "size"), [(4, 5), (64, 17), (96, 7), (128, 4), (192, 9)])
@pytest.mark.parametrize("stride", [1, 2])
def test_windows(isa: _C.Isa, channels: int, size: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of pixels that are evenly apart, of those at the map's edges, of several images in one tile."""
    force(monkeypatch, isa, "dots")
    monkeypatch.setattr(lowbit_products, "threads_for", lambda *_: 1)
    generator = torch.Generator().manual_seed(channels)
    x = torch.randint(0, 256, (2, channels, size, size), generator=generator, dtype=torch.int32).to(torch.uint8)
    codes = torch.randint(0, 16, (40, channels, 3, 3), generator=generator, dtype=torch.int32).to(torch.uint8)
    weight = sk.pack_weight(codes, 4, zero_point=8)
    padded = torch.nn.functional.pad(x.double() - 7, (1, 1, 1, 1))
    exact = torch.nn.functional.conv2d(padded, codes.double() - 8, stride=stride)
    with poisoned():
        found = sk.lowbit_conv2d(x, weight, x_quantizer=sk.Quantizer(1.0, 8, 7), stride=stride, padding=1)
    assert torch.equal(found, exact.long())
