"""The sliced linear layer: numbers, layouts, autograd, operators, compile, autocast, errors."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import opcheck

import spos_kernels as sk
from spos_kernels import _C

OPS = torch.ops.spos_kernels
SLICE = {"out_features": 5, "out_offset": 2, "in_offset": 1}


def arguments(dtype: torch.dtype = torch.float32, rows: tuple[int, ...] = (3, 4)) -> tuple[Tensor, Tensor, Tensor]:
    """x of 6 features, weight and bias of more than the 5 x 6 that SLICE uses."""
    x = torch.randn(*rows, 6, dtype=dtype, requires_grad=True)
    weight = torch.randn(9, 8, dtype=dtype, requires_grad=True)
    return x, weight, torch.randn(9, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("features", [1, 7, 33, 129, 256])
@pytest.mark.parametrize("outputs", [1, 7, 33, 129, 300])
@pytest.mark.parametrize("rows", [1, 5, 200])
@pytest.mark.parametrize("has_bias", [False, True])
def test_it_is_the_linear_layer_of_the_slice(features: int, outputs: int, rows: int, has_bias: bool) -> None:
    x = torch.randn(rows, features, requires_grad=True)
    weight = torch.randn(outputs + 3, features + 4, requires_grad=True)
    bias = torch.randn(outputs + 3, requires_grad=True) if has_bias else None
    y = sk.sliced_linear(x, weight, bias, out_features=outputs, out_offset=2, in_offset=3)
    inputs = [t for t in (x, weight, bias) if t is not None]
    double = [t.detach().double().requires_grad_() for t in inputs]
    exact = F.linear(
        double[0], double[1][2 : 2 + outputs, 3 : 3 + features], double[2][2 : 2 + outputs] if has_bias else None
    )
    torch.testing.assert_close(y.double(), exact, rtol=1e-4, atol=1e-4)
    dy = torch.randn_like(y)
    gradients = torch.autograd.grad(y, inputs, dy)
    for gradient, right in zip(gradients, torch.autograd.grad(exact, double, dy.double()), strict=True):
        torch.testing.assert_close(gradient.double(), right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["vector", "three", "empty", "transposed", "columns", "expanded", "slice"])
def test_every_layout_is_accepted(layout: str) -> None:
    x = {
        "vector": lambda: torch.randn(6),
        "three": lambda: torch.randn(2, 3, 4, 6),
        "empty": lambda: torch.randn(0, 6),
        "transposed": lambda: torch.randn(6, 7).t(),
        "columns": lambda: torch.randn(7, 12)[:, ::2],
        "expanded": lambda: torch.randn(1, 6).expand(7, 6),
        "slice": lambda: torch.randn(7, 20)[:, 3:9],
    }[layout]().requires_grad_()
    weight, bias = torch.randn(8, 9).t().requires_grad_(), torch.randn(18)[::2].requires_grad_()
    y, expected = sk.sliced_linear(x, weight, bias, **SLICE), sk.sliced_linear_reference(x, weight, bias, **SLICE)
    torch.testing.assert_close(y, expected)
    gradients = torch.autograd.grad(y.sum(), (x, weight, bias))
    for gradient, right in zip(gradients, torch.autograd.grad(expected.sum(), (x, weight, bias)), strict=True):
        torch.testing.assert_close(gradient, right)


def test_the_weight_is_read_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = arguments(rows=(4,))
    seen: list[Any] = []
    kernel = _C.sliced_conv2d_forward
    monkeypatch.setattr(_C, "sliced_conv2d_forward", lambda *args: (seen.extend(args[:3]), kernel(*args)))
    sk.sliced_linear(x, weight, bias, **SLICE)
    assert [t.data_ptr() for t in seen] == [t.data_ptr() for t in (x, weight, bias)]


def test_gradcheck() -> None:
    inputs = arguments(torch.float64)
    assert torch.autograd.gradcheck(lambda *t: sk.sliced_linear(*t, **SLICE), inputs)
    x, weight, bias = inputs
    assert torch.autograd.gradcheck(lambda *t: OPS.sliced_linear(*t, 5, 2, 1, "cpu"), (x.reshape(-1, 6), weight, bias))


def test_opcheck() -> None:
    x, weight, bias = arguments(rows=(4,))
    for b in (bias, None):
        opcheck(OPS.sliced_linear.default, (x, weight, b, 5, 2, 1, "cpu"))
    dy = torch.randn(4, 5)
    opcheck(OPS.sliced_linear_dgrad.default, (dy, weight.detach(), 6, 2, 1, "cpu"))
    opcheck(OPS.sliced_linear_wgrad.default, (x.detach(), dy, 9, 8, 2, 1, "cpu"))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_compile_breaks_no_graph(backend: str) -> None:
    compiled = torch.compile(lambda *t: sk.sliced_linear(*t, **SLICE).relu(), fullgraph=True, backend="aot_eager")
    inputs = arguments()
    with sk.use_backend(backend):
        y = compiled(*inputs)
    expected = sk.sliced_linear_reference(*inputs, **SLICE).relu()
    torch.testing.assert_close(y, expected)
    gradients = torch.autograd.grad(y.sum(), inputs)
    for gradient, right in zip(gradients, torch.autograd.grad(expected.sum(), inputs), strict=True):
        torch.testing.assert_close(gradient, right)


def test_double_backward_is_refused() -> None:
    x, weight, bias = arguments()
    with pytest.raises(RuntimeError, match=r"sliced_linear: .* use backend 'reference'"):
        torch.autograd.grad(sk.sliced_linear(x, weight, bias, **SLICE).square().sum(), x, create_graph=True)


@pytest.mark.parametrize("function", [sk.sliced_linear, sk.sliced_linear_reference])
def test_autocast_computes_in_float32(function: Any) -> None:
    x, weight, bias = arguments()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = function(x.bfloat16(), weight, bias, **SLICE)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, sk.sliced_linear_reference(x.bfloat16().float(), weight, bias, **SLICE))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": 1.0}, TypeError, "x: expected a torch.Tensor, got float"),
        ({"x": torch.zeros(())}, ValueError, r"x has shape \[\]: expected at least 1 dimension"),
        ({"x": torch.zeros(3, 0)}, ValueError, r"x has shape \[3, 0\]: expected at least 1 feature"),
        ({"weight": torch.zeros(9, 8, 1)}, ValueError, r"weight has shape \[9, 8, 1\]: expected 2 dimensions"),
        ({"bias": 1.0}, TypeError, "bias: expected a torch.Tensor, got float"),
        ({"bias": torch.zeros(5)}, ValueError, r"bias has shape \[5\]: expected \[9\]"),
        ({"bias": torch.zeros(9, dtype=torch.float64)}, TypeError, "bias has dtype torch.float64"),
        ({"out_features": 8}, ValueError, "out_offset = 2 and out_features = 8: expected at least 1 of the 9 rows"),
        ({"out_features": 0}, ValueError, "out_features = 0"),
        ({"out_features": 2.5}, ValueError, r"out_features = 2\.5: expected an integer"),
        ({"out_offset": -1}, ValueError, "out_offset = -1"),
        ({"in_offset": 3}, ValueError, "in_offset = 3: expected 6 columns"),
        ({"x": torch.zeros(3, 6, dtype=torch.int64)}, TypeError, "x has dtype torch.int64: accepted"),
        ({"weight": torch.zeros(9, 8, device="meta")}, ValueError, "weight is on meta"),
    ],
)
@pytest.mark.parametrize("function", [sk.sliced_linear, sk.sliced_linear_reference])
def test_bad_input(function: Any, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"x": torch.zeros(3, 6), "weight": torch.zeros(9, 8), "bias": torch.zeros(9), **SLICE, **changes}
    with pytest.raises(error, match=message):
        function(given.pop("x"), given.pop("weight"), given.pop("bias"), **given)
