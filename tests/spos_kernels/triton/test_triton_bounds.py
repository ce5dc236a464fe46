"""The check that all tests of this folder run under finds what it is for."""

from __future__ import annotations

import pytest
import torch
import triton.language as tl
from bounds_support import checked_bounds

from spos_kernels.cuda.modules import is_interpreted
from spos_kernels.triton.launch import fixed, kernel

pytestmark = pytest.mark.skipif(not is_interpreted(), reason="for Triton's interpreter")


@kernel(fixed(BLOCK=8))
def copy_kernel(source, target, size, shift, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at + shift, mask=at < size, other=0.0), mask=at < size)


@kernel(fixed(BLOCK=1))
def count_kernel(counter, shift, BLOCK: tl.constexpr):
    tl.atomic_add(counter + shift, 1)


@kernel(fixed(BLOCK=4))
def through_table_kernel(table, target, size, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    source = tl.load(table).to(tl.pointer_type(tl.float32))
    tl.store(target + at, tl.load(source + at, mask=at < size, other=0.0))


@pytest.mark.parametrize(
    ("size", "shift", "wrong"),
    [(5, 0, ""), (6, 0, "reads"), (5, 1, "reads"), (5, -1, "reads"), (4, 1, "")],
)
def test_every_element_read_is_one_of_the_argument(
    size: int, shift: int, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slice in the middle of a tensor: what lies beside it belongs to nobody."""
    source, target = torch.arange(10.0)[3:8], torch.empty(8)
    with checked_bounds(monkeypatch) as bounds:
        if wrong:
            with pytest.raises(Exception, match=f"copy_kernel {wrong} outside of its tensors: 1 of {size}"):
                copy_kernel.launch((1,), source, target, size, shift)
        else:
            copy_kernel.launch((1,), source, target, size, shift)
            assert target[:size].tolist() == source[shift : shift + size].tolist()
            assert bounds.checked == 2 * size


def test_writes_and_atomics_are_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with checked_bounds(monkeypatch):
        with pytest.raises(Exception, match="copy_kernel writes outside of its tensors: 1 of 5"):
            copy_kernel.launch((1,), torch.zeros(8), torch.zeros(8)[:4], 5, 0)
        with pytest.raises(Exception, match="count_kernel changes outside of its tensors"):
            count_kernel.launch((1,), torch.zeros(4, dtype=torch.int32)[:2], 2)


def test_addresses_in_tables_are_those_of_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = torch.arange(4.0), torch.empty(4)
    with checked_bounds(monkeypatch):
        table = torch.tensor([source.data_ptr()])
        through_table_kernel.launch((1,), table, target, 4)
        assert torch.equal(target, source)
        table = torch.tensor([source[:3].data_ptr()])
        through_table_kernel.launch((1,), table, target, 3)
    with checked_bounds(monkeypatch), pytest.raises(Exception, match="through_table_kernel reads outside"):
        through_table_kernel.launch((1,), table, target, 3)  # nobody asked for that address here
