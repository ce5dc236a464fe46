"""What fake quantization accepts and refuses: layouts, zero points, every bad argument, in compiled code too."""

from typing import Any

import pytest
import torch
from fake_quantize_support import KINDS, LAYOUTS, Kind

import spos_kernels as sk
from spos_kernels import _C
from spos_kernels.fake_quantize_kernels import laid_out_like

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_every_layout_is_accepted(axis: int | None, layout: str, kind: Kind) -> None:
    x = LAYOUTS[layout](torch.randn(3, 40, 7, 7)).detach().requires_grad_()
    count = 1 if axis is None else x.shape[axis]
    learned = None if kind.method == "dorefa" else (torch.rand(2 * count) + 0.1)[::2].requires_grad_()
    zero_point = torch.ones(count, dtype=torch.int32) if kind.affine else None
    arguments = (x, 3, kind.method, learned)
    options: dict[str, Any] = {"signed": kind.signed, "zero_point": zero_point, "axis": axis}
    y, codes = sk.fake_quantize(*arguments, **options), sk.quantize(*arguments, **options)
    expected = sk.fake_quantize_reference(*arguments, **options)
    like = torch.empty_like(x)
    assert y.stride() == like.stride() and codes.stride() == like.stride()
    assert codes.dtype == (torch.int8 if kind.signed else torch.uint8) and not codes.requires_grad
    torch.testing.assert_close(y, expected)
    assert torch.equal(codes, sk.quantize_reference(*arguments, **options))
    tensors = [x] if learned is None else [x, learned]
    # sum().backward() sends an expanded gradient, of stride 0 in every dimension
    for weight in (torch.ones(()), torch.randn(x.shape), torch.randn(x.transpose(0, -1).shape).transpose(0, -1)):
        gradients = torch.autograd.grad((y * weight).sum(), tensors, retain_graph=True)
        right = torch.autograd.grad((expected * weight).sum(), tensors, retain_graph=True)
        for a, b in zip(gradients, right, strict=True):
            assert a.shape == b.shape
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 7), (2, 5, 6, 7), (2, 3, 4, 5, 6)])
def test_a_dense_tensor_is_read_in_place(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(shape).transpose(0, -1)
    seen: list[int] = []
    kernel = _C.fake_quantize_forward
    monkeypatch.setattr(_C, "fake_quantize_forward", lambda x, *rest: (seen.append(x.data_ptr()), kernel(x, *rest)))
    y = sk.fake_quantize(x, 4, "lsq", torch.full((x.shape[1],), 0.1), axis=1)
    assert seen == [x.data_ptr()] and y.stride() == x.stride()


@pytest.mark.parametrize("shape", [(), (1,)])
def test_a_gradient_has_the_shape_of_what_is_learned(shape: tuple[int, ...]) -> None:
    for function in (sk.fake_quantize, sk.fake_quantize_reference):
        for x in (torch.randn(3, 4), torch.randn(()), torch.empty(0, 3)):
            step = torch.full(shape, 0.1, requires_grad=True)
            function(x, 4, "lsq", step).sum().backward()
            assert step.grad is not None and step.grad.shape == shape


def test_an_integer_zero_point_is_one_for_all_channels() -> None:
    x, step = torch.randn(4, 6), torch.rand(6) + 0.1
    for zero_point in (0, 3):
        tensor = torch.full((6,), zero_point, dtype=torch.int32)
        for function in (sk.fake_quantize, sk.quantize):
            one = function(x, 4, "lsq", step, zero_point=zero_point, axis=1)
            assert torch.equal(one, function(x, 4, "lsq", step, zero_point=tensor, axis=1))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": None}, TypeError, "x: expected a torch.Tensor, got NoneType"),
        ({"x": torch.zeros(2, 6, dtype=torch.bfloat16)}, TypeError, "x has dtype torch.bfloat16: accepted are"),
        ({"x": torch.zeros(2, 6).to_sparse()}, ValueError, "x has layout torch.sparse_coo"),
        ({"bits": 0}, ValueError, "bits = 0: accepted are integers from 1 to 8"),
        ({"bits": 9}, ValueError, "bits = 9: accepted"),
        ({"bits": 4.0}, TypeError, r"bits = 4\.0: expected an integer"),
        ({"bits": True}, TypeError, "bits = True: expected an integer"),
        ({"method": "LSQ"}, ValueError, "method = 'LSQ': accepted are 'dorefa', 'pact', 'lsq'"),
        ({"method": "dorefa"}, ValueError, "learned is a value: method 'dorefa' accepts None"),
        ({"learned": None}, ValueError, "learned is None: method 'lsq' accepts a tensor, the step"),
        ({"method": "pact", "learned": None}, ValueError, "learned is None: .* a tensor, the clip"),
        ({"learned": 0.1}, TypeError, "learned: expected a torch.Tensor, got float"),
        ({"learned": torch.ones(2)}, ValueError, r"learned has shape \[2\]: expected \[\] or \[1\], or axis"),
        ({"axis": 1}, ValueError, r"learned has shape \[\]: expected \[C\] with C = 6, axis 1 of x"),
        ({"learned": torch.ones(2), "axis": -1}, ValueError, r"learned has shape \[2\]: expected \[C\] with C = 6"),
        ({"learned": torch.ones((), dtype=torch.float64)}, TypeError, "learned has dtype torch.float64: expected"),
        ({"learned": torch.ones((), device="meta")}, ValueError, "learned is on meta: expected the device of x, cpu"),
        ({"learned": torch.tensor(0.0)}, ValueError, r"learned\[0\] = 0.0: accepted are finite numbers above 0"),
        ({"learned": torch.tensor(-1.0)}, ValueError, r"learned\[0\] = -1.0: accepted"),
        ({"learned": torch.tensor(torch.inf)}, ValueError, r"learned\[0\] = inf: accepted"),
        ({"learned": torch.tensor([0.5, torch.nan]), "axis": 0}, ValueError, r"learned\[1\] = nan: accepted"),
        ({"signed": 1}, TypeError, "signed = 1: expected True or False"),
        ({"signed": True, "method": "pact"}, ValueError, "signed = True: method 'pact' accepts False"),
        ({"zero_point": 3, "method": "pact"}, ValueError, "zero_point = 3: method 'pact' accepts None"),
        ({"zero_point": 16}, ValueError, "zero_point = 16: accepted are integers from 0 to 15"),
        ({"zero_point": -9, "signed": True}, ValueError, "zero_point = -9: accepted are integers from -8 to 7"),
        ({"zero_point": 1.0}, TypeError, r"zero_point = 1\.0: expected an integer, a torch.int32 tensor or None"),
        ({"zero_point": torch.ones(())}, TypeError, "zero_point has dtype torch.float32: accepted is torch.int32"),
        ({"zero_point": torch.ones(2, dtype=torch.int32)}, ValueError, r"zero_point has shape \[2\]: expected \[\]"),
        (
            {"zero_point": torch.tensor(-1, dtype=torch.int32)},
            ValueError,
            r"zero_point\[0\] = -1(.0)?: accepted are integers from 0 to 15",
        ),
        ({"axis": 2}, ValueError, "axis = 2: expected an axis of x, which has 2 dimensions"),
        ({"axis": -3}, ValueError, "axis = -3"),
        ({"axis": 1.0}, TypeError, r"axis = 1\.0: expected an integer or None"),
    ],
)
@pytest.mark.parametrize("function", [sk.fake_quantize, sk.fake_quantize_reference, sk.quantize, sk.quantize_reference])
def test_bad_input(function: Any, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"x": torch.zeros(2, 6), "bits": 4, "method": "lsq", "learned": torch.tensor(0.5), **changes}
    positional = [arguments.pop(name) for name in ("x", "bits", "method", "learned")]
    with pytest.raises(error, match=message):
        function(*positional, **arguments)


def test_a_bad_value_is_found_in_compiled_code_too() -> None:
    compiled = torch.compile(lambda x, step: sk.fake_quantize(x, 4, "lsq", step), fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=r"learned\[0\] = 0: accepted|learned\[0\] = 0.0: accepted"):
        compiled(torch.zeros(3), torch.zeros(()))
    torch.compiler.reset()


def test_the_extension_refuses_what_would_not_be_safe() -> None:
    x, y = torch.zeros(4, 6), torch.zeros(4, 6)
    step = torch.ones(6)
    good = (_C.QuantizeMethod.lsq, 4, False, 6, 1, _C.best_isa(), 1)
    _C.fake_quantize_forward(x, step, None, y, *good)
    for given, message in [
        ((x[:, ::2], step, None, y, *good), "dense"),
        ((x, step[:5], None, y, *good), "one value for each of 6 channels"),
        ((x, step, torch.ones(7), y, *good), "zero_point: expected one value"),
        ((x, step, None, y[:3], *good), "y: expected shape and strides of x"),
        ((x, step, None, y.t(), *good), "y: expected shape and strides of x"),
        ((x, torch.ones(5), None, y, *good[:3], 5, 1, *good[5:]), "no multiple"),
        ((x, step, None, y, good[0], 9, *good[2:]), "bits = 9"),
    ]:
        with pytest.raises(ValueError, match=message):
            _C.fake_quantize_forward(*given)
    with pytest.raises(TypeError, match=r"codes: dtype is torch.float32, accepted are torch.int8 and torch.uint8"):
        _C.fake_quantize_codes(x, step, None, y, *good)
    with pytest.raises(ValueError, match="dscale: method dorefa has none"):
        _C.fake_quantize_backward(x, x, step, None, y, step, _C.QuantizeMethod.dorefa, *good[1:])


def test_a_copy_is_on_the_device_of_what_is_copied() -> None:
    tensor = torch.empty(3, 4, device="meta").t()
    copy = laid_out_like(tensor, torch.empty(4, 3, device="meta"))
    assert copy is not tensor and copy.device == tensor.device and copy.is_contiguous()
