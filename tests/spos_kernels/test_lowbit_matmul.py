"""lowbit_matmul: exact, by every method, with scales of rows and of groups of inputs, up to the longest sums."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from isa_support import LOWBIT_ISAS
from lowbit_support import Draws, force, run_everywhere, same

import spos_kernels as sk
from spos_kernels import _C, lowbit_products


@pytest.fixture(autouse=True)
def _fresh_plans() -> Any:
    yield
    lowbit_products._prepare.cache_clear()


@pytest.mark.parametrize("isa", LOWBIT_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_random_calls_equal_the_reference(
    isa: _C.Isa, seed: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = Draws(100 + seed, dtype)
    for _ in range(40):
        x, weight, options = draws.matmul()
        methods = ("dots", "row") if weight.sums.shape[0] > 1 else ("dots", "row", "bits")
        expected = sk.lowbit_matmul_reference(x, weight, **options)
        run_everywhere(
            monkeypatch,
            methods,
            isa,
            partial(sk.lowbit_matmul, x, weight, **options),
            expected,
        )


@pytest.mark.parametrize("isa", LOWBIT_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("method", ["dots", "row", "bits"])
def test_the_longest_sums_are_exact(isa: _C.Isa, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """65,793 products of 255 by -128, or 33,025 of 255 by 255, are the last that 32 bits hold; other zeros give results
    that are wider.
    """
    size = 65793 if method == "dots" else 33025
    force(monkeypatch, isa, method)
    x = torch.full((1, size), 255, dtype=torch.uint8)
    for code, zero in ((0, None), (255, None), (255, 0), (0, 256), (255, 127.5), (0, 127.5)):
        weight = sk.pack_weight(torch.full((3, size), code, dtype=torch.uint8), 8, zero_point=zero)
        centre = 128 if zero is None else zero
        exact = int(size * 255 * (code - centre) * (2 if weight.doubled else 1))
        for quantizer in (sk.Quantizer(1.0, 8), sk.Quantizer(1.0, 8, 255)):
            found = sk.lowbit_matmul(x, weight, x_quantizer=quantizer)
            assert found.tolist() == [[exact if quantizer.zero_point == 0 else 0] * 3]
        found = sk.lowbit_matmul(torch.zeros_like(x), weight, x_quantizer=sk.Quantizer(1.0, 8, 255))
        assert found.tolist() == [[-exact] * 3]


@pytest.mark.parametrize("isa", LOWBIT_ISAS, ids=lambda isa: isa.name)
def test_long_sums_of_few_bits_are_exact(isa: _C.Isa, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = sk.pack_weight(torch.full((5, 140000), 255, dtype=torch.uint8), 8)
    x = torch.ones(1, 140000, dtype=torch.uint8)
    for method in ("dots", "row"):
        force(monkeypatch, isa, method)
        assert sk.lowbit_matmul(x, weight, x_quantizer=sk.Quantizer(1.0, 4)).tolist() == [[140000 * 127] * 5]


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_unused_bits_of_a_row_make_no_difference(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = sk.pack_weight(torch.ones(3, 1, dtype=torch.uint8), bits, zero_point=0)
    weight = dataclasses.replace(weight, packed=weight.packed | (256 - 2**bits))
    x = torch.full((1, 1), 7, dtype=torch.uint8)
    for method in ("dots", "bits", "row"):
        force(monkeypatch, _C.best_isa(), method)
        sk.lowbit_matmul(torch.full((1, 64), 255, dtype=torch.uint8), Draws(0).weight(bits, False, 3, 64))
        assert sk.lowbit_matmul(x, weight).tolist() == [[7] * 3], method


def test_methods_that_could_not_hold_a_sum_are_not_taken() -> None:
    weight = sk.pack_weight(torch.full((3, 33026), 255, dtype=torch.uint8), 8, zero_point=0)
    x = torch.full((1, 33026), 255, dtype=torch.uint8)
    assert sk.lowbit_matmul(x, weight).tolist() == [[33026 * 255 * 255] * 3]


@pytest.mark.parametrize(("bits", "size"), [(1, 2**24 + 4096), (2, 4_500_000), (4, 2_400_000)])
def test_single_rows_of_any_length_are_exact(bits: int, size: int) -> None:
    """Codes in a few lanes only, whose sums are multiplied by their place in the byte before they come together."""
    codes = torch.zeros(1, size, dtype=torch.uint8)
    codes.view(-1)[torch.arange(size) % (512 // bits) < 8] = 2**bits - 1
    weight = sk.pack_weight(codes, bits, zero_point=0)
    for _ in range(2):
        assert sk.lowbit_matmul(torch.zeros_like(codes), weight, x_quantizer=sk.Quantizer(1.0, 1)).tolist() == [[0]]
    assert sk.lowbit_matmul(torch.ones_like(codes), weight, x_quantizer=sk.Quantizer(1.0, 1)).tolist() == [
        [int(codes.sum(dtype=torch.int64))]
    ]


@pytest.mark.parametrize("size", [65794, 131072])
def test_longer_sums_are_refused_by_name(size: int) -> None:
    weight = sk.pack_weight(torch.zeros(2, size, dtype=torch.uint8), 8)
    x = torch.zeros(1, size, dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"at most 65,793 products a sum at 8 by 8 bits, got {size:,}"):
        sk.lowbit_matmul(x, weight)
    narrow = sk.Quantizer(1.0, 4)
    assert sk.lowbit_matmul(x, weight, x_quantizer=narrow).tolist() == [[0, 0]]


def test_any_number_of_threads_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = Draws(5)
    x = draws.codes(8, 3, 520)
    weight = draws.weight(3, True, 200, 520)
    expected = sk.lowbit_matmul_reference(x, weight)
    for method in ("dots", "row", "bits"):
        force(monkeypatch, _C.best_isa(), method)
        for threads in (1, 2, 3, 8):
            monkeypatch.setattr(lowbit_products, "threads_for", lambda *_, n=threads: n)
            monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
            assert same(sk.lowbit_matmul(x, weight), expected), (method, threads)


def test_leading_dimensions_stay() -> None:
    weight = sk.pack_weight(Draws(0).codes(4, 10, 24), 4, scale=torch.rand(10))
    x = Draws(1).codes(4, 2, 3, 24)
    quantizer = sk.Quantizer(0.1, 4)
    found = sk.lowbit_matmul(x, weight, x_quantizer=quantizer)
    assert found.shape == (2, 3, 10)
    assert torch.equal(found.view(6, 10), sk.lowbit_matmul(x.view(6, 24), weight, x_quantizer=quantizer))
    assert sk.lowbit_matmul(x[0, 0], weight, x_quantizer=quantizer).shape == (10,)
    assert sk.lowbit_matmul(x[:, :0], weight, x_quantizer=quantizer).shape == (2, 0, 10)
    strided = torch.zeros(5, 48, dtype=torch.uint8)[:, ::2]
    assert sk.lowbit_matmul(strided, weight, x_quantizer=quantizer).shape == (5, 10)


def test_a_result_of_one_scale_can_be_used_with_another() -> None:
    """What is remembered of a weight belongs to the scale of x."""
    weight = sk.pack_weight(Draws(0).codes(4, 10, 24), 4, scale=torch.rand(10))
    x = Draws(1).codes(4, 2, 24)
    for scale in (0.5, 0.25, 0.5):
        quantizer = sk.Quantizer(scale, 4)
        expected = sk.lowbit_matmul_reference(x, weight, x_quantizer=quantizer)
        assert same(sk.lowbit_matmul(x, weight, x_quantizer=quantizer), expected)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.zeros(2, 25, dtype=torch.uint8), ValueError, "expected \\[..., 24\\]"),
        (torch.tensor(3, dtype=torch.uint8), ValueError, "x has shape \\[\\]"),
        (torch.zeros(2, 24).double(), TypeError, "x has dtype torch.float64"),
        ([1], TypeError, "x is a list"),
    ],
)
def test_bad_arguments_are_named(x: Any, error: type[Exception], words: str) -> None:
    weight = sk.pack_weight(torch.zeros(10, 24, dtype=torch.uint8), 4)
    with pytest.raises(error, match=words):
        sk.lowbit_matmul(x, weight)
