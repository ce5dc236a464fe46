"""The numbers of fake quantization: every instruction set, to the bit where the operation has but one right answer."""

from typing import Any

import pytest
import torch
from fake_quantize_support import (
    CASES,
    DOREFA,
    EXACT,
    KINDS,
    SMALL,
    Case,
    Kind,
    along,
    arguments,
    assert_accurate_sum,
    assert_right_dorefa,
    options,
    run_backward,
    run_forward,
    scale_of,
)
from isa_support import ISAS

import spos_kernels as sk
from spos_kernels import _C
from spos_kernels.fake_quantize_reference import (
    Call,
    Quantizer,
    check_arguments,
    codes_reference,
    reference,
)

pytestmark = pytest.mark.usefixtures("one_thread")
each_isa = pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
each_case = pytest.mark.parametrize("case", CASES, ids=str)


@each_isa
@pytest.mark.parametrize("kind", EXACT, ids=str)
@each_case
def test_rounding_has_the_bits_of_the_reference(case: Case, kind: Kind, isa: _C.Isa) -> None:
    assert_same_rounding(arguments(case, kind, 4), isa)


@each_isa
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("kind", EXACT, ids=str)
def test_rounding_for_every_number_of_bits(kind: Kind, bits: int, isa: _C.Isa) -> None:
    for case in SMALL:
        assert_same_rounding(arguments(case, kind, bits), isa)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("kind", EXACT, ids=str)
def test_rounding_in_float64(kind: Kind, bits: int) -> None:
    for case in SMALL:
        assert_same_rounding(arguments(case, kind, bits, torch.float64), _C.Isa.portable)


def assert_same_rounding(call: Call, isa: _C.Isa) -> None:
    y, codes = run_forward(call, isa)
    assert torch.equal(y, reference(call))
    assert torch.equal(codes, codes_reference(call))
    dy = torch.randn_like(call.x)
    x = call.x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(reference(call._replace(x=x)), x, dy)
    result, dscale = run_backward(call, dy, isa)
    assert result is not None and torch.equal(result, dx)
    assert dscale is not None
    assert_accurate_sum(call, dy, dscale)


@each_isa
@each_case
def test_dorefa(case: Case, isa: _C.Isa) -> None:
    assert_dorefa(arguments(case, DOREFA, 3), isa)


@each_isa
@pytest.mark.parametrize("bits", range(1, 9))
def test_dorefa_for_every_number_of_bits(bits: int, isa: _C.Isa) -> None:
    for case in SMALL:
        assert_dorefa(arguments(case, DOREFA, bits), isa)


@pytest.mark.parametrize("bits", range(1, 9))
def test_dorefa_in_float64(bits: int) -> None:
    for case in SMALL:
        assert_dorefa(arguments(case, DOREFA, bits, torch.float64), _C.Isa.portable)


def assert_dorefa(call: Call, isa: _C.Isa) -> None:
    dy = torch.randn_like(call.x)
    dx, _ = run_backward(call, dy, isa)
    assert dx is not None
    assert_right_dorefa(call, *run_forward(call, isa), dy, dx)


@each_isa
def test_tanh_is_accurate_to_two_units_in_the_last_place(isa: _C.Isa) -> None:
    x = torch.cat([torch.linspace(0, 12, 100_001), torch.logspace(-38, 1, 100_000), torch.tensor([torch.inf, 3e38])])
    call = check_arguments(x, 8, "dorefa", None, False, None, 0)
    exact = x.double().tanh()
    _, exponent = torch.frexp(exact)
    unit = torch.exp2((exponent - 24).double()).clamp_min(2.0**-149)
    assert ((scale_of(call, isa).double() - exact).abs() <= 2 * unit).all()


@each_isa
@pytest.mark.parametrize("kind", [DOREFA, Kind("pact"), Kind("lsq", True, True)], ids=str)
@pytest.mark.parametrize(
    "case",
    [Case((3, 33_333)), Case((7, 33, 30, 30), 1, (0, 2, 3, 1)), Case((5, 7, 90, 91), 1), Case((300, 70), 0)],
    ids=str,
)
def test_same_bits_for_every_thread_count_and_from_run_to_run(case: Case, kind: Kind, isa: _C.Isa) -> None:
    call = arguments(case, kind, 5)
    dy = torch.randn_like(call.x)
    results: list[Any] = []
    for threads in (1, 2, 3, 8, 1):
        y, codes = run_forward(call, isa, threads)
        results.append([y, codes, *run_backward(call, dy, isa, threads)])
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert (a is None and b is None) or torch.equal(a, b)


@each_isa
@pytest.mark.parametrize("kind", EXACT, ids=str)
def test_one_gradient_alone_has_the_bits_of_both(kind: Kind, isa: _C.Isa) -> None:
    for case in (Case((3, 4097)), Case((4, 33, 9, 9), 1, (0, 2, 3, 1)), Case((9, 40), 0)):
        call = arguments(case, kind, 3)
        dy = torch.randn_like(call.x)
        both, only_dx, only_dscale = (
            run_backward(call, dy, isa, needs=needs) for needs in ((True, True), (True, False), (False, True))
        )
        assert only_dx[1] is None and only_dscale[0] is None
        assert both[0] is not None and only_dx[0] is not None and torch.equal(both[0], only_dx[0])
        assert both[1] is not None and only_dscale[1] is not None and torch.equal(both[1], only_dscale[1])


@each_isa
@pytest.mark.parametrize("axis", [None, 1])
def test_large_tensors_are_written_past_the_caches(axis: int | None, isa: _C.Isa) -> None:
    """At an address of torch's own, which the instructions for it can write to."""
    x = torch.randn(2**17, 65)[:, :64].contiguous()
    step = torch.full((1 if axis is None else 64,), 0.25)
    call = Call(x, step, None, Quantizer(4, "lsq", True, axis))
    y, dx = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    _C.fake_quantize_forward(x, step, None, y, *options(call, isa, 2))
    _C.fake_quantize_backward(x, x, step, None, dx, None, *options(call, isa, 2))
    assert torch.equal(y, (x / 0.25).round().clamp(-8, 7) * 0.25)
    assert torch.equal(dx, torch.where((x >= -2) & (x <= 1.75), x, 0))


@each_isa
def test_columns_of_tensors_beyond_the_caches_near_by(isa: _C.Isa) -> None:
    """Which are gone through row by row."""
    x = torch.randn(2**13, 210)
    step = torch.rand(210) + 0.1
    call = Call(x, step, None, Quantizer(4, "lsq", True, 1))
    y, dx, dstep = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan), torch.full_like(step, torch.nan)
    _C.fake_quantize_forward(x, step, None, y, *options(call, isa, 2))
    _C.fake_quantize_backward(x, x, step, None, dx, dstep, *options(call, isa, 2))
    v = x / step
    assert torch.equal(y, v.round().clamp(-8, 7) * step)
    assert torch.equal(dx, torch.where((v >= -8) & (v <= 7), x, 0))
    slope = torch.where(v <= -8, -8, torch.where(v >= 7, 7, v.round() - v)).double()
    expected = (x.double() * slope).sum(0)
    torch.testing.assert_close(dstep.double() * (2**13 * 7) ** 0.5, expected, rtol=1e-4, atol=1e-3)


@each_isa
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    "case", [Case((70,)), Case((3, 70), 0), Case((9, 33), 1), Case((2, 70, 5, 5), 1, (0, 2, 3, 1))], ids=str
)
def test_nan_stays_nan_and_gets_the_lowest_code(case: Case, kind: Kind, isa: _C.Isa) -> None:
    call = arguments(case, kind, 4)
    hit = torch.zeros(call.x.numel(), dtype=torch.bool)
    hit[[0, 3, 17, 69]] = True
    call = call._replace(x=case.lay_out(torch.where(hit.view(case.shape), torch.nan, call.x)))
    y, codes = run_forward(call, isa)
    assert torch.equal(y.isnan(), reference(call).isnan())
    torch.testing.assert_close(y, reference(call), equal_nan=True, rtol=0, atol=1 if kind is DOREFA else 0)
    assert torch.equal(codes[y.isnan()], torch.full_like(codes[y.isnan()], call.quantizer.low))
    dy = torch.ones_like(call.x)
    dx, dscale = run_backward(call, dy, isa)
    assert dx is not None
    if kind.method == "dorefa":
        assert torch.equal(dx.isnan(), y.isnan())
    else:
        assert not dx[call.x.isnan()].any()
    if kind.method == "lsq":
        assert dscale is not None
        others = [d for d in range(call.x.ndim) if d != call.quantizer.axis]
        assert torch.equal(dscale.isnan(), call.x.isnan().amax(others).view(dscale.shape))


@each_isa
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_a_channel_of_zeros_has_a_value_and_no_gradient(axis: int | None, isa: _C.Isa) -> None:
    x = torch.zeros(5, 40)
    for bits in range(1, 9):
        call = arguments(Case((5, 40), axis), DOREFA, bits)._replace(x=x)
        y, codes = run_forward(call, isa)
        levels = 2**bits - 1
        assert torch.equal(codes, torch.full_like(codes, round(levels / 2)))
        assert torch.equal(y, reference(call))
        dx, _ = run_backward(call, torch.ones_like(x), isa)
        assert dx is not None and not dx.any()


def test_the_codes_and_the_values_belong_together() -> None:
    for kind in EXACT:
        for bits in (1, 4, 8):
            call = arguments(Case((3, 17, 4, 4), 1, (0, 2, 3, 1)), kind, bits)
            zero = 0 if call.zero_point is None else along(call.zero_point, call)
            assert call.learned is not None
            step = call.learned / call.quantizer.high if kind.method == "pact" else call.learned
            y, codes = run_forward(call, _C.best_isa())
            assert torch.equal(y, (codes.float() - zero) * along(step, call))


def test_it_rounds_where_torch_rounds() -> None:
    """With steps that are powers of two, which torch's multiplication by their reciprocals does not change."""
    x = torch.cat([torch.randn(500), torch.arange(-40, 41) / 64])
    for bits, zero_point in ((1, 0), (2, 3), (4, 7), (8, 128)):
        step = torch.tensor(2.0**-5)
        expected = torch.fake_quantize_per_tensor_affine(x, float(step), zero_point, 0, 2**bits - 1)
        assert torch.equal(sk.fake_quantize(x, bits, "lsq", step, zero_point=zero_point), expected)
