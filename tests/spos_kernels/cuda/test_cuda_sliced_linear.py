"""sliced_linear on the kernels for GPUs: numbers, bias, slices, sinks, operators, errors."""

import pytest
import torch
import torch.nn.functional as F
from cuda_support import CUDA_BACKENDS, DTYPES, device_of
from torch import Tensor
from torch.library import opcheck

import spos_kernels as sk

pytestmark = pytest.mark.parametrize("backend", CUDA_BACKENDS)


def operands(
    rows: int, inputs: int, outputs: int, dtype: torch.dtype, backend: str, more: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """x, and a weight and bias that are `more` larger than it needs, NaN there."""
    x = torch.randn(rows, inputs, device=device_of(backend)).to(dtype)
    weight = torch.full((outputs + more, inputs + more), float("nan"), device=x.device).to(dtype)
    bias = torch.full((outputs + more,), float("nan"), device=x.device).to(dtype)
    first, second = more // 2, (more + 1) // 2
    weight[first : first + outputs, second : second + inputs] = torch.randn(outputs, inputs)
    bias[first : first + outputs] = torch.randn(outputs)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def assert_within_rounding(result: Tensor, exact: Tensor, magnitude: Tensor) -> None:
    assert ((result.double() - exact).abs() <= 4 * torch.finfo(result.dtype).eps * magnitude).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("more", [0, 5, 16])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 7, 129), (129, 33, 2), (70, 72, 64), (1, 300, 40), (600, 9, 8)])
def test_accurate(sizes: tuple[int, int, int], more: int, dtype: torch.dtype, backend: str) -> None:
    rows, inputs, outputs = sizes
    x, weight, bias = operands(*sizes, dtype, backend, more)
    offsets = {"out_features": outputs, "out_offset": more // 2, "in_offset": (more + 1) // 2}
    with sk.use_backend(backend):
        y = sk.sliced_linear(x, weight, bias, **offsets)
    dy = torch.randn(rows, outputs, device=x.device).to(dtype)
    gradients = torch.autograd.grad(y, (x, weight, bias), dy)

    first, second = offsets["out_offset"], offsets["in_offset"]
    weight_slice = (slice(first, first + outputs), slice(second, second + inputs))
    a, w, b, g = (t.detach().double() for t in (x, weight[weight_slice], bias[weight_slice[0]], dy))
    assert_within_rounding(y, F.linear(a, w, b), F.linear(a.abs(), w.abs(), b.abs()))
    assert_within_rounding(gradients[0], g @ w, g.abs() @ w.abs())
    assert_within_rounding(gradients[1][weight_slice], g.T @ a, g.T.abs() @ a.abs())
    # The bias is torch's own sum.
    torch.testing.assert_close(gradients[2][weight_slice[0]].double(), g.sum(0), rtol=0.02, atol=0.05)
    for gradient, used in ((gradients[1], weight_slice), (gradients[2], weight_slice[0])):
        outside = torch.ones_like(gradient, dtype=torch.bool)
        outside[used] = False
        assert (gradient[outside] == 0).all()


def test_gradients_go_to_the_sink(backend: str) -> None:
    x, weight, bias = operands(20, 24, 12, torch.float32, backend, more=4)
    offsets = {"out_features": 12, "out_offset": 2, "in_offset": 2}
    expected = sk.sliced_linear_reference(x, weight, bias, **offsets)
    right = torch.autograd.grad(expected.square().sum(), (weight, bias))
    sink = sk.GradientSink([weight, bias])
    with sk.use_backend(backend), sink:
        twice = sk.sliced_linear(x, weight, bias, **offsets), sk.sliced_linear(x, weight, bias, **offsets)
    for y in twice:
        torch.testing.assert_close(y, expected)
        y.square().sum().backward()
    assert weight.grad is None and bias.grad is None
    for parameter, gradient in zip((weight, bias), right, strict=True):
        kept = sink.gradient(parameter)
        assert kept is not None
        torch.testing.assert_close(kept, 2 * gradient, rtol=1e-4, atol=1e-4)


def test_every_shape_and_layout_of_x(backend: str) -> None:
    _, weight, bias = operands(1, 6, 9, torch.float32, backend)
    for x in (
        torch.randn(6),
        torch.randn(3, 2, 6),
        torch.randn(6, 5).T,
        torch.randn(4, 9)[:, 2:8],
        torch.randn(1, 6).expand(4, 6),
        torch.empty(0, 6),
    ):
        moved = x.to(device_of(backend)).requires_grad_()
        with sk.use_backend(backend):
            y = sk.sliced_linear(moved, weight.T.contiguous().T, bias)
        expected = sk.sliced_linear_reference(moved, weight, bias)
        torch.testing.assert_close(y, expected)
        (dx,) = torch.autograd.grad(y.sum(), moved)
        torch.testing.assert_close(dx, torch.autograd.grad(expected.sum(), moved)[0])


def test_operators(backend: str) -> None:
    operators = torch.ops.spos_kernels
    x, weight, bias = operands(5, 6, 9, torch.float32, backend)
    dy = torch.randn(5, 4, device=x.device)
    opcheck(operators.sliced_linear.default, (x, weight, bias, 4, 2, 0, backend))
    opcheck(operators.sliced_linear_dgrad.default, (dy, weight.detach(), 6, 2, 0, backend))
    opcheck(operators.sliced_linear_wgrad.default, (x.detach(), dy, 9, 6, 2, 0, backend))


def test_errors_name_the_argument(backend: str) -> None:
    x, weight, bias = operands(5, 6, 9, torch.float32, backend)
    with sk.use_backend(backend):
        with pytest.raises(TypeError, match=r"x has dtype torch\.float64: backend 'cuda.*' accepts torch\.float32"):
            sk.sliced_linear(x.double(), weight.double())
        with pytest.raises(TypeError, match=r"bias has dtype torch\.float16: expected that of x, torch\.float32"):
            sk.sliced_linear(x, weight, bias.half())
        with pytest.raises(ValueError, match="in_offset = 1: expected 6 columns"):
            sk.sliced_linear(x, weight, in_offset=1)
        with pytest.raises(ValueError, match=r"bias has shape \[8\]"):
            sk.sliced_linear(x, weight, bias[:8])
        with pytest.raises(RuntimeError, match=f"backend '{backend}' has no double backward"):
            torch.autograd.grad(sk.sliced_linear(x, weight).sum(), x, create_graph=True)
