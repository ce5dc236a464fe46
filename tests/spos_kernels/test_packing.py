"""pack and unpack: every width round-trips, dense, as the plain references do it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from isa_support import LOWBIT_ISAS
from torch import Tensor

import spos_kernels as sk
from spos_kernels import _C, packing

WIDTHS = range(1, 9)


def codes_of(bits: int, *shape: int) -> Tensor:
    return torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(bits), dtype=torch.int32).to(
        torch.uint8
    )


@pytest.mark.parametrize("isa", LOWBIT_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("bits", WIDTHS)
def test_every_size_round_trips(bits: int, isa: _C.Isa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "ISA", isa)
    for size in (1, 2, 7, 8, 9, 63, 64, 65, 127, 128, 129, 1000):
        codes = codes_of(bits, 3, size)
        packed = sk.pack(codes, bits)
        assert packed.shape == (3, -(-size * bits // 8))
        assert torch.equal(packed, sk.pack_reference(codes, bits))
        assert torch.equal(sk.unpack(packed, bits, size), codes)
        assert torch.equal(sk.unpack_reference(packed, bits, size), codes)


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(1, 8),
    shape=st.lists(st.integers(0, 5), min_size=0, max_size=2),
    size=st.integers(0, 200),
    seed=st.integers(0, 99),
)
def test_unpack_undoes_pack(bits: int, shape: list[int], size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (*shape, size), generator=generator, dtype=torch.int32).to(torch.uint8)
    packed = sk.pack(codes, bits)
    assert torch.equal(packed, sk.pack_reference(codes, bits))
    assert torch.equal(sk.unpack(packed, bits, size), codes)


def test_the_format_is_a_stream_of_bits_lowest_first() -> None:
    packed = sk.pack(torch.tensor([0b101, 0b011, 0b110], dtype=torch.uint8), 3)
    assert packed.tolist() == [0b10_011_101, 0b1]


def test_three_bits_take_three_bits() -> None:
    weight = sk.pack_weight(codes_of(3, 64, 64, 3, 3), 3)
    assert weight.packed.numel() == 64 * 64 * 9 * 3 // 8


def test_other_layouts_are_packed_as_they_read() -> None:
    codes = codes_of(5, 40, 30)
    assert torch.equal(sk.pack(codes.T, 5), sk.pack(codes.T.contiguous(), 5))
    packed = sk.pack(codes, 5)
    wide = torch.zeros(40, 2 * packed.shape[1], dtype=torch.uint8)
    wide[:, ::2] = packed
    assert torch.equal(sk.unpack(wide[:, ::2], 5, 30), codes)


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 3, 2)])
def test_a_weight_unpacks_to_its_codes(shape: tuple[int, ...]) -> None:
    codes = codes_of(4, *shape)
    assert torch.equal(sk.unpack_weight(sk.pack_weight(codes, 4)), codes)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: sk.pack(torch.zeros(3, dtype=torch.uint8), 0),
            ValueError,
            "bits = 0: expected an integer",
        ),
        (lambda: sk.pack(torch.zeros(3, dtype=torch.uint8), 9), ValueError, "bits = 9"),
        (lambda: sk.pack(torch.zeros(3, dtype=torch.uint8), True), TypeError, "bits = True"),
        (lambda: sk.pack(torch.zeros(3), 4), TypeError, "codes is of dtype torch.float32"),
        (lambda: sk.pack(torch.full((3,), 4, dtype=torch.uint8), 2), ValueError, "codes: expected values below 2"),
        (lambda: sk.pack(torch.tensor(1, dtype=torch.uint8), 2), ValueError, "codes has no dimension"),
        (lambda: sk.unpack(torch.zeros(3, dtype=torch.uint8), 3, 9), ValueError, "expected 4 bytes"),
        (lambda: sk.unpack(torch.zeros(3, dtype=torch.uint8), 3, -1), ValueError, "size = -1"),
        (lambda: sk.unpack([1], 3, 1), TypeError, "packed is a list"),
        (lambda: sk.pack(torch.zeros(3, dtype=torch.uint8).to_sparse(), 2), TypeError, "codes has layout"),
        (lambda: sk.pack_weight(codes_of(4, 4, 32), 4, zero_point="a"), TypeError, "zero_point = 'a'"),
        (lambda: sk.pack_weight(codes_of(4, 4, 32), 4, zero_point=[1, 2]), TypeError, r"zero_point = \[1, 2\]"),
        (lambda: sk.pack_weight(codes_of(4, 4, 32), 4, zero_point=1j), TypeError, "zero_point = 1j"),
        (lambda: sk.pack_weight(codes_of(4, 4, 32), 4, zero_point=10**400), ValueError, "multiples of ½"),
    ],
)
def test_bad_arguments_are_named(call: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale": torch.ones(3)}, "scale has shape"),
        ({"scale": torch.full((4,), float("nan"))}, "scale has a value that is not finite"),
        ({"scale": torch.ones(4, 3)}, "scale has 3 groups"),
        ({"zero_point": 0.25}, "multiples of ½"),
        ({"zero_point": -1}, "zero_point = -1"),
        ({"zero_point": 17}, "zero_point = 17"),
        ({"zero_point": torch.zeros(4, 2)}, "zero_point has 2 groups"),
    ],
)
def test_bad_weights_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sk.pack_weight(codes_of(4, 4, 32), 4, **options)  # type: ignore[arg-type]


def test_a_packed_weight_that_disagrees_with_itself_is_refused() -> None:
    weight = sk.pack_weight(codes_of(4, 4, 32), 4, scale=torch.ones(4))
    for name, value, error in (
        ("packed", weight.packed[:, :-1].contiguous(), ValueError),
        ("packed", weight.packed[:-1], ValueError),
        ("packed", weight.packed.to(torch.int8), TypeError),
        ("bits", 9, ValueError),
        ("bits", 3, ValueError),
        ("shape", (4, 33), ValueError),
        ("shape", (4,), ValueError),
        ("sums", weight.sums.long(), TypeError),
        ("twice_zero", weight.twice_zero[:, :3].contiguous(), ValueError),
        ("scale", weight.scale.half(), TypeError),
    ):
        with pytest.raises(error, match=name if name not in ("bits", "shape") else "bits|shape|packed"):
            dataclasses.replace(weight, **{name: value})
