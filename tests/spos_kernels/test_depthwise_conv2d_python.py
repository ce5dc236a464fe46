"""The Python face of the depthwise convolution: autograd, operators, compile, torch.func, autocast, module, errors."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.library import opcheck

import spos_kernels as sk
from spos_kernels import _C

OPS = torch.ops.spos_kernels


def pair(
    channels: int = 6, kernel: int = 3, size: int = 7, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, channels, size, size, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    return x, torch.randn(channels, 1, kernel, kernel, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, None), (3, 2, 0), (5, 2, None), (7, 1, 5)])
def test_gradcheck(kernel: int, stride: int, padding: int | None) -> None:
    inputs = pair(2, kernel, 5, torch.float64)
    assert torch.autograd.gradcheck(lambda *t: sk.depthwise_conv2d(*t, stride=stride, padding=padding), inputs)
    with_operator = lambda *t: OPS.depthwise_conv2d(*t, stride, 1 if padding is None else padding, "cpu")  # noqa: E731
    assert torch.autograd.gradcheck(with_operator, inputs)


@pytest.mark.parametrize("stride", [1, 2])
def test_opcheck(stride: int) -> None:
    x, weight = pair()
    dy = sk.depthwise_conv2d(x, weight, stride=stride).detach()
    opcheck(OPS.depthwise_conv2d.default, (x, weight, stride, 1, "cpu"))
    opcheck(OPS.depthwise_conv2d_dgrad.default, (dy, weight.detach(), 7, 7, stride, 1, "cpu"))
    opcheck(OPS.depthwise_conv2d_wgrad.default, (x.detach(), dy, 3, stride, 1, "cpu"))


@pytest.mark.parametrize("needed", ["x", "weight"])
def test_only_the_gradient_that_is_asked_for_is_computed_and_only_its_input_saved(
    needed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwanted = "depthwise_conv2d_wgrad" if needed == "x" else "depthwise_conv2d_dgrad"
    monkeypatch.setattr(_C, unwanted, lambda *_: pytest.fail(f"{unwanted} was called"))
    x, weight = pair()
    (weight if needed == "x" else x).requires_grad_(False)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        y = sk.depthwise_conv2d(x, weight)
    assert [t.data_ptr() for t in saved] == [(weight if needed == "x" else x).data_ptr()]
    y.sum().backward()
    assert (x.grad is None) == (needed == "weight")
    assert (weight.grad is None) == (needed == "x")


def test_changing_a_saved_tensor_in_place_is_noticed() -> None:
    x, weight = pair()
    y = sk.depthwise_conv2d(x, weight)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_double_backward_is_refused_and_the_reference_has_it() -> None:
    x, weight = pair()
    with pytest.raises(RuntimeError, match=r"double backward .* use backend 'reference'"):
        torch.autograd.grad(sk.depthwise_conv2d(x, weight).square().sum(), x, create_graph=True)
    with sk.use_backend("reference"):
        (dx,) = torch.autograd.grad(sk.depthwise_conv2d(x, weight).square().sum(), x, create_graph=True)
    assert torch.autograd.grad(dx.square().sum(), weight)[0].isfinite().all()


def test_backward_runs_where_forward_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = pair()
    with sk.use_backend("cpu"):
        kernel = sk.depthwise_conv2d(x, weight)
    with sk.use_backend("reference"):
        reference = sk.depthwise_conv2d(x, weight)
        names: list[str] = []
        for name in ("depthwise_conv2d_dgrad", "depthwise_conv2d_wgrad"):
            monkeypatch.setattr(_C, name, lambda *_, name=name: names.append(name))
        kernel.sum().backward()
    assert names == ["depthwise_conv2d_dgrad", "depthwise_conv2d_wgrad"]
    with sk.use_backend("cpu"):
        reference.sum().backward()
    assert len(names) == 2


def test_compile_breaks_no_graph_and_follows_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    kernel = _C.depthwise_conv2d_forward
    monkeypatch.setattr(_C, "depthwise_conv2d_forward", lambda *args: (calls.append(1), kernel(*args)))
    compiled = torch.compile(
        lambda x, w: sk.depthwise_conv2d(x.relu(), w, stride=2) * 2, fullgraph=True, backend="aot_eager"
    )
    x, weight = pair()
    expected = sk.depthwise_conv2d_reference(x.relu(), weight, stride=2) * 2
    right = torch.autograd.grad(expected.square().sum(), (x, weight))
    for backend, operators in (("auto", 1), ("reference", 0), ("cpu", 1)):
        calls.clear()
        with sk.use_backend(backend):
            y = compiled(x, weight)
        assert len(calls) == operators
        torch.testing.assert_close(y, expected)
        for gradient, reference in zip(torch.autograd.grad(y.square().sum(), (x, weight)), right, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-4)


def test_compile_with_dynamic_sizes() -> None:
    compiled = torch.compile(sk.depthwise_conv2d, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (7, 8, 11):
        x, weight = pair(size=size)
        y = compiled(x, weight)
        torch.testing.assert_close(y, sk.depthwise_conv2d_reference(x, weight))
        y.sum().backward()


def test_export_keeps_the_operator() -> None:
    module, x = sk.DepthwiseConv2d(6, 3, stride=2), pair()[0].detach()
    exported = torch.export.export(module, (x,))
    assert "spos_kernels.depthwise_conv2d" in exported.graph_module.code
    torch.testing.assert_close(exported.module()(x), module(x))


def test_torch_func_runs_on_the_reference_and_an_explicit_backend_says_no() -> None:
    x, weight = (t.detach() for t in pair())
    gradient = torch.func.grad(lambda w: sk.depthwise_conv2d(x, w).square().sum())
    torch.testing.assert_close(
        gradient(weight), torch.func.grad(lambda w: sk.depthwise_conv2d_reference(x, w).square().sum())(weight)
    )
    batched = torch.func.vmap(lambda x: sk.depthwise_conv2d(x, weight))(torch.stack([x, 2 * x]))
    torch.testing.assert_close(batched[1], 2 * batched[0])
    with sk.use_backend("cpu"), pytest.raises(RuntimeError, match=r"torch\.func transforms: use backend 'reference'"):
        gradient(weight)


@pytest.mark.parametrize("function", [sk.depthwise_conv2d, sk.depthwise_conv2d_reference])
def test_autocast_computes_in_float32(function: Any) -> None:
    x, weight = pair()
    half = x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = function(half, weight)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, sk.depthwise_conv2d_reference(half.detach().float(), weight))
    y.sum().backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16
    assert weight.grad is not None and weight.grad.dtype == torch.float32


def test_the_module_is_a_conv2d_with_the_same_key_parameter_and_result() -> None:
    torch.manual_seed(3)
    ours = sk.DepthwiseConv2d(6, 5, stride=2)
    torch.manual_seed(3)
    plain = nn.Conv2d(6, 6, 5, stride=2, padding=2, groups=6, bias=False)
    assert list(ours.state_dict()) == ["weight"]
    assert torch.equal(ours.weight, plain.weight)
    x = pair()[0].detach()
    torch.testing.assert_close(ours(x), plain(x))
    shared = copy.deepcopy(ours).eval().plain()
    assert type(shared) is nn.Conv2d and not shared.training
    torch.testing.assert_close(shared(x), ours(x))
    ours.plain().weight.data.zero_()
    assert not ours(x).any()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": None}, TypeError, "x: expected a torch.Tensor, got NoneType"),
        ({"weight": [[1.0]]}, TypeError, "weight: expected a torch.Tensor, got list"),
        ({"x": torch.zeros(6, 7, 7)}, ValueError, r"x has shape \[6, 7, 7\]: expected 4 dimensions"),
        ({"weight": torch.zeros(6, 3, 3)}, ValueError, r"weight has shape \[6, 3, 3\]"),
        ({"weight": torch.zeros(6, 1, 4, 4)}, ValueError, r"weight has shape \[6, 1, 4, 4\]: .* k = 3, 5 or 7"),
        ({"weight": torch.zeros(6, 1, 3, 5)}, ValueError, r"weight has shape \[6, 1, 3, 5\]"),
        ({"weight": torch.zeros(6, 6, 3, 3)}, ValueError, r"weight has shape \[6, 6, 3, 3\]"),
        ({"weight": torch.zeros(5, 1, 3, 3)}, ValueError, r"weight has shape \[5, 1, 3, 3\]: .* C = 6"),
        ({"x": torch.zeros(2, 0, 7, 7), "weight": torch.zeros(0, 1, 3, 3)}, ValueError, "at least 1"),
        ({"stride": 3}, ValueError, "stride = 3: accepted are 1 and 2"),
        ({"stride": (1, 1)}, ValueError, r"stride = \(1, 1\)"),
        ({"stride": 1.0}, ValueError, r"stride = 1\.0"),
        ({"padding": 3}, ValueError, "padding = 3: accepted are integers from 0 to 2"),
        ({"padding": -1}, ValueError, "padding = -1"),
        ({"padding": "same"}, ValueError, "padding = 'same'"),
        ({"x": torch.zeros(2, 6, 2, 7), "padding": 0}, ValueError, r"x has shape \[2, 6, 2, 7\]: expected H and W"),
        ({"x": torch.zeros(2, 6, 0, 7)}, ValueError, "at least 1"),
        ({"x": torch.zeros(2, 6, 7, 7, dtype=torch.bfloat16)}, TypeError, "x has dtype torch.bfloat16: accepted"),
        ({"x": torch.zeros(2, 6, 7, 7, dtype=torch.complex64)}, TypeError, "x has dtype torch.complex64"),
        ({"weight": torch.zeros(6, 1, 3, 3, dtype=torch.float64)}, TypeError, "weight has dtype torch.float64"),
        ({"weight": torch.zeros(6, 1, 3, 3, device="meta")}, ValueError, "weight is on meta"),
        ({"x": torch.zeros(2, 6, 7, 7).to_sparse()}, ValueError, "x has layout torch.sparse_coo"),
    ],
)
@pytest.mark.parametrize("function", [sk.depthwise_conv2d, sk.depthwise_conv2d_reference])
def test_bad_input(function: Any, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"x": torch.zeros(2, 6, 7, 7), "weight": torch.zeros(6, 1, 3, 3), **changes}
    with pytest.raises(error, match=message):
        function(arguments.pop("x"), arguments.pop("weight"), **arguments)


def test_bad_module_arguments() -> None:
    with pytest.raises(ValueError, match="kernel_size = 4: accepted are 3, 5 and 7"):
        sk.DepthwiseConv2d(6, 4)
