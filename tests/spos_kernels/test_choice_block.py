"""The fused block's numbers: every instruction set against float64, odd shapes, guarded memory, same bits."""

import dataclasses
import sys

import pytest
import torch
from choice_block_support import (
    CHOICES,
    Case,
    Guards,
    Inputs,
    Results,
    assert_accurate,
    copied,
    draw,
    expected,
    map_tensors,
    run,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from isa_support import ISAS
from torch import Tensor

import spos_kernels as sk
from spos_kernels import _C

pytestmark = pytest.mark.usefixtures("one_thread")

MODULE = sys.modules["spos_kernels.choice_block_kernels"]  # sk.choice_block is the function of that name

# Every option with every other; the shape is odd in all its sizes, and narrower than the largest kernel.
OPTIONS = [
    Case(choice, stride, affine=affine, training=training)
    for choice in CHOICES
    for stride in (1, 2)
    for affine in (False, True)
    for training in (False, True)
]
# Maps from one pixel up, and channels below, at and above every vector width, with tails.
SHAPES = [
    Case("3", 1, 9, 2, 1, 1, 1, 1, training=False, affine=True),
    Case("3", 1, 9, 2, 1, 1, 5, 3),
    Case("5", 2, 9, 2, 2, 1, 3, 2),
    Case("7", 1, 8, 6, 1, 1, 7, 3, affine=True),
    Case("x", 1, 9, 6, 1, 1, 5, 3),
    Case("x", 2, 9, 6, 2, 2, 5, 10, affine=True),
    Case("7", 2, 4, 10, 3, 5, 33, 23),
    Case("5", 1, 2, 10, 2, 3, 6, 5),
    Case("3", 2, 1, 6, 5, 7, 34, 34),
    Case("x", 1, 1, 34, 7, 5, 17, 17),
    Case("7", 1, 1, 32, 14, 14, 16, 16),
    Case("3", 1, 2, 34, 14, 13, 33, 17, affine=True),
    Case("5", 2, 2, 16, 14, 15, 24, 32),
    Case("x", 2, 1, 16, 13, 14, 31, 48),
    Case("5", 1, 2, 130, 7, 7, 65, 65),
    Case("x", 1, 2, 130, 3, 5, 33, 65, affine=True),
    Case("3", 2, 2, 64, 7, 8, 80, 96),
    Case("7", 2, 1, 130, 5, 5, 129, 127),
    Case("3", 1, 2, 260, 4, 4, 130, 130),
    Case("7", 1, 4, 48, 28, 28, 24, 24),
]
OFFSETS = [
    Case(choice, stride, height=14, width=14, training=training, offset=10.0)
    for choice in CHOICES
    for stride in (1, 2)
    for training in (False, True)
] + [Case("x", 1, 2, 10, 56, 56, offset=10.0)]
CUMULATIVE = [Case(choice, stride, momentum=None) for choice in CHOICES for stride in (1, 2)]
MOMENTA = [Case("5", 2, momentum=momentum) for momentum in (0.0, 1.0, 1)]


@pytest.fixture
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> _C.Isa:
    monkeypatch.setattr(MODULE, "ISA", request.param)
    return request.param


def run_guarded(inputs: Inputs, case: Case) -> Results:
    """Run the block with everything it reads inside NaN, everything it writes poisoned and guarded."""
    guards = Guards()
    inputs = Inputs(
        guards.channel_slice(inputs.x),
        map_tensors(copied(inputs.branch), lambda tensor, _: guards.slice_of_wider(tensor)),
        guards.channel_slice(inputs.dy),
    )
    with sk.use_backend("cpu"), guards.around_allocations():
        results = run(sk.choice_block, inputs, case)
    guards.assert_intact()
    return results


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name, indirect=True)
@pytest.mark.parametrize("case", OPTIONS + SHAPES + OFFSETS + CUMULATIVE + MOMENTA, ids=str)
def test_float32_is_accurate_in_guarded_memory(case: Case, isa: _C.Isa) -> None:
    inputs, _, _ = expected(case)
    assert_accurate(run_guarded(inputs, case), case)
    with sk.use_backend("cpu"):  # memory of exactly the tensors' sizes, where a sanitizer sees every step outside
        assert_accurate(run(sk.choice_block, inputs.to(torch.float32), case), case)


@pytest.mark.parametrize("case", OPTIONS + SHAPES[:16], ids=str)
def test_float64_is_accurate(case: Case) -> None:
    inputs, exact, _ = expected(case)
    with sk.use_backend("cpu"):
        results = run(sk.choice_block, inputs.to(torch.float64), case)
    for name, right in exact.items():
        error = float((results[name].double() - right.double()).norm())
        assert error <= 1e-12 * max(1.0, float(right.double().norm())), name


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name, indirect=True)
@pytest.mark.parametrize(
    "case",
    [
        Case("5", 1, 4, 96, 14, 14, 48, 48, affine=True),
        Case("x", 2, 2, 34, 15, 14, 33, 40),
        Case("7", 2, 3, 130, 7, 7, 65, 64, affine=True),
        Case("3", 1, 5, 30, 9, 10, 15, 15, training=False, affine=True),
        Case("x", 1, 16, 48, 4, 4, 24, 24),
    ],
    ids=str,
)
def test_the_same_bits_for_any_number_of_threads(case: Case, isa: _C.Isa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "threads_for", lambda _: torch.get_num_threads())
    inputs = draw(case, distance=0)
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        with sk.use_backend("cpu"):
            results.append(run(sk.choice_block, inputs.to(torch.float32), case))
    for other in results[1:]:
        for name, tensor in results[0].items():
            assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "transposed", "expanded", "every other column"])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_layout_of_the_input_is_accepted(layout: str, stride: int) -> None:
    case = Case("3", stride, affine=True)
    inputs, _, _ = expected(case)
    wide = torch.randn(3, 10, 7, 12)
    x = {
        "nchw": lambda: wide[..., :6].contiguous(),
        "nhwc": lambda: wide[..., :6].contiguous(memory_format=torch.channels_last),
        "transposed": lambda: torch.randn(3, 10, 6, 7).transpose(2, 3),
        "expanded": lambda: wide[:1, :, :, :6].expand(3, 10, 7, 6),
        "every other column": lambda: wide.contiguous(memory_format=torch.channels_last)[..., ::2],
    }[layout]().requires_grad_()
    y = sk.choice_block(x, [copied(inputs.branch)], 0, **case.options)
    right = sk.choice_block_reference(x, [copied(inputs.branch)], 0, **case.options)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, right, rtol=1e-5, atol=1e-5)
    # sum().backward() sends an expanded gradient, of stride 0 in every dimension
    ramp = torch.rand(y.shape[-1])
    for loss in (lambda t: t.sum(), lambda t: (t.square() * ramp).sum()):
        (dx,), (right_dx,) = (torch.autograd.grad(loss(t), x, retain_graph=True) for t in (y, right))
        torch.testing.assert_close(dx, right_dx, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("choice", ["5", "x"])
def test_weights_of_any_strides_are_read_and_get_their_gradient(choice: str) -> None:
    case = Case(choice, 2)
    inputs, exact, _ = expected(case)

    def relaid(tensor: Tensor, field: str) -> Tensor:
        if field != "weight":
            return tensor
        return tensor.detach().transpose(2, 3).transpose(0, 1).contiguous().transpose(0, 1).transpose(2, 3)

    branch = map_tensors(copied(inputs.branch), lambda t, f: relaid(t, f).requires_grad_(t.requires_grad))
    assert not branch.main[1].weight.is_contiguous()
    results = run(sk.choice_block, dataclasses.replace(inputs.to(torch.float32), branch=branch), case)
    assert set(results) == set(exact)
    assert_accurate(results, case)


@settings(max_examples=20)
@given(
    st.builds(
        Case,
        choice=st.sampled_from(CHOICES),
        stride=st.sampled_from([1, 2]),
        batch=st.integers(1, 3),
        channels=st.integers(1, 24).map(lambda half: 2 * half),
        height=st.integers(3, 9),
        width=st.integers(4, 9),
        mid=st.integers(1, 40),
        out=st.integers(1, 40),
        affine=st.booleans(),
        training=st.booleans(),
    ),
    st.sampled_from(ISAS),
)
def test_any_shape(case: Case, isa: _C.Isa) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "ISA", isa)
        inputs, _, _ = expected(case)
        assert_accurate(run_guarded(inputs, case), case)
