"""The sliced kernels for GPUs: numbers in guarded memory, layouts, device-side widths, errors."""

import pytest
import torch
from cuda_support import CUDA_BACKENDS, DTYPES, device_of
from depthwise_support import PASSES
from sliced_support import CASES, Case, assert_accurate, guarded_weight, shapes_of, torch_pass
from slicing_support import random_inputs, run_sliced_guarded
from torch.library import opcheck

import spos_kernels as sk
from spos_kernels.cuda import sliced_conv2d as kernels

pytestmark = pytest.mark.parametrize("backend", CUDA_BACKENDS)

# Tiles of pixels and channels with and without rests; pixels that are shared out; 16-byte loads of weights.
FEWER = [case for case in CASES if case.batch * case.in_channels * case.out_channels < 100_000] + [
    Case(2, 72, 70, 9, 9, kernel=3, stride=2, padding=1, more=24, channels_last=True),
    Case(1, 40, 72, 6, 7, more=16),
    Case(3, 16, 12, 20, 20),
    Case(2, 16, 16, 16, 16, kernel=3, padding=1, groups=2),
]


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("case", FEWER, ids=str)
def test_float32_is_accurate_in_guarded_slices(name: str, case: Case, backend: str) -> None:
    inputs = random_inputs(name, case, torch.float32, backend)
    assert_accurate(name, case, inputs, run_sliced_guarded(name, case, inputs, backend))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("case", FEWER[::3] + FEWER[-4:], ids=str)
def test_16_bit_elements_are_accurate_in_guarded_slices(
    name: str, case: Case, dtype: torch.dtype, backend: str
) -> None:
    inputs = random_inputs(name, case, dtype, backend)
    assert_accurate(name, case, inputs, run_sliced_guarded(name, case, inputs, backend))


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("case", [FEWER[3], FEWER[-4]], ids=str)
def test_tf32_is_an_option(name: str, case: Case, backend: str) -> None:
    inputs = random_inputs(name, case, torch.float32, backend)
    exact = run_sliced_guarded(name, case, inputs, backend)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        rounded = run_sliced_guarded(name, case, inputs, backend)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert not torch.equal(rounded, exact)
    # Both operands to 11 bits, half a unit in the last place each.
    magnitude = torch_pass(name, case, (inputs[0].double().abs(), inputs[1].double().abs()))
    expected = torch_pass(name, case, (inputs[0].double(), inputs[1].double()))
    assert ((rounded - expected).abs() <= 2**-10 * magnitude).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PASSES)
def test_integers_are_exact_and_runs_are_alike(name: str, dtype: torch.dtype, backend: str) -> None:
    for case in (Case(3, 20, 24, 14, 14), Case(2, 20, 70, 9, 9, kernel=3, stride=2, padding=1)):
        first, second = (torch.randint(-1, 2, shape) for shape in shapes_of(name, case)[:2])
        expected = torch_pass(name, case, (first.double(), second.double()))
        inputs = first.to(device_of(backend), dtype), second.to(device_of(backend), dtype)
        assert torch.equal(run_sliced_guarded(name, case, inputs, backend).double().cpu(), expected)
        inputs = random_inputs(name, case, dtype, backend)
        assert torch.equal(
            run_sliced_guarded(name, case, inputs, backend), run_sliced_guarded(name, case, inputs, backend)
        )


@pytest.mark.parametrize("case", [Case(2, 9, 12, 7, 7, kernel=3, padding=1), Case(3, 20, 12, 15, 15)], ids=str)
def test_wgrad_adds_to_what_is_there(case: Case, backend: str) -> None:
    inputs = random_inputs("wgrad", case, torch.float32, backend)
    start = torch.randn(shapes_of("wgrad", case)[2], device=inputs[0].device)
    overwritten = run_sliced_guarded("wgrad", case, inputs, backend)
    torch.testing.assert_close(run_sliced_guarded("wgrad", case, inputs, backend, start), overwritten + start)


@pytest.mark.parametrize("active", [(0, 5), (1, 1), (20, 70), (33, 64), (40, 0), (99, 99)])
@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("kernel", [1, 3])
def test_widths_in_device_memory(name: str, kernel: int, active: tuple[int, int], backend: str) -> None:
    case = Case(1, 40, 80, 5, 5, kernel, padding=kernel // 2)
    device = device_of(backend)
    inputs = random_inputs(name, case, torch.float32, backend)
    widths = tuple(torch.tensor(width, dtype=torch.int32, device=device) for width in active)
    result = run_sliced_guarded(name, case, inputs, backend, widths=widths)
    ins, outs = min(active[0], 40), min(active[1], 80)
    if not ins or not outs:  # sums of nothing, or nothing at all
        shown = {"forward": result[:, :outs], "dgrad": result[:, :ins], "wgrad": result[:outs, :ins]}[name]
        assert (shown == 0).all() and result.nansum() == 0
        return
    first, second = inputs
    narrow = Case(1, ins, outs, 5, 5, kernel, padding=kernel // 2)
    first = first[:, : outs if name == "dgrad" else ins]
    second = second[:, :outs] if name == "wgrad" else second[:outs, :ins]
    assert_accurate(name, narrow, (first, second), used := result[tuple(map(slice, shapes_of(name, narrow)[2]))])
    assert result.isnan().sum() == result.numel() - used.numel()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PASSES)
def test_layouts_of_one_product_give_the_same_bits(name: str, dtype: torch.dtype, backend: str) -> None:
    case = Case(2, 40, 24, 6, 6, more=16)
    inputs = random_inputs(name, case, dtype, backend)
    expected = run_sliced_guarded(name, case, inputs, backend)
    # Without gaps: a product of matrices, 16 bytes at a time. With gaps between rows: pixels are looked for.
    for width in (6, 7):
        first, second, output = (
            torch.empty(*shape[:2], 6, width, dtype=dtype, device=inputs[0].device).to(
                memory_format=torch.channels_last
            )[..., :6]
            for shape in (inputs[0].shape, inputs[1].shape, shapes_of(name, case)[2])
        )
        first.copy_(inputs[0])
        if name == "wgrad":
            second.copy_(inputs[1])
            output = guarded_weight(case, dtype, device=str(first.device))
            kernels.wgrad(first, second, output, case.options, False, backend)
            output = case.slice_of(output)
        elif name == "forward":
            weight = guarded_weight(case, dtype, inputs[1], str(first.device))
            kernels.forward(first, weight, None, output, case.options, backend)
        else:
            weight = guarded_weight(case, dtype, inputs[1], str(first.device))
            kernels.dgrad(first, weight, output, case.options, backend)
        assert torch.equal(output, expected)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_operation_and_its_sink(kernel: int, groups: int, backend: str) -> None:
    device = device_of(backend)
    x = torch.randn(2, 6, 7, 7, device=device, requires_grad=True)
    weight = torch.randn(15, 8, kernel, kernel, device=device, requires_grad=True)
    options = {"out_channels": 6, "out_offset": 2, "in_offset": 1, "padding": kernel // 2, "groups": groups}
    expected = sk.sliced_conv2d_reference(x, weight, **options)
    dx, dweight = torch.autograd.grad(expected.square().sum(), (x, weight))
    with sk.use_backend(backend):
        y = sk.sliced_conv2d(x, weight, **options)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    for gradient, right in zip(torch.autograd.grad(y.square().sum(), (x, weight)), (dx, dweight), strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-4, atol=1e-4)
    sink = sk.GradientSink([weight])
    with sk.use_backend(backend), sink:
        twice = sk.sliced_conv2d(x, weight, **options), sk.sliced_conv2d(x, weight, **options)
    for y in twice:
        y.square().sum().backward()
    assert weight.grad is None and len(sink.extents(weight)) == 1
    torch.testing.assert_close(sink.gradient(weight), 2 * dweight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("columns", [1, 3])
def test_depthwise_slices_of_one_or_more_columns(columns: int, backend: str) -> None:
    x = torch.randn(2, 6, 7, 7, device=device_of(backend), requires_grad=True)
    weight = torch.randn(9, columns, 3, 3, device=x.device, requires_grad=True)
    options = {"out_channels": 6, "out_offset": 2, "in_offset": columns - 1, "padding": 1, "groups": 6}
    expected = sk.sliced_conv2d_reference(x, weight, **options)
    right = torch.autograd.grad(expected.sum(), (x, weight))
    sink = sk.GradientSink([weight])
    with sk.use_backend(backend), sink:
        y = sk.sliced_conv2d(x, weight, **options)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, right[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sink.gradient(weight), right[1], rtol=1e-4, atol=1e-4)


def test_an_empty_batch(backend: str) -> None:
    x = torch.empty(0, 6, 7, 7, device=device_of(backend), requires_grad=True)
    weight = torch.randn(9, 6, 3, 3, device=x.device, requires_grad=True)
    with sk.use_backend(backend):
        y = sk.sliced_conv2d(x, weight)
    dx, dweight = torch.autograd.grad(y.sum(), (x, weight))
    assert y.shape == (0, 9, 5, 5) and dx.shape == x.shape and torch.equal(dweight, torch.zeros_like(weight))


def test_operators(backend: str) -> None:
    operators, device = torch.ops.spos_kernels, device_of(backend)
    x = torch.randn(2, 6, 7, 7, device=device).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(9, 8, 3, 3, device=device, requires_grad=True)
    rest = (4, 2, 1, 2, 1, 2, backend)
    dy = operators.sliced_conv2d(x, weight, *rest).detach()
    opcheck(operators.sliced_conv2d.default, (x, weight, *rest))
    opcheck(operators.sliced_conv2d_dgrad.default, (dy, weight.detach(), [2, 6, 7, 7], *rest))
    opcheck(operators.sliced_conv2d_wgrad.default, (x.detach(), dy, [9, 8, 3, 3], True, *rest))


def test_errors_name_the_argument(backend: str) -> None:
    device = device_of(backend)
    x = torch.randn(1, 4, 5, 5, device=device).to(memory_format=torch.channels_last)
    weight, y = torch.randn(6, 5, 3, 3, device=device), torch.empty_like(x)
    with sk.use_backend(backend):
        with pytest.raises(TypeError, match=r"x has dtype torch\.float64: backend 'cuda.*' accepts torch\.float32"):
            sk.sliced_conv2d(x.double(), weight.double())
        with pytest.raises(TypeError, match=r"weight has dtype torch\.float16: expected that of x, torch\.float32"):
            sk.sliced_conv2d(x, weight.half())
        with pytest.raises(ValueError, match="out_offset = 4 and out_channels = 3"):
            sk.sliced_conv2d(x, weight, out_channels=3, out_offset=4)
    for message, arguments in {
        "y: has shape": (x, weight, None, y[:, :, :4], (0, 0, 1, 1, 1)),
        "out_offset = 3": (x, weight, None, y, (3, 0, 1, 1, 1)),
        "in_offset = 2": (x, weight, None, y, (0, 2, 1, 1, 1)),
        "groups = 3": (x, weight, None, y, (0, 0, 1, 1, 3)),
        "stride = 0": (x, weight, None, y, (0, 0, 0, 1, 1)),
        "padding = -1": (x, weight, None, y, (0, 0, 1, -1, 1)),
        "bias: has shape": (x, weight, torch.zeros(4, device=device), y, (0, 0, 1, 1, 1)),
        "weight has shape": (x, torch.randn(6, 5, 8, 8, device=device), None, y, (0, 0, 1, 1, 1)),
        "weight and x differ in dtype": (x, weight.half(), None, y, (0, 0, 1, 1, 1)),
    }.items():
        with pytest.raises((ValueError, TypeError), match=message):
            kernels.forward(*arguments, backend)
    with pytest.raises(TypeError, match="active_out_channels"):
        kernels.forward(x, weight, None, y, (0, 0, 1, 1, 1), backend, None, torch.ones(1, device=device))


@pytest.mark.parametrize("whole", [False, True])
def test_tf32_by_either_of_torchs_settings(whole: bool, backend: str) -> None:
    x = torch.randn(2, 8, 5, 5, device=device_of(backend)).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(8, 8, 1, 1, device=device_of(backend))
    with sk.use_backend(backend):
        exact = sk.sliced_conv2d(x, weight)
        before = torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision
        torch.backends.cuda.matmul.fp32_precision = "none" if whole else "tf32"
        torch.backends.fp32_precision = "tf32" if whole else "none"
        try:
            rounded = sk.sliced_conv2d(x, weight)
        finally:
            torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=1e-2, atol=1e-2)
