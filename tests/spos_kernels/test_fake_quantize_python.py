"""The Python face of fake quantization: gradients, operators, compile, torch.func, autocast."""

from typing import Any

import pytest
import torch
from fake_quantize_support import CHANNELS_LAST, EXACT, KINDS, Case, Kind, arguments
from torch import Tensor
from torch.library import opcheck

import spos_kernels as sk
from spos_kernels import _C
from spos_kernels.fake_quantize_reference import Call

OPS = torch.ops.spos_kernels
SMALL = Case((2, 6, 5, 5), 1, CHANNELS_LAST)
WHOLE = Case((2, 6, 5, 5))
pytestmark = pytest.mark.usefixtures("one_thread")


def leaves(call: Call) -> list[Tensor]:
    """x and learned (dorefa has none) with gradients wanted, in the layouts they have."""
    return [t.detach().clone().requires_grad_() for t in (call.x, call.learned) if t is not None]


def apply(function: Any, call: Call, tensors: list[Tensor]) -> Tensor:
    bits, method, signed, axis = call.quantizer
    return function(tensors[0], bits, method, *tensors[1:], signed=signed, zero_point=call.zero_point, axis=axis)


def through(value: Tensor, surrogate: Tensor) -> Tensor:
    return value.detach() + (surrogate - surrogate.detach())


def published(call: Call, x: Tensor, learned: Tensor | None) -> Tensor:
    """The methods as their papers' authors write them for autograd. x lies on no limit."""
    method, axis = call.quantizer.method, call.quantizer.axis
    low, high = call.quantizer.low, call.quantizer.high
    shape = [-1 if d == axis else 1 for d in range(x.ndim)]
    if method == "dorefa":
        tanh = x.tanh()
        largest = tanh.detach().abs().amax([d for d in range(x.ndim) if d != axis], keepdim=True)
        ratio = tanh / (2 * largest) + 0.5
        return 2 * through((ratio * high).round() / high, ratio) - 1
    assert learned is not None
    if method == "pact":
        clip = learned.view(shape)
        clipped = 0.5 * (x.abs() - (x - clip).abs() + clip)
        return through((clipped * (high / clip)).round() * (clip / high), clipped)
    zero = 0 if call.zero_point is None else call.zero_point.view(shape).to(x.dtype)
    governed = x.numel() if axis is None else x.numel() // x.shape[axis]
    factor = 1 / (governed * max(high, 1)) ** 0.5
    step = learned.view(shape)
    step = through(step, step * factor)
    v = torch.clamp(x / step, low - zero, high - zero)
    return through(v.round(), v) * step


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("case", [SMALL, WHOLE, Case((6, 40), 0), Case((6, 40), -1)], ids=str)
def test_gradients_are_those_of_the_published_methods(case: Case, kind: Kind) -> None:
    for bits in (1, 2, 4, 8):
        call = arguments(case, kind, bits, torch.float64)
        call = call._replace(x=case.lay_out(0.5 * torch.randn(case.shape, dtype=torch.float64)))
        for function in (sk.fake_quantize, sk.fake_quantize_reference):
            ours, theirs = leaves(call), leaves(call)
            y = apply(function, call, ours)
            expected = published(call, *theirs, *(None,) * (2 - len(theirs)))
            torch.testing.assert_close(y, expected)
            dy = torch.randn_like(y)
            for a, b in zip(torch.autograd.grad(y, ours, dy), torch.autograd.grad(expected, theirs, dy), strict=True):
                assert a.shape == b.shape
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", EXACT, ids=str)
def test_a_value_on_a_limit(kind: Kind) -> None:
    """Where the papers leave a choice or autograd makes another one, both implementations take the documented one."""
    bits, step = 3, 0.5
    zero_point = 1 if kind.affine else None
    low, high = (-4, 3) if kind.signed else (0, 7)
    low, high = low - (zero_point or 0), high - (zero_point or 0)
    learned = torch.tensor(step * high if kind.method == "pact" else step)
    expected_dx = [0.0, 0.0] if kind.method == "pact" else [1.0, 1.0]
    expected = 1.0 if kind.method == "pact" else (low + high) / (2 * max(high + (zero_point or 0), 1)) ** 0.5
    for function in (sk.fake_quantize, sk.fake_quantize_reference):
        x = torch.tensor([low * step, high * step], requires_grad=True)
        tensor = learned.clone().requires_grad_()
        y = function(x, bits, kind.method, tensor, signed=kind.signed, zero_point=zero_point)
        assert torch.equal(y, x)
        y.sum().backward()
        assert x.grad is not None and x.grad.tolist() == expected_dx
        torch.testing.assert_close(tensor.grad, torch.tensor(expected))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("case", [SMALL, WHOLE], ids=str)
def test_opcheck(case: Case, kind: Kind) -> None:
    call = arguments(case, kind, 4)
    call = call._replace(x=case.lay_out(torch.randn(case.shape)))
    x, *learned = leaves(call)
    scale = learned[0] if learned else OPS.fake_quantize_maximum(x.detach(), call.quantizer.axis, "cpu")
    options = (scale, call.zero_point, *call.quantizer, "cpu")
    opcheck(OPS.fake_quantize.default, (x, *options))
    opcheck(OPS.fake_quantize_maximum.default, (x.detach(), call.quantizer.axis, "cpu"))
    x, options = x.detach(), (scale.detach(), *options[1:])
    opcheck(OPS.quantize.default, (x, *options))
    for needs_dx, needs_dscale in ((True, bool(learned)), (True, False), (False, bool(learned))):
        opcheck(
            OPS.fake_quantize_backward.default, (torch.randn_like(x), x, *options[:-1], needs_dx, needs_dscale, "cpu")
        )


@pytest.mark.parametrize("needed", ["x", "learned"])
def test_only_the_gradient_that_is_asked_for_is_computed(needed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[bool, bool]] = []
    kernel = _C.fake_quantize_backward

    def watched(dy: Tensor, x: Tensor, scale: Tensor, zero: None, dx: Any, dscale: Any, *rest: Any) -> None:
        given.append((dx is not None, dscale is not None))
        kernel(dy, x, scale, zero, dx, dscale, *rest)

    monkeypatch.setattr(_C, "fake_quantize_backward", watched)
    x, step = torch.randn(40, requires_grad=needed == "x"), torch.tensor(0.1, requires_grad=needed == "learned")
    sk.fake_quantize(x, 4, "lsq", step).sum().backward()
    assert given == [(needed == "x", needed == "learned")]
    assert (x.grad is None) == (needed == "learned") and (step.grad is None) == (needed == "x")


def test_changing_a_saved_tensor_in_place_is_noticed() -> None:
    for change in (0, 1):
        tensors = [torch.randn(40, requires_grad=True), torch.tensor(0.1, requires_grad=True)]
        y = sk.fake_quantize(tensors[0], 4, "lsq", tensors[1])
        with torch.no_grad():
            tensors[change].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_double_backward_is_refused_and_the_reference_has_it() -> None:
    x, step = torch.randn(40, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"double backward .* use backend 'reference'"):
        torch.autograd.grad(sk.fake_quantize(x, 4, "lsq", step).square().sum(), x, create_graph=True)
    with sk.use_backend("reference"):
        (dx,) = torch.autograd.grad(sk.fake_quantize(x, 4, "lsq", step).square().sum(), x, create_graph=True)
    assert torch.autograd.grad(dx.square().sum(), x)[0].isfinite().all()


def test_backward_runs_where_forward_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    kernel = _C.fake_quantize_backward
    monkeypatch.setattr(_C, "fake_quantize_backward", lambda *args: (calls.append(1), kernel(*args)))
    x, step = torch.randn(40, requires_grad=True), torch.tensor(0.1, requires_grad=True)
    with sk.use_backend("cpu"):
        y = sk.fake_quantize(x, 4, "lsq", step)
    with sk.use_backend("reference"):
        reference = sk.fake_quantize(x, 4, "lsq", step)
        y.sum().backward()
    assert len(calls) == 1
    with sk.use_backend("cpu"):
        reference.sum().backward()
    assert len(calls) == 1


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_compile_breaks_no_graph_and_follows_the_backend(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    kernel = _C.fake_quantize_forward
    monkeypatch.setattr(_C, "fake_quantize_forward", lambda *args: (calls.append(1), kernel(*args)))
    call = arguments(SMALL, kind, 4)
    call = call._replace(x=SMALL.lay_out(torch.randn(SMALL.shape)))
    compiled = torch.compile(
        lambda *tensors: apply(sk.fake_quantize, call, [tensors[0] * 2, *tensors[1:]]) * 2,
        fullgraph=True,
        backend="aot_eager",
    )
    codes = torch.compile(lambda *tensors: apply(sk.quantize, call, list(tensors)), fullgraph=True, backend="aot_eager")
    tensors = leaves(call)
    expected = apply(sk.fake_quantize_reference, call, [tensors[0] * 2, *tensors[1:]]) * 2
    right = torch.autograd.grad(expected.square().sum(), tensors)
    for backend, operators in (("auto", 1), ("reference", 0), ("cpu", 1)):
        calls.clear()
        with sk.use_backend(backend):
            y = compiled(*tensors)
            assert torch.equal(codes(*tensors), apply(sk.quantize, call, tensors))
        assert len(calls) == operators
        torch.testing.assert_close(y, expected)
        for gradient, reference in zip(torch.autograd.grad(y.square().sum(), tensors), right, strict=True):
            torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


def test_compile_with_dynamic_sizes() -> None:
    compiled = torch.compile(sk.fake_quantize, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in (7, 8, 11):
        x, step = torch.randn(size, 5, requires_grad=True), torch.full((5,), 0.1, requires_grad=True)
        y = compiled(x, 4, "lsq", step, axis=1)
        assert torch.equal(y, sk.fake_quantize_reference(x, 4, "lsq", step, axis=1))
        y.sum().backward()
    torch.compiler.reset()


def test_export_keeps_the_operator() -> None:
    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return sk.fake_quantize(sk.fake_quantize(x, 4, "pact", self.clip), 2, "dorefa")

    module, x = Module(), torch.randn(3, 4)
    exported = torch.export.export(module, (x,))
    assert "spos_kernels.fake_quantize" in exported.graph_module.code
    torch.testing.assert_close(exported.module()(x), module(x))


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_torch_func_runs_on_the_reference_and_an_explicit_backend_says_no(kind: Kind) -> None:
    call = arguments(WHOLE, kind, 4)
    call = call._replace(x=torch.randn(WHOLE.shape))
    x, *rest = leaves(call)
    gradient = torch.func.grad(lambda x: apply(sk.fake_quantize, call, [x, *rest]).square().sum())
    (expected,) = torch.autograd.grad(apply(sk.fake_quantize_reference, call, [x, *rest]).square().sum(), x)
    torch.testing.assert_close(gradient(call.x), expected)
    _, tangent = torch.func.jvp(lambda x: apply(sk.fake_quantize, call, [x, *rest]), (call.x,), (torch.ones_like(x),))
    (row_sums,) = torch.autograd.grad(apply(sk.fake_quantize_reference, call, [x, *rest]).sum(), x)
    torch.testing.assert_close(tangent, row_sums)  # the Jacobian in x is diagonal
    batched = torch.func.vmap(lambda x: apply(sk.fake_quantize, call, [x, *rest]))(torch.stack([call.x, 2 * call.x]))
    torch.testing.assert_close(batched[1], apply(sk.fake_quantize_reference, call, [2 * call.x, *rest]))
    with sk.use_backend("cpu"), pytest.raises(RuntimeError, match=r"torch\.func transforms: use backend 'reference'"):
        gradient(call.x)


@pytest.mark.parametrize("function", [sk.fake_quantize, sk.fake_quantize_reference])
def test_autocast_computes_in_float32(function: Any) -> None:
    half, clip = torch.randn(4, 5).bfloat16().requires_grad_(), torch.tensor(1.5, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = function(half, 4, "pact", clip)
        assert function(half, 4, "pact", clip.bfloat16()).dtype == torch.float32
    assert torch.equal(y, sk.fake_quantize_reference(half.detach().float(), 4, "pact", clip))
    y.sum().backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16
    assert clip.grad is not None and clip.grad.dtype == torch.float32
