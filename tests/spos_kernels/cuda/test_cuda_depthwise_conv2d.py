"""The depthwise kernels for GPUs: numbers in guarded memory, layouts, device-side widths, errors."""

import pytest
import torch
from cuda_support import CUDA_BACKENDS, DTYPES, device_of
from depthwise_support import CASES, PADDINGS, PASSES, Case, assert_accurate, shapes_of, torch_pass
from slicing_support import random_inputs, run_depthwise_aligned, run_depthwise_guarded
from torch.library import opcheck

import spos_kernels as sk
from spos_kernels.cuda import depthwise_conv2d as kernels

pytestmark = pytest.mark.parametrize("backend", CUDA_BACKENDS)

# Several images in a tile, the last one not full; several tiles in both directions; several parts of wgrad.
SMALL_MAPS = [
    Case(7, 40, 2, 3, 7),
    Case(5, 9, 4, 4, 3),
    Case(6, 33, 7, 7, 5, stride=2),
    Case(5, 8, 6, 5, 7, stride=2, padding=6),
]
TILES = [Case(2, 40, 19, 37, 5), Case(1, 33, 18, 34, 7, stride=2), Case(1, 12, 35, 18, 3, stride=2, padding=0)]


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("case", CASES + PADDINGS + SMALL_MAPS + TILES, ids=str)
def test_float32_is_accurate_in_guarded_channel_slices(name: str, case: Case, backend: str) -> None:
    inputs = random_inputs(name, case, torch.float32, backend)
    assert_accurate(name, case, inputs, run_depthwise_guarded(name, case, inputs, backend))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("case", CASES[:9] + PADDINGS[::5] + SMALL_MAPS[1:3] + TILES[1:], ids=str)
def test_16_bit_elements_are_accurate_in_guarded_channel_slices(
    name: str, case: Case, dtype: torch.dtype, backend: str
) -> None:
    inputs = random_inputs(name, case, dtype, backend)
    assert_accurate(name, case, inputs, run_depthwise_guarded(name, case, inputs, backend))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize(
    "case", [Case(3, 40, 15, 15, 5), Case(2, 72, 9, 8, 3, stride=2), Case(1, 33, 7, 7, 7)], ids=str
)
def test_aligned_tensors_give_the_same_bits_from_run_to_run(
    name: str, case: Case, dtype: torch.dtype, backend: str
) -> None:
    inputs = random_inputs(name, case, dtype, backend)
    expected = run_depthwise_guarded(name, case, inputs, backend)
    for _ in range(2):
        assert torch.equal(run_depthwise_aligned(name, case, inputs, backend), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("stride", [1, 2])
def test_integers_are_exact(name: str, stride: int, dtype: torch.dtype, backend: str) -> None:
    case = Case(2, 40, 15, 11, 5, stride)
    first, second = (torch.randint(-1, 2, shape) for shape in shapes_of(name, case)[:2])
    expected = torch_pass(name, case, (first.double(), second.double()))
    inputs = first.to(device_of(backend), dtype), second.to(device_of(backend), dtype)
    assert torch.equal(run_depthwise_guarded(name, case, inputs, backend).double().cpu(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinities_and_nan_stay_where_they_are(dtype: torch.dtype, backend: str) -> None:
    case = Case(1, 40, 12, 12, 3)
    x, weight = random_inputs("forward", case, dtype, backend)
    x[0, 3, 5, 6], x[0, 4, 11, 11] = float("inf"), float("nan")
    y = run_depthwise_guarded("forward", case, (x, weight), backend)
    expected = torch_pass("forward", case, (x.double(), weight.double()))
    assert torch.equal(y.isnan(), expected.isnan()) and torch.equal(y.isinf(), expected.isinf())


@pytest.mark.parametrize("parts", [1, 2])
def test_wgrad_adds_in_place_to_weights_of_any_strides(parts: int, backend: str) -> None:
    case = Case(2 if parts == 1 else 40, 20, 7, 7, 5)
    x, dy = random_inputs("wgrad", case, torch.float32, backend)
    x, dy = (t.to(memory_format=torch.channels_last) for t in (x, dy))
    whole = torch.full((25, 3, 5, 5), float("nan"), device=x.device).transpose(2, 3)
    rows = whole[3:23, 1:2]
    start = torch.randn_like(rows)
    rows.copy_(start)
    kernels.wgrad(x, dy, rows, 1, 2, True, backend)
    torch.testing.assert_close(rows - start, torch_pass("wgrad", case, (x, dy)), rtol=1e-4, atol=1e-4)
    rows.fill_(float("nan"))
    assert whole.isnan().all()


@pytest.mark.parametrize("name", ["forward", "dgrad"])
def test_a_weight_is_read_in_place_whatever_its_strides(name: str, backend: str) -> None:
    case = Case(1, 36, 9, 9, 5)
    first, weight = random_inputs(name, case, torch.float32, backend)
    whole = torch.full((44, 3, 5, 5), float("nan"), device=first.device).transpose(2, 3)
    whole[3:39, 1:2] = weight
    result = run_depthwise_guarded(name, case, (first, whole[3:39, 1:2]), backend)
    assert torch.equal(result, run_depthwise_guarded(name, case, (first, weight), backend))


@pytest.mark.parametrize("active", [0, 1, 32, 33, 70, 99])
@pytest.mark.parametrize("name", PASSES)
def test_a_width_in_device_memory_leaves_the_rest_alone(name: str, active: int, backend: str) -> None:
    case = Case(2, 70, 9, 9, 3)
    inputs = random_inputs(name, case, torch.float32, backend)
    width = torch.tensor([active], dtype=torch.int32, device=device_of(backend))
    expected, result = (
        run_depthwise_guarded(name, case, inputs, backend),
        run_depthwise_guarded(name, case, inputs, backend, width),
    )
    dimension = 0 if name == "wgrad" else 1
    used, rest = result.split([min(active, 70), 70 - min(active, 70)], dimension)
    assert torch.equal(used, expected.narrow(dimension, 0, used.shape[dimension])) and rest.isnan().all()


def test_an_empty_batch_has_an_empty_result_and_a_zero_weight_gradient(backend: str) -> None:
    x = torch.empty(0, 8, 9, 9, device=device_of(backend), requires_grad=True)
    weight = torch.randn(8, 1, 3, 3, device=device_of(backend), requires_grad=True)
    with sk.use_backend(backend):
        y = sk.depthwise_conv2d(x, weight, stride=2)
    assert y.shape == (0, 8, 5, 5)
    dx, dweight = torch.autograd.grad(y.sum(), (x, weight))
    assert dx.shape == x.shape and torch.equal(dweight, torch.zeros_like(weight))


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "slice", "expanded", "every other column"])
def test_the_operation_takes_every_layout(layout: str, backend: str) -> None:
    wide = torch.randn(3, 40, 8, 8, device=device_of(backend))
    x = {
        "nchw": lambda: wide[:, :20].contiguous(),
        "nhwc": lambda: wide[:, :20].contiguous(memory_format=torch.channels_last),
        "slice": lambda: wide.contiguous(memory_format=torch.channels_last)[:, 7:27],
        "expanded": lambda: wide[:1, :20].expand(3, 20, 8, 8),
        "every other column": lambda: wide.contiguous(memory_format=torch.channels_last)[:, :20, :, ::2],
    }[layout]().requires_grad_()
    weight = torch.randn(20, 1, 5, 5, device=x.device).transpose(2, 3).requires_grad_()
    with sk.use_backend(backend):
        y = sk.depthwise_conv2d(x, weight)
    expected = sk.depthwise_conv2d_reference(x, weight)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    # Outside of the `with`: the backward pass stays on the backend. sum() sends a gradient of stride 0.
    gradients = torch.autograd.grad(y.sum(), (x, weight))
    for gradient, right in zip(gradients, torch.autograd.grad(expected.sum(), (x, weight)), strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-4, atol=1e-4)


def test_operators(backend: str) -> None:
    operators = torch.ops.spos_kernels
    x = torch.randn(2, 6, 7, 7, device=device_of(backend)).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(6, 1, 3, 3, device=x.device, requires_grad=True)
    opcheck(operators.depthwise_conv2d.default, (x, weight, 2, 1, backend))
    dy = torch.randn(2, 6, 4, 4, device=x.device).to(memory_format=torch.channels_last)
    opcheck(operators.depthwise_conv2d_dgrad.default, (dy, weight.detach(), 7, 7, 2, 1, backend))
    opcheck(operators.depthwise_conv2d_wgrad.default, (x.detach(), dy, 3, 2, 1, backend))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_tensors_train(dtype: torch.dtype, backend: str) -> None:
    x = torch.randn(2, 20, 7, 7, device=device_of(backend)).to(dtype).requires_grad_()
    weight = torch.randn(20, 1, 3, 3, device=x.device).to(dtype).requires_grad_()
    with sk.use_backend(backend):
        y = sk.depthwise_conv2d(x, weight)
    gradients = torch.autograd.grad(y.float().square().sum(), (x, weight))
    assert y.dtype == gradients[0].dtype == gradients[1].dtype == dtype
    wide = x.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    expected = torch.autograd.grad(sk.depthwise_conv2d_reference(*wide).square().sum(), wide)
    for gradient, right in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient.float(), right, rtol=0.05, atol=0.2)


def test_errors_name_the_argument(backend: str) -> None:
    device = device_of(backend)
    x, weight = torch.randn(1, 4, 5, 5, device=device), torch.randn(4, 1, 3, 3, device=device)
    with sk.use_backend(backend):
        with pytest.raises(TypeError, match=r"x has dtype torch\.float64: backend 'cuda.*' accepts torch\.float32"):
            sk.depthwise_conv2d(x.double(), weight.double())
        with pytest.raises(TypeError, match=r"weight has dtype torch\.float16: expected that of x, torch\.float32"):
            sk.depthwise_conv2d(x, weight.half())
        with pytest.raises(ValueError, match=r"x is on meta: backend 'cuda"):
            sk.depthwise_conv2d(x.to("meta"), weight.to("meta"))
        with pytest.raises(RuntimeError, match=f"backend '{backend}' has no double backward"):
            y = sk.depthwise_conv2d(x.requires_grad_(), weight)
            torch.autograd.grad(y.sum(), x, create_graph=True)
    x, y = x.detach().to(memory_format=torch.channels_last), torch.empty_like(x).to(memory_format=torch.channels_last)
    for message, arguments in {
        "y: has shape": (x, weight, y[:, :3], 1, 1),
        r"weight: has shape \[3, 1, 3, 3\]": (x, weight[:3], y, 1, 1),
        "weight has shape": (x, torch.empty(4, 1, 4, 4, device=device), y, 1, 1),
        "stride = 3": (x, weight, y, 3, 1),
        "padding = 3": (x, weight, y, 1, 3),
        "x: has strides": (x.contiguous(), weight, y, 1, 1),
        r"weight and x differ in dtype": (x, weight.half(), y, 1, 1),
    }.items():
        with pytest.raises((ValueError, TypeError), match=message):
            kernels.forward(*arguments, backend)
    with pytest.raises(ValueError, match="active_channels has shape"):
        kernels.forward(x, weight, y, 1, 1, backend, torch.ones(2, dtype=torch.int32, device=device))
