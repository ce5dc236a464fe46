"""lowbit_conv2d: integers exact, floats to the bit as the plain reference, on every instruction set and method."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from isa_support import LOWBIT_ISAS
from lowbit_support import Draws, force, poisoned, run_everywhere, same
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import spos_kernels as sk
from spos_kernels import _C, lowbit_methods, lowbit_products


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
    draws = Draws(seed, dtype)
    calls = [call for call in (draws.conv2d() for _ in range(40)) if call is not None]
    assert len(calls) > 20
    for x, weight, options in calls:
        expected = sk.lowbit_conv2d_reference(x, weight, **options)
        run_everywhere(
            monkeypatch,
            ("dots", "bits"),
            isa,
            partial(sk.lowbit_conv2d, x, weight, **options),
            expected,
        )


@pytest.mark.parametrize("isa", LOWBIT_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("w_bits", range(1, 9))
def test_every_pair_of_widths_is_exact_at_its_extremes(
    isa: _C.Isa, w_bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for x_bits in range(1, 9):
        most_x, most_w = 2**x_bits - 1, 2**w_bits - 1
        x = torch.tensor([0, most_x], dtype=torch.uint8).repeat(1, 69, 3, 2)
        codes = torch.tensor([most_w, 0, most_w], dtype=torch.uint8).repeat(9, 69, 2, 1)
        codes[1], codes[2] = 0, most_w
        for zero in (None, most_w / 2):
            weight = sk.pack_weight(codes, w_bits, zero_point=zero)
            times = 2 if weight.doubled else 1
            centre = 2 ** (w_bits - 1) if zero is None else zero
            exact = F.conv2d(x.double(), codes.double() - centre, padding=1) * times
            for method in ("dots", "bits"):
                force(monkeypatch, isa, method)
                found = sk.lowbit_conv2d(x, weight, x_quantizer=sk.Quantizer(1.0, x_bits), padding=1)
                assert torch.equal(found, exact.long()), (x_bits, zero, method)


def test_the_reference_is_the_formula() -> None:
    """With plain tensors and none of the operation's own code."""
    draws = Draws(7)
    x, codes = draws.codes(3, 2, 6, 5, 4), draws.codes(2, 4, 3, 3, 3)
    scale, bias = torch.rand(4) + 0.5, torch.randn(4)
    weight = sk.pack_weight(codes, 2, scale=scale, zero_point=1.5)
    options = {"stride": 2, "padding": 1, "groups": 2}
    found = sk.lowbit_conv2d_reference(x, weight, x_quantizer=sk.Quantizer(0.25, 3, 2), bias=bias, relu=True, **options)
    floats = (codes.double() - 1.5) * scale.double()[:, None, None, None]
    expected = F.conv2d((x.double() - 2) * 0.25, floats, bias.double(), 2, 1, 1, 2).relu()
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["dots", "bits"])
@pytest.mark.parametrize("depthwise", [False, True])
def test_any_number_of_threads_gives_the_same_bits(
    method: str, depthwise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = Draws(1)
    channels, inputs = (33, 1) if depthwise else (70, 33)
    x = draws.codes(3, 3, 33, 17, 9)
    weight = draws.weight(2, True, channels, inputs, 3, 3)
    options: dict[str, Any] = {"x_quantizer": sk.Quantizer(0.1, 3), "padding": 1, "groups": 33 if depthwise else 1}
    options |= {"bias": torch.randn(channels), "out_quantizer": sk.Quantizer(2.0, 4), "keep_float": True}
    expected = sk.lowbit_conv2d_reference(x, weight, **options)
    force(monkeypatch, _C.best_isa(), method)
    for threads in (1, 2, 3, 8):
        monkeypatch.setattr(lowbit_products, "threads_for", lambda *_, n=threads: n)
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        assert same(sk.lowbit_conv2d(x, weight, **options), expected), threads


def test_slices_of_wider_maps_are_read_in_place() -> None:
    wide = Draws(2).codes(4, 2, 100, 6, 5).contiguous(memory_format=torch.channels_last)
    weight = sk.pack_weight(Draws(3).codes(3, 8, 37, 3, 3), 3, scale=torch.rand(8))
    x = wide[:, 11:48]
    options: dict[str, Any] = {"x_quantizer": sk.Quantizer(0.5, 4), "padding": 1}
    assert same(sk.lowbit_conv2d(x, weight, **options), sk.lowbit_conv2d_reference(x.clone(), weight, **options))
    odd = wide[:, :37, ::2]  # rows that do not follow each other
    assert same(sk.lowbit_conv2d(odd, weight, **options), sk.lowbit_conv2d_reference(odd.clone(), weight, **options))


def test_floats_are_quantized_as_the_reference_does_it() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e30, -1e30, 0.25, 0.75, 1.25, -0.0])
    weight = sk.pack_weight(torch.eye(9, dtype=torch.uint8)[:, :, None, None].contiguous(), 1, zero_point=0)
    for zero in (0, 3):
        found = sk.lowbit_conv2d(x.view(1, 9, 1, 1), weight, x_quantizer=sk.Quantizer(0.5, 3, zero))
        most, half = 7 - zero, [0, 2, 2]  # 0.5, 1.5 and 2.5 steps, half to even
        assert found.flatten().tolist() == [-zero, most, -zero, most, -zero, *half, 0]


def test_rounding_is_that_of_a_division() -> None:
    """At ties of scales that are no powers of two, and next to them."""
    for scale in (0.1, 0.37, 7.3):
        step = torch.tensor(scale)
        ties = (torch.arange(255) + 0.5) * step
        x = torch.cat([ties, torch.nextafter(ties, ties - 1), torch.nextafter(ties, ties + 1)])
        weight = sk.pack_weight(torch.ones(1, 1, 1, 1, dtype=torch.uint8), 1, zero_point=0)
        found = sk.lowbit_conv2d(x.view(1, 1, 1, -1), weight, x_quantizer=sk.Quantizer(scale, 8))
        assert torch.equal(found.flatten(), (x / step).round().clamp(0, 255).long()), scale


@pytest.mark.parametrize("isa", LOWBIT_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_codes_next_to_ties_are_those_of_the_definition(
    isa: _C.Isa, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes are guessed first; here every guess is at a tie, or nearer to one than it is certain."""
    near = torch.tensor([0, 1e-16, 1e-13, 1e-9, 1e-7, 1e-6, 1e-5], dtype=torch.float64)
    ties = torch.arange(-2, 18).double()[:, None] + 0.5
    wanted = torch.cat([ties + near, ties - near], 1).flatten() * 0.37
    scales = torch.rand(len(wanted), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bias = torch.cat([wanted - 13 * scales, torch.tensor([1e30, -1e30, 1e-42, float("inf"), float("nan")]).double()])
    scales = torch.cat([scales, torch.ones(5).double()]).to(dtype)
    ones = torch.ones(len(bias), 1, 1, 1, dtype=torch.uint8)
    weight, bias = sk.pack_weight(ones, 1, scale=scales, zero_point=0), bias.to(dtype)
    x = torch.full((2, 1, 3, 3), 13, dtype=torch.uint8)
    force(monkeypatch, isa, "dots")
    for scale in (0.37, 1e-30, 1e30, 3e38, 1e-45):
        for zero, relu, keep in ((0, False, False), (3, True, False), (3, False, False), (0, True, True)):
            options: dict[str, Any] = {"x_quantizer": sk.Quantizer(1.0, 4), "bias": bias, "relu": relu,
                                       "out_quantizer": sk.Quantizer(scale, 4, zero)}  # fmt: skip
            found = sk.lowbit_conv2d(x, weight, **options, keep_float=keep)
            expected = sk.lowbit_conv2d_reference(x, weight, **options, keep_float=keep)
            codes, right = (found[1], expected[1]) if keep else (found, expected)
            assert torch.equal(codes, right), (scale, zero, relu)


@pytest.mark.parametrize("isa", LOWBIT_ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_code_next_to_a_tie_is_not_guessed(
    isa: _C.Isa, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row is done again for the sake of one code that float32 cannot tell; the others are far from ties."""
    draws, wrong = Draws(3), 0
    x, out = torch.full((1, 1, 1, 1), 13, dtype=torch.uint8), sk.Quantizer(0.37, 4)
    force(monkeypatch, isa, "dots")
    for at in range(200):
        scales = torch.rand(67, generator=draws.generator).double()
        steps = torch.arange(67).double() % 16
        steps[at % 67] = at % 15 + 0.5 + 1e-7 * (1 if at % 2 else -1)
        scales, bias = scales.to(dtype), (steps * 0.37 - 13 * scales).to(dtype)
        weight = sk.pack_weight(torch.ones(67, 1, 1, 1, dtype=torch.uint8), 1, scale=scales, zero_point=0)
        options: dict[str, Any] = {"x_quantizer": sk.Quantizer(1.0, 4), "bias": bias}
        found = sk.lowbit_conv2d(x, weight, **options, out_quantizer=out)
        assert torch.equal(found, sk.lowbit_conv2d_reference(x, weight, **options, out_quantizer=out)), at
        guess = (13 * (scales / 0.37).float() + (bias / 0.37).float()).round().clamp(0, 15)
        wrong += int((guess != found.flatten()).sum())
    assert wrong > (5 if dtype == torch.float64 else 0)  # else the guesses above were never put to the test


def test_float64_is_for_scales_of_float64() -> None:
    x, codes = Draws(1).codes(2, 1, 3, 2, 2), Draws(0).codes(2, 4, 3, 1, 1)
    narrow, wide = (sk.pack_weight(codes, 2, scale=torch.ones(4).to(t) / 3) for t in (torch.float32, torch.float64))
    how: dict[str, Any] = {"x_quantizer": sk.Quantizer(0.1, 2)}
    assert narrow.dtype == torch.float32 and sk.lowbit_conv2d(x, narrow, **how).dtype == torch.float32
    found = sk.lowbit_conv2d(x, wide, **how)
    sums = sk.lowbit_conv2d(x, sk.pack_weight(codes, 2), **how)
    assert torch.equal(found, sums.double() * (torch.ones(4).double() / 3 * 0.1)[:, None, None])
    bias = torch.rand(4)
    assert same(sk.lowbit_conv2d(x, wide, **how, bias=bias), sk.lowbit_conv2d(x, wide, **how, bias=bias.double()))
    for name, value in (("bias", bias.double()), ("residual", torch.zeros(1, 4, 2, 2).double())):
        with pytest.raises(TypeError, match=rf"{name} has dtype torch\.float64: expected torch\.float32"):
            sk.lowbit_conv2d(x, narrow, **how, **{name: value})
    with pytest.raises(TypeError, match=r"x has dtype torch\.float64: expected torch\.uint8 or torch\.float32"):
        sk.lowbit_conv2d(x.double(), narrow, **how)


@pytest.mark.parametrize("isa", LOWBIT_ISAS, ids=lambda isa: isa.name)
def test_depthwise_sums_beyond_32_bits_are_exact(isa: _C.Isa, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = sk.pack_weight(torch.full((2, 1, 182, 182), 255, dtype=torch.uint8), 8, zero_point=0)
    force(monkeypatch, isa, "dots")
    found = sk.lowbit_conv2d(torch.full((1, 2, 182, 182), 255, dtype=torch.uint8), weight, groups=2)
    assert found.flatten().tolist() == [182 * 182 * 255 * 255] * 2


def test_a_default_dtype_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = sk.pack_weight(Draws(0).codes(2, 4, 3, 1, 1), 2, scale=torch.ones(4))
    x = Draws(1).codes(2, 1, 3, 2, 2)
    expected = sk.lowbit_conv2d(x, weight, x_quantizer=sk.Quantizer(0.5, 2))
    torch.set_default_dtype(torch.float64)
    try:
        found = sk.lowbit_conv2d(x, weight, x_quantizer=sk.Quantizer(0.25, 2))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32 and torch.equal(found, expected / 2)


def test_a_trace_holds_the_operation_and_leaves_the_weight_as_it_was() -> None:
    weight = sk.pack_weight(Draws(0).codes(2, 4, 3, 1, 1), 2, scale=torch.ones(4))
    x, other = Draws(1).codes(2, 1, 3, 2, 2), Draws(2).codes(2, 1, 3, 2, 2)

    def call(x: torch.Tensor) -> Any:
        return sk.lowbit_conv2d(x, weight, x_quantizer=sk.Quantizer(0.125, 2))

    assert torch.equal(make_fx(call)(x)(other), call(other))
    copy.deepcopy(weight)


def test_an_empty_batch_gives_an_empty_result() -> None:
    weight = sk.pack_weight(Draws(0).codes(2, 4, 3, 1, 1), 2, scale=torch.ones(4))
    x = torch.zeros(0, 3, 5, 5, dtype=torch.uint8)
    for run in (sk.lowbit_conv2d, sk.lowbit_conv2d_reference):
        assert run(x, weight, x_quantizer=sk.Quantizer(1.0, 2)).shape == (0, 4, 5, 5)


def test_plans_are_measured_once_and_can_be_read() -> None:
    lowbit_methods._plans.clear()
    lowbit_methods._computed.clear()  # of other tests
    weight = sk.pack_weight(Draws(0).codes(1, 8, 64, 3, 3), 1, scale=torch.ones(8))
    x = Draws(1).codes(1, 1, 64, 6, 6)
    options: dict[str, Any] = {"x_quantizer": sk.Quantizer(1.0, 1), "padding": 1}
    expected = sk.lowbit_conv2d_reference(x, weight, **options)
    with poisoned():
        assert same(sk.lowbit_conv2d(x, weight, **options), expected)
    plans = sk.lowbit_plans()
    (name,) = plans
    assert name.startswith(f"conv 1x64x6x6 to 8, 3x3, padding 1x1, w1a1, {sk.isa()}, ")
    before = dict(lowbit_methods._plans)
    sk.lowbit_conv2d(x, weight, **options)
    assert lowbit_methods._plans == before
    assert "dots" in next(iter(plans.values())) and "bits" in next(iter(plans.values()))


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a")
def test_compiled_and_fake_calls_go_through_an_operator() -> None:
    draws = Draws(4)
    x, weight = draws.codes(2, 2, 4, 5, 5), draws.weight(3, True, 6, 4, 3, 3)
    options: dict[str, Any] = {"x_quantizer": sk.Quantizer(0.5, 2), "padding": 1, "bias": torch.randn(6)}
    options |= {"out_quantizer": sk.Quantizer(0.4, 4), "keep_float": True}

    def call(x: torch.Tensor) -> Any:
        return sk.lowbit_conv2d(x, weight, **options)

    assert same(torch.compile(call, fullgraph=True, backend="eager")(x), call(x))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y, codes = call(mode.from_tensor(x))
    assert (y.shape, y.dtype, codes.dtype) == ((2, 6, 5, 5), torch.float32, torch.uint8)
    assert y.is_contiguous(memory_format=torch.channels_last)
    rows = x.permute(0, 2, 3, 1).reshape(50, 4)
    sizes, numbers = [2, 5, 5, 5, 5, 1, 4, 6, 3, 3, 1, 1, 1, 1, 1, 1], [2, 0, 3, int(weight.doubled), 0, 4, 0]
    tensors = (rows, weight.packed, weight.sums, weight.twice_zero, weight.multiplier(0.5), None, None)
    for multiplier, out_scale, keep in ((None, None, False), (tensors[4], 0.4, True), (tensors[4], None, False)):
        arguments = (*tensors[:4], multiplier, None, None, sizes, numbers, None, None, out_scale, False, keep)
        torch.library.opcheck(torch.ops.spos_kernels.lowbit_products.default, arguments)


def test_use_backend_takes_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(_C, "lowbit_conv2d", refuse)
    weight = sk.pack_weight(Draws(0).codes(2, 4, 3, 1, 1), 2, scale=torch.ones(4))
    x = torch.ones(1, 3, 2, 2, dtype=torch.uint8)
    with sk.use_backend("reference"):
        sk.lowbit_conv2d(x, weight, x_quantizer=sk.Quantizer(1.0, 2))
    with pytest.raises(AssertionError):
        sk.lowbit_conv2d(x, weight, x_quantizer=sk.Quantizer(1.0, 2))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.zeros(1, 4, 5, 5)[0]}, ValueError, "x has shape"),
        ({"x": torch.zeros(1, 4, 5, 5, dtype=torch.int32)}, TypeError, "x has dtype torch.int32"),
        ({"x": torch.zeros(1, 5, 5, 5, dtype=torch.uint8)}, ValueError, "x has 5 channels: expected 4"),
        ({"x": torch.full((1, 4, 5, 5), 4, dtype=torch.uint8)}, ValueError, "more than x_bits bits"),
        ({"x": torch.zeros(1, 4, 2, 2, dtype=torch.uint8), "padding": 0}, ValueError, "that the kernel"),
        ({"stride": 0}, ValueError, "stride = 0"),
        ({"padding": -1}, ValueError, "padding = -1"),
        ({"dilation": (1, 2, 3)}, ValueError, "dilation = "),
        ({"groups": 4}, ValueError, "groups = 4"),
        ({"x_quantizer": sk.Quantizer(0.0, 2)}, ValueError, "x_quantizer.scale = 0.0"),
        ({"x_quantizer": sk.Quantizer(float("nan"), 2)}, ValueError, "x_quantizer.scale = nan"),
        ({"x_quantizer": sk.Quantizer(torch.tensor(1.0), 2)}, TypeError, "x_quantizer.scale is a Tensor"),
        ({"x_quantizer": sk.Quantizer(1e39, 2)}, ValueError, "x_quantizer.scale = 1e\\+39"),
        ({"x": torch.zeros(1, 4, 0, 5, dtype=torch.uint8)}, ValueError, "H and W of at least 1"),
        ({"x_quantizer": sk.Quantizer(1.0, 9)}, ValueError, "x_quantizer.bits = 9"),
        ({"x_quantizer": sk.Quantizer(1.0, 2, 4)}, ValueError, "x_quantizer.zero_point = 4"),
        ({"x_quantizer": (1.0, 2, 0)}, TypeError, "x_quantizer is a tuple"),
        ({"bias": torch.zeros(5)}, ValueError, "bias has shape"),
        ({"bias": torch.zeros(6).double()}, TypeError, "bias has dtype"),
        ({"residual": torch.zeros(1, 6, 5, 4)}, ValueError, "residual has shape"),
        ({"residual": torch.zeros(1, 6, 5, 5, dtype=torch.uint8)}, TypeError, "residual has dtype"),
        ({"residual_quantizer": sk.Quantizer(1.0)}, ValueError, "without a residual"),
        ({"keep_float": True}, ValueError, "without out_quantizer"),
        ({"weight": "w"}, TypeError, "weight is a str"),
        ({"stride": ([1], 1)}, ValueError, "stride = "),
        ({"padding": 2**30}, ValueError, "the result has shape"),
        ({"x_quantizer": sk.Quantizer([1.0], 2)}, TypeError, "x_quantizer.scale is a list"),
        ({"x_quantizer": sk.Quantizer(1.0, {})}, TypeError, "x_quantizer.bits = {}"),
        ({"x": torch.zeros(1, 4, 5, 5, dtype=torch.uint8).to_sparse()}, TypeError, "x has layout torch.sparse_coo"),
        ({"x": torch.zeros(1, 4, 5, 5, dtype=torch.uint8, device="meta")}, TypeError, "x is on the meta device"),
        ({"relu": "yes"}, TypeError, "relu is a str"),
        ({"keep_float": torch.ones(2)}, TypeError, "keep_float is a Tensor"),
        ({"weight": sk.pack_weight(torch.zeros(2, 4, dtype=torch.uint8), 2)}, ValueError, "expected 4 dimensions"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], error: type[Exception], words: str) -> None:
    arguments: dict[str, Any] = {
        "x": torch.zeros(1, 4, 5, 5, dtype=torch.uint8),
        "weight": sk.pack_weight(torch.zeros(6, 4, 3, 3, dtype=torch.uint8), 2, scale=torch.ones(6)),
        "x_quantizer": sk.Quantizer(1.0, 2),
        "padding": 1,
    }
    sk.lowbit_conv2d(**arguments)
    with pytest.raises(error, match=words):
        sk.lowbit_conv2d(**(arguments | change))
    with pytest.raises(error, match=words):
        sk.lowbit_conv2d_reference(**(arguments | change))


def test_options_for_floats_are_refused_where_the_weight_has_no_scale() -> None:
    weight = sk.pack_weight(torch.zeros(6, 4, 1, 1, dtype=torch.uint8), 2)
    x = torch.zeros(1, 4, 5, 5, dtype=torch.uint8)
    for options in ({"relu": True}, {"bias": torch.zeros(6)}, {"out_quantizer": sk.Quantizer(1.0)}):
        with pytest.raises(ValueError, match="for a weight without a scale"):
            sk.lowbit_conv2d(x, weight, x_quantizer=sk.Quantizer(1.0, 2), **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"y": None}, "y_sums, y, y_codes"),
        ({"y_sums": torch.empty(4, 6, dtype=torch.int64)}, "y_sums, y, y_codes"),
        ({"multiplier": None}, "y_sums, y, y_codes"),
        ({"sizes": (2**20, 2**22, 2**22, 1, 1, 1, 8, 1, 1, 1, 2**31 - 1, 2**31 - 1, 0, 0, 1, 1)}, "more elements"),
        ({"sizes": (1, 2, 2, 2, 2, 1, 4, 6, 65536, 65536, 1, 1, 32768, 32768, 1, 1)}, "sizes"),
        ({"sizes": (1, 2, 2, 1, 1, 1, 4, 6, 3, 3, 2, 2, 0, 0, 1, 1)}, "the output's do not follow"),
        ({"sizes": (1, 2, 2, 2, 2, 1, 4, 6, 2**40, 1, 1, 1, 0, 0, 1, 1)}, "positive integers below"),
        ({"numbers": (8, 0, 2, 0, 0, 8, -(2**31))}, "residual_zero"),
        ({"twice_zero": torch.full((1, 6), 9, dtype=torch.int32)}, "twice_zero"),
        ({"packed": torch.zeros(6, 2, dtype=torch.uint8)}, "packed"),
        ({"x": torch.zeros(4, 5, dtype=torch.uint8)}, "x"),
    ],
)
def test_the_extension_keeps_memory_safe(change: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {
        "x": torch.zeros(4, 4, dtype=torch.uint8),
        "packed": torch.zeros(6, 1, dtype=torch.uint8),
        "sums": torch.zeros(1, 6, dtype=torch.int32),
        "twice_zero": torch.zeros(1, 6, dtype=torch.int32),
        "multiplier": torch.ones(1, 6),
        "bias": None,
        "residual": torch.zeros(4, 6, dtype=torch.uint8),
        "y_sums": None,
        "y": torch.empty(4, 6),
        "y_codes": None,
        "sizes": (1, 2, 2, 2, 2, 1, 4, 6, 1, 1, 1, 1, 0, 0, 1, 1),
        "numbers": (8, 0, 2, 0, 0, 8, 0),
        "scales": (None, 1.0, None),
        "relu": False,
        "method": 0,
        "isa": _C.best_isa(),
        "threads": 1,
    }
    _C.lowbit_conv2d(**arguments)
    with pytest.raises(ValueError, match=words):
        _C.lowbit_conv2d(**(arguments | change))
