"""The sliced kernels' numbers: every instruction set against float64, odd shapes, guarded memory, same bits."""

import pytest
import torch
from depthwise_support import PASSES
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from isa_support import ISAS
from sliced_support import CASES, Case, assert_accurate, run_guarded, shapes_of, torch_pass
from torch import Tensor

import spos_kernels as sk
from spos_kernels import _C

by_name = {"ids": lambda isa: isa.name}


def random_inputs(name: str, case: Case, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    first, second, _ = shapes_of(name, case)
    return torch.randn(first, dtype=dtype), torch.randn(second, dtype=dtype)


@pytest.mark.parametrize("isa", ISAS, **by_name)
@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_is_accurate_in_guarded_slices(name: str, case: Case, isa: _C.Isa) -> None:
    inputs = random_inputs(name, case)
    assert_accurate(name, case, inputs, run_guarded(name, case, inputs, isa))


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("case", CASES[1::2], ids=str)
def test_float64_is_accurate(name: str, case: Case) -> None:
    inputs = random_inputs(name, case, torch.float64)
    result = run_guarded(name, case, inputs, _C.Isa.portable)
    torch.testing.assert_close(result, torch_pass(name, case, inputs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("isa", ISAS, **by_name)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_wgrad_adds_to_what_is_there(case: Case, isa: _C.Isa) -> None:
    first, second, shape = shapes_of("wgrad", case)
    inputs = torch.randint(-4, 5, first).float(), torch.randint(-4, 5, second).float()
    start = torch.randint(-99, 100, shape).float()
    result = run_guarded("wgrad", case, inputs, isa, start=start)
    assert torch.equal(result, torch_pass("wgrad", case, inputs) + start)


@pytest.mark.parametrize("isa", ISAS, **by_name)
@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize(
    "case",
    [
        Case(8, 33, 70, 14, 14),
        Case(5, 16, 20, 13, 9, kernel=3, padding=1),
        Case(13, 130, 120, 7, 7, kernel=3, padding=1),
        Case(2, 96, 130, 9, 9, kernel=3, padding=1),
        Case(3, 70, 130, 7, 7, kernel=3, stride=2, padding=1),
        Case(2, 9, 8, 9, 9, kernel=5, padding=2, groups=3),
    ],
    ids=str,
)
def test_same_bits_for_every_thread_count_and_from_run_to_run(name: str, case: Case, isa: _C.Isa) -> None:
    inputs = random_inputs(name, case)
    results = [run_guarded(name, case, inputs, isa, threads) for threads in (1, 2, 3, 8, 8, 1)]
    for result in results[1:]:
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("isa", ISAS, **by_name)
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_bias_is_added(kernel: int, isa: _C.Isa) -> None:
    case = Case(2, 20, 37, 6, 6, kernel=kernel, more=0)
    x, weight = (torch.randint(-8, 9, shape).float() for shape in shapes_of("forward", case)[:2])
    x, bias = x.to(memory_format=torch.channels_last), torch.randint(-8, 9, (37,)).float()
    y = torch.empty(case.y_shape).to(memory_format=torch.channels_last)
    _C.sliced_conv2d_forward(x, weight, bias, y, 0, 0, 1, 0, 1, isa, 2)
    assert torch.equal(y, torch.nn.functional.conv2d(x, weight, bias))


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "slice", "transposed", "expanded", "every other column", "rows"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_every_layout_is_accepted(kernel: int, layout: str) -> None:
    wide = torch.randn(3, 40, 12, 12)
    nhwc = wide.contiguous(memory_format=torch.channels_last)
    x = {
        "nchw": lambda: wide[:, :20].contiguous(),
        "nhwc": lambda: wide[:, :20].contiguous(memory_format=torch.channels_last),
        "slice": lambda: nhwc[:, 7:27],
        "transposed": lambda: wide[:, :20].transpose(2, 3),
        "expanded": lambda: wide[:1, :20].expand(3, 20, 12, 12),
        "every other column": lambda: nhwc[:, :20, :, ::2],
        "rows": lambda: nhwc[:, :20, 3:9],
    }[layout]().requires_grad_()
    weight = torch.randn(33, 24, kernel, kernel).transpose(2, 3).requires_grad_()
    options = {"out_channels": 18, "out_offset": 5, "in_offset": 3, "padding": kernel // 2}
    y, expected = sk.sliced_conv2d(x, weight, **options), sk.sliced_conv2d_reference(x, weight, **options)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    # sum().backward() sends an expanded gradient, of stride 0 in every dimension
    gradients = torch.autograd.grad(y.sum(), (x, weight))
    for gradient, right in zip(gradients, torch.autograd.grad(expected.sum(), (x, weight)), strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("kernel", "groups"), [(1, 1), (3, 1), (3, 8), (5, 2)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_tensors_are_read_in_place(
    kernel: int, groups: int, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = torch.randn(2, 24, 8, 8).contiguous(memory_format=torch.channels_last)
    x, weight = wide[:, 5:13], torch.randn(20, 12 if groups < 8 else 1, kernel, kernel)
    if channels_last:
        weight = weight.to(memory_format=torch.channels_last)
    seen: list[int] = []
    for name in ("sliced_conv2d_forward", "depthwise_conv2d_forward"):

        def spy(*args: object, original: object = getattr(_C, name)) -> None:
            seen.extend(t.data_ptr() for t in args[:2] if isinstance(t, Tensor))
            original(*args)  # type: ignore[operator]

        monkeypatch.setattr(_C, name, spy)
    sk.sliced_conv2d(x, weight, out_channels=8, padding=kernel // 2, groups=groups)
    assert seen == [x.data_ptr(), weight.data_ptr()]


@pytest.mark.parametrize("kernel", [1, 3])
def test_an_empty_batch_has_an_empty_result_and_a_zero_weight_gradient(kernel: int) -> None:
    x = torch.empty(0, 8, 9, 9, requires_grad=True)
    weight = torch.randn(12, 10, kernel, kernel, requires_grad=True)
    y = sk.sliced_conv2d(x, weight, out_channels=6, stride=2, padding=kernel // 2)
    assert y.shape == (0, 6, 5, 5)
    dx, dweight = torch.autograd.grad(y.sum(), (x, weight))
    assert dx.shape == x.shape
    assert torch.equal(dweight, torch.zeros_like(weight))


@settings(max_examples=20)
@given(
    st.builds(
        Case,
        batch=st.integers(1, 2),
        in_channels=st.integers(1, 70),
        out_channels=st.integers(1, 70),
        height=st.integers(1, 12),
        width=st.integers(1, 12),
        kernel=st.integers(1, 7),
        stride=st.sampled_from([1, 2]),
        padding=st.integers(0, 6),
        groups=st.integers(1, 3),
        more=st.integers(0, 3),
        channels_last=st.booleans(),
    ),
    st.sampled_from(ISAS),
)
def test_any_shape(case: Case, isa: _C.Isa) -> None:
    assume(case.padding < case.kernel and min(case.y_shape) > 0)
    for name in PASSES:
        inputs = random_inputs(name, case)
        assert_accurate(name, case, inputs, run_guarded(name, case, inputs, isa))
