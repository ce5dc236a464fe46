"""The Python face of the sliced convolution: autograd, operators, compile, torch.func, autocast, errors."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.library import opcheck

import spos_kernels as sk
from spos_kernels import _C

OPS = torch.ops.spos_kernels
SLICE = {"out_channels": 4, "out_offset": 2, "in_offset": 1}


def pair(kernel: int = 3, dtype: torch.dtype = torch.float32, size: int = 7) -> tuple[Tensor, Tensor]:
    """x of 6 channels, and a weight of more than the 4 x 6 that SLICE uses."""
    x = torch.randn(2, 6, size, size, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    return x, torch.randn(9, 8, kernel, kernel, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 0), (4, 2, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradcheck(kernel: int, stride: int, padding: int, groups: int) -> None:
    x, weight = pair(kernel, torch.float64, size=5)
    options = {**SLICE, "stride": stride, "padding": padding, "groups": groups}
    assert torch.autograd.gradcheck(lambda *t: sk.sliced_conv2d(*t, **options), (x, weight))
    operator = lambda *t: OPS.sliced_conv2d(*t, 4, 2, 1, stride, padding, groups, "cpu")  # noqa: E731
    assert torch.autograd.gradcheck(operator, (x, weight))


def test_gradcheck_of_a_depthwise_slice() -> None:
    x, weight = pair(dtype=torch.float64)[0], torch.randn(9, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    options = {"out_offset": 2, "padding": 1, "groups": 6}
    assert torch.autograd.gradcheck(lambda *t: sk.sliced_conv2d(*t, **options), (x, weight))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_opcheck(kernel: int, groups: int) -> None:
    x, weight = pair(kernel)
    rest = (2, 1, 2, kernel // 2, groups, "cpu")
    dy = OPS.sliced_conv2d(x, weight, 4, *rest).detach()
    opcheck(OPS.sliced_conv2d.default, (x, weight, 4, *rest))
    opcheck(OPS.sliced_conv2d_dgrad.default, (dy, weight.detach(), [2, 6, 7, 7], 4, *rest))
    for channels_last in (False, True):
        opcheck(OPS.sliced_conv2d_wgrad.default, (x.detach(), dy, [9, 8, kernel, kernel], channels_last, 4, *rest))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_the_weight_gradient_is_zero_outside_the_slice_and_in_the_weights_layout(
    kernel: int, channels_last: bool
) -> None:
    x, weight = pair(kernel)
    if channels_last:
        weight = weight.detach().to(memory_format=torch.channels_last).requires_grad_()
    seen: list[Tensor] = []
    weight.register_hook(seen.append)
    sk.sliced_conv2d(x, weight, **SLICE).square().sum().backward()
    assert len(seen) == 1
    (expected,) = torch.autograd.grad(sk.sliced_conv2d_reference(x, weight, **SLICE).square().sum(), weight)
    assert weight.grad is not None and weight.grad.stride() == weight.stride()
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-4)
    outside = torch.ones_like(weight, dtype=torch.bool)
    outside[2:6, 1:7] = False
    assert not weight.grad[outside].any()
    assert weight.grad[2:6, 1:7].all()


@pytest.mark.parametrize("needed", ["x", "weight"])
def test_only_the_gradient_that_is_asked_for_is_computed_and_only_its_input_saved(
    needed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwanted = "sliced_conv2d_wgrad" if needed == "x" else "sliced_conv2d_dgrad"
    monkeypatch.setattr(_C, unwanted, lambda *_: pytest.fail(f"{unwanted} was called"))
    x, weight = pair()
    (weight if needed == "x" else x).requires_grad_(False)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        y = sk.sliced_conv2d(x, weight, **SLICE)
    assert [t.data_ptr() for t in saved] == [(weight if needed == "x" else x).data_ptr()]
    y.sum().backward()
    assert (x.grad is None) == (needed == "weight")
    assert (weight.grad is None) == (needed == "x")


def test_changing_a_saved_tensor_in_place_is_noticed() -> None:
    x, weight = pair()
    y = sk.sliced_conv2d(x, weight, **SLICE)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_double_backward_is_refused_and_the_reference_has_it() -> None:
    x, weight = pair()
    with pytest.raises(RuntimeError, match=r"double backward .* use backend 'reference'"):
        torch.autograd.grad(sk.sliced_conv2d(x, weight, **SLICE).square().sum(), x, create_graph=True)
    with sk.use_backend("reference"):
        (dx,) = torch.autograd.grad(sk.sliced_conv2d(x, weight, **SLICE).square().sum(), x, create_graph=True)
    assert torch.autograd.grad(dx.square().sum(), weight)[0].isfinite().all()


def test_backward_runs_where_forward_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = pair()
    names: list[str] = []
    with sk.use_backend("cpu"):
        kernel = sk.sliced_conv2d(x, weight, **SLICE)
    with sk.use_backend("reference"):
        reference = sk.sliced_conv2d(x, weight, **SLICE)
        for name in ("sliced_conv2d_dgrad", "sliced_conv2d_wgrad"):
            monkeypatch.setattr(_C, name, lambda *_, name=name: names.append(name))
        kernel.sum().backward()
    assert names == ["sliced_conv2d_dgrad", "sliced_conv2d_wgrad"]
    with sk.use_backend("cpu"):
        reference.sum().backward()
    assert len(names) == 2


def test_functional_call_and_modules_with_other_parameters() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(9, 8, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return sk.sliced_conv2d(x, self.weight, **SLICE)

    layer, (x, weight) = Layer(), pair()
    y = torch.func.functional_call(layer, {"weight": weight}, (x,))
    torch.testing.assert_close(y, sk.sliced_conv2d_reference(x, weight, **SLICE))
    y.sum().backward()
    assert weight.grad is not None and layer.weight.grad is None


def test_compile_breaks_no_graph_and_follows_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    kernel = _C.sliced_conv2d_forward
    monkeypatch.setattr(_C, "sliced_conv2d_forward", lambda *args: (calls.append(1), kernel(*args)))
    compiled = torch.compile(
        lambda x, w: sk.sliced_conv2d(x.relu(), w, **SLICE, stride=2) * 2, fullgraph=True, backend="aot_eager"
    )
    x, weight = pair()
    expected = sk.sliced_conv2d_reference(x.relu(), weight, **SLICE, stride=2) * 2
    right = torch.autograd.grad(expected.square().sum(), (x, weight))
    for backend, operators in (("auto", 1), ("reference", 0), ("cpu", 1)):
        calls.clear()
        with sk.use_backend(backend):
            y = compiled(x, weight)
        assert len(calls) == operators
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        for gradient, reference in zip(torch.autograd.grad(y.square().sum(), (x, weight)), right, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-3)


def test_compile_with_dynamic_sizes_and_widths() -> None:
    compiled = torch.compile(sk.sliced_conv2d, fullgraph=True, dynamic=True, backend="aot_eager")
    for size, width in ((7, 4), (8, 6), (11, 3)):
        x, weight = pair(size=size)
        x = x[:, :width].detach().requires_grad_()
        y = compiled(x, weight, out_channels=width + 1)
        torch.testing.assert_close(y, sk.sliced_conv2d_reference(x, weight, out_channels=width + 1))
        y.sum().backward()


def test_torch_func_runs_on_the_reference_and_an_explicit_backend_says_no() -> None:
    x, weight = (t.detach() for t in pair())
    gradient = torch.func.grad(lambda w: sk.sliced_conv2d(x, w, **SLICE).square().sum())
    right = torch.func.grad(lambda w: sk.sliced_conv2d_reference(x, w, **SLICE).square().sum())
    torch.testing.assert_close(gradient(weight), right(weight))
    with sk.use_backend("cpu"), pytest.raises(RuntimeError, match=r"torch\.func transforms: use backend 'reference'"):
        gradient(weight)


@pytest.mark.parametrize("function", [sk.sliced_conv2d, sk.sliced_conv2d_reference])
def test_autocast_computes_in_float32(function: Any) -> None:
    x, weight = pair()
    half = x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = function(half, weight, **SLICE)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, sk.sliced_conv2d_reference(half.detach().float(), weight, **SLICE))
    y.sum().backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16
    assert weight.grad is not None and weight.grad.dtype == torch.float32


@pytest.mark.parametrize("function", [sk.sliced_conv2d, sk.sliced_conv2d_reference])
def test_defaults_of_out_channels(function: Any) -> None:
    x, weight = pair()
    y = function(x, weight[:, :6], out_offset=3)
    torch.testing.assert_close(y, F.conv2d(x, weight[3:, :6]), rtol=1e-4, atol=1e-4)
    depthwise = torch.randn(9, 1, 3, 3)
    y = function(x, depthwise, groups=6, padding=1)
    torch.testing.assert_close(y, F.conv2d(x, depthwise[:6], groups=6, padding=1))
    one = function(x[:, :1], depthwise)
    torch.testing.assert_close(one, F.conv2d(x[:, :1], depthwise[:1]))
    assert function(x[:, :1], depthwise, out_channels=9).shape[1] == 9
    assert function(x[:, :1], weight).shape[1] == 9


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": None}, TypeError, "x: expected a torch.Tensor, got NoneType"),
        ({"weight": [[1.0]]}, TypeError, "weight: expected a torch.Tensor, got list"),
        ({"x": torch.zeros(6, 7, 7)}, ValueError, r"x has shape \[6, 7, 7\]: expected 4 dimensions"),
        ({"weight": torch.zeros(9, 8)}, ValueError, r"weight has shape \[9, 8\]: expected 4 dimensions"),
        (
            {"weight": torch.zeros(9, 8, 8, 8)},
            ValueError,
            r"weight has shape .*: expected \[O, I, k, k\] with k from 1",
        ),
        ({"weight": torch.zeros(9, 8, 3, 1)}, ValueError, r"weight has shape \[9, 8, 3, 1\]"),
        ({"x": torch.zeros(2, 0, 7, 7)}, ValueError, "groups = 1: expected a divisor of 0"),
        ({"groups": 4}, ValueError, "groups = 4: expected a divisor of 6"),
        ({"groups": 0}, ValueError, "groups = 0"),
        ({"groups": 2.0}, ValueError, r"groups = 2\.0: expected an integer"),
        ({"groups": 3}, ValueError, "out_channels = 4: expected a positive multiple of groups, 3"),
        ({"out_channels": 0}, ValueError, "out_channels = 0"),
        ({"out_channels": "4"}, ValueError, "out_channels = '4': expected an integer"),
        ({"out_channels": 9}, ValueError, "out_offset = 2 and out_channels = 9: expected a range within the 9 rows"),
        ({"out_offset": -1}, ValueError, "out_offset = -1"),
        ({"out_offset": True}, ValueError, "out_offset = True: expected an integer"),
        ({"out_channels": None, "out_offset": 9}, ValueError, "out_channels = 0"),
        ({"in_offset": 3}, ValueError, "in_offset = 3: expected 6 columns from there"),
        ({"in_offset": -1}, ValueError, "in_offset = -1"),
        ({"in_offset": 0.5}, ValueError, r"in_offset = 0\.5: expected an integer"),
        ({"stride": 3}, ValueError, "stride = 3: accepted are 1 and 2"),
        ({"stride": (1, 1)}, ValueError, r"stride = \(1, 1\)"),
        ({"padding": 3}, ValueError, "padding = 3: accepted are integers from 0 to 2"),
        ({"padding": "same"}, ValueError, "padding = 'same'"),
        ({"x": torch.zeros(2, 6, 2, 7)}, ValueError, r"x has shape \[2, 6, 2, 7\]: expected H and W of at least 3"),
        ({"x": torch.zeros(2, 6, 7, 7, dtype=torch.bfloat16)}, TypeError, "x has dtype torch.bfloat16: accepted"),
        ({"weight": torch.zeros(9, 8, 3, 3, dtype=torch.float64)}, TypeError, "weight has dtype torch.float64"),
        ({"weight": torch.zeros(9, 8, 3, 3, device="meta")}, ValueError, "weight is on meta"),
        ({"x": torch.zeros(2, 6, 7, 7).to_sparse()}, ValueError, "x has layout torch.sparse_coo"),
    ],
)
@pytest.mark.parametrize("function", [sk.sliced_conv2d, sk.sliced_conv2d_reference])
def test_bad_input(function: Any, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"x": torch.zeros(2, 6, 7, 7), "weight": torch.zeros(9, 8, 3, 3), **SLICE, **changes}
    with pytest.raises(error, match=message):
        function(arguments.pop("x"), arguments.pop("weight"), **arguments)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (4, 6, "out_offset = 6: expected an integer from 0 to 5"),
        (5, -1, "in_offset = -1"),
        (6, 0, "stride = 0"),
        (7, 3, "padding = 3"),
        (8, 4, "groups = 4"),
        (0, torch.zeros(2, 6, 7, 7), "x: has strides"),
        (1, torch.zeros(9, 8, 3, 2), "weight has shape"),
        (2, torch.zeros(9), None),
        (2, torch.zeros(8), "bias: has shape"),
        (3, torch.zeros(2, 4, 7, 6).to(memory_format=torch.channels_last), "y: has shape"),
    ],
)
def test_the_extension_keeps_memory_safe(position: int, value: Any, message: str | None) -> None:
    x, y = (torch.zeros(2, c, n, n).to(memory_format=torch.channels_last) for c, n in ((6, 7), (4, 5)))
    arguments = [x, torch.zeros(9, 8, 3, 3), None, y, 2, 1, 1, 0, 1, _C.best_isa(), 1]
    arguments[position] = value
    if message is None:
        _C.sliced_conv2d_forward(*arguments)
        return
    with pytest.raises(ValueError, match=message):
        _C.sliced_conv2d_forward(*arguments)


@pytest.mark.parametrize("in_offset", [0, 1])
def test_one_channel_of_a_wider_weight_is_no_depthwise_convolution(in_offset: int) -> None:
    x, weight = torch.randn(2, 1, 7, 7, requires_grad=True), torch.randn(3, 2, 3, 3, requires_grad=True)
    options = {"out_channels": 1, "in_offset": in_offset, "padding": 1}
    found = []
    for function in (sk.sliced_conv2d, sk.sliced_conv2d_reference):
        y = function(x, weight, **options)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, weight])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
