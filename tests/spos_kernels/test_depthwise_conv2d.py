"""The kernels' numbers: every instruction set against float64, odd shapes and layouts, guarded memory, same bits."""

import pytest
import torch
from depthwise_support import (
    CASES,
    PADDINGS,
    PASSES,
    Case,
    Guarded,
    assert_accurate,
    run_pass,
    shapes_of,
    torch_pass,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from isa_support import ISAS
from torch import Tensor

import spos_kernels as sk
from spos_kernels import _C


def random_inputs(name: str, case: Case, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    first, second, _ = shapes_of(name, case)
    return torch.randn(first, dtype=dtype), torch.randn(second, dtype=dtype)


def guard(tensor: Tensor, is_weight: bool) -> Tensor:
    return tensor if is_weight else Guarded(tuple(tensor.shape), tensor.dtype, fill=tensor).view


def run_guarded(name: str, case: Case, inputs: tuple[Tensor, Tensor], isa: _C.Isa, threads: int = 2) -> Tensor:
    """Run a pass on channel slices with NaN around them, into a poisoned output; check its guards, return a copy."""
    first, second = guard(inputs[0], False), guard(inputs[1], name != "wgrad")
    _, _, shape = shapes_of(name, case)
    if name == "wgrad":  # the weight's gradient is contiguous: poison it and its surroundings
        memory = torch.full((3, *shape), float("nan"), dtype=first.dtype)
        run_pass(name, case, (first, second), memory[1], isa, threads)
        assert memory[0].isnan().all() and memory[2].isnan().all(), "written outside the output"
        return memory[1].clone()
    output = Guarded(shape, first.dtype)
    run_pass(name, case, (first, second), output.view, isa, threads)
    output.assert_guards_intact()
    return output.view.clone()


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("case", CASES + PADDINGS, ids=str)
def test_float32_is_accurate_in_guarded_channel_slices(name: str, case: Case, isa: _C.Isa) -> None:
    inputs = random_inputs(name, case)
    assert_accurate(name, case, inputs, run_guarded(name, case, inputs, isa))


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("case", CASES[:12], ids=str)
def test_float64_is_accurate(name: str, case: Case) -> None:
    inputs = random_inputs(name, case, torch.float64)
    result = run_guarded(name, case, inputs, _C.Isa.portable)
    torch.testing.assert_close(result, torch_pass(name, case, inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize(
    "case", [Case(8, 33, 14, 14, 3), Case(5, 16, 13, 9, 5, stride=2), Case(3, 130, 7, 7, 7)], ids=str
)
def test_same_bits_for_every_thread_count_and_from_run_to_run(name: str, case: Case, isa: _C.Isa) -> None:
    inputs = random_inputs(name, case)
    results = [run_guarded(name, case, inputs, isa, threads) for threads in (1, 2, 3, 8, 8, 1)]
    for result in results[1:]:
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("name", PASSES)
def test_integers_are_exact(name: str) -> None:
    case = Case(4, 40, 15, 11, 5)
    inputs = tuple(torch.randint(-8, 9, shape).float() for shape in shapes_of(name, case)[:2])
    for isa in ISAS:
        assert torch.equal(run_guarded(name, case, inputs, isa), torch_pass(name, case, inputs))


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((1, 6, 5, 4), (12345, 1, 24, 6)),  # one image: its stride means nothing
        ((2, 6, 1, 4), (24, 1, 77777, 6)),  # one row
        ((2, 6, 5, 1), (30, 1, 6, 99999)),  # one column
        ((2, 1, 5, 4), (20, 31, 4, 1)),  # one channel
        ((1, 1, 1, 1), (7, 11, 13, 17)),
    ],
)
def test_strides_of_single_elements_are_never_read(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    weight = torch.randn(shape[1], 1, 3, 3)
    x = torch.randn(shape)
    strange = torch.full((64_000,), float("nan"))[: x.numel()].as_strided(shape, strides)
    strange.copy_(x)
    output = torch.full((x.numel(),), float("nan")).as_strided(shape, strides)
    _C.depthwise_conv2d_forward(strange, weight, output, 1, 1, _C.best_isa(), 1)
    expected = sk.depthwise_conv2d_reference(x, weight)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(sk.depthwise_conv2d(strange, weight), expected)


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "slice", "transposed", "expanded", "every other column"])
def test_every_layout_is_accepted(layout: str) -> None:
    wide = torch.randn(3, 40, 12, 12)
    x = {
        "nchw": lambda: wide[:, :20].contiguous(),
        "nhwc": lambda: wide[:, :20].contiguous(memory_format=torch.channels_last),
        "slice": lambda: wide.contiguous(memory_format=torch.channels_last)[:, 7:27],
        "transposed": lambda: wide[:, :20].transpose(2, 3),
        "expanded": lambda: wide[:1, :20].expand(3, 20, 12, 12),
        "every other column": lambda: wide.contiguous(memory_format=torch.channels_last)[:, :20, :, ::2],
    }[layout]().requires_grad_()
    weight = torch.randn(20, 1, 5, 5).transpose(2, 3).requires_grad_()
    y, expected = sk.depthwise_conv2d(x, weight), sk.depthwise_conv2d_reference(x, weight)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    # sum().backward() sends an expanded gradient, of stride 0 in every dimension
    gradients = torch.autograd.grad(y.sum(), (x, weight))
    for gradient, right in zip(gradients, torch.autograd.grad(expected.sum(), (x, weight)), strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-4, atol=1e-4)


def test_a_channel_slice_is_read_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = torch.randn(2, 24, 8, 8).contiguous(memory_format=torch.channels_last)
    x, weight = wide[:, 5:21], torch.randn(16, 1, 3, 3)
    seen: list[int] = []
    kernel = _C.depthwise_conv2d_forward
    monkeypatch.setattr(_C, "depthwise_conv2d_forward", lambda x, *rest: (seen.append(x.data_ptr()), kernel(x, *rest)))
    sk.depthwise_conv2d(x, weight)
    assert seen == [x.data_ptr()]


def test_an_empty_batch_has_an_empty_result_and_a_zero_weight_gradient() -> None:
    x = torch.empty(0, 8, 9, 9, requires_grad=True)
    weight = torch.randn(8, 1, 3, 3, requires_grad=True)
    y = sk.depthwise_conv2d(x, weight, stride=2)
    assert y.shape == (0, 8, 5, 5)
    dx, dweight = torch.autograd.grad(y.sum(), (x, weight))
    assert dx.shape == x.shape
    assert torch.equal(dweight, torch.zeros_like(weight))


@settings(max_examples=12)
@given(
    st.builds(
        Case,
        batch=st.integers(1, 2),
        channels=st.integers(1, 70),
        height=st.integers(1, 12),
        width=st.integers(1, 12),
        kernel=st.sampled_from([3, 5, 7]),
        stride=st.sampled_from([1, 2]),
    ),
    st.sampled_from(ISAS),
)
def test_any_shape(case: Case, isa: _C.Isa) -> None:
    for name in PASSES:
        inputs = random_inputs(name, case)
        assert_accurate(name, case, inputs, run_guarded(name, case, inputs, isa))
