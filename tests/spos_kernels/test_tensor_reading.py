"""How tensors reach the kernels: what the exchange table would get wrong or crash on is refused or goes elsewhere."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import spos_kernels as sk
from spos_kernels import _C

ZEROS = torch.zeros(2, 4, 6, 6).to(memory_format=torch.channels_last)
OPERATOR = "spos_kernels.depthwise_conv2d.default"


class Plain(Tensor):
    """A subclass without behaviour of its own."""


class Wrapped(Tensor):
    """A subclass that sees every operator, with its data in another tensor: it has no memory of its own."""

    inner: Tensor
    seen: list[str]

    @staticmethod
    def __new__(cls, inner: Tensor, seen: list[str]) -> "Wrapped":
        self: Wrapped = Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), dtype=inner.dtype)
        self.inner, self.seen = inner, seen
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for arg in args:
            if isinstance(arg, Wrapped):
                arg.seen.append(str(func))
        return func(*(a.inner if isinstance(a, Wrapped) else a for a in args), **(kwargs or {}))


def call(x: Any = None, weight: Any = None, y: Any = None, stride: int = 1, padding: int = 1, isa: Any = None) -> None:
    defaults = ZEROS, torch.zeros(4, 1, 3, 3), ZEROS.clone(memory_format=torch.preserve_format)
    x, weight, y = (d if given is None else given for given, d in zip((x, weight, y), defaults, strict=True))
    _C.depthwise_conv2d_forward(x, weight, y, stride, padding, isa or _C.best_isa(), 1)


def channels_last(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype).to(memory_format=torch.channels_last)


def negative_view(*shape: int) -> Tensor:
    """In the kernels' layout, so that no copy on the way resolves the bit."""
    return torch._neg_view(channels_last(*shape))


def test_the_exchange_table_is_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "data_ptr", lambda self: pytest.fail("read through attributes"))
    call(weight=torch.nn.Parameter(torch.randn(4, 1, 3, 3)))


@pytest.fixture
def no_exchange_table() -> Iterator[None]:
    _C.set_tensor_types(Tensor, torch.nn.Parameter, None)
    yield
    _C.set_tensor_types(Tensor, torch.nn.Parameter, getattr(Tensor, "__dlpack_c_exchange_api__", None))


@pytest.mark.usefixtures("no_exchange_table")
def test_without_an_exchange_table_attributes_serve() -> None:
    x, weight = channels_last(2, 9, 6, 6)[:, 2:7], torch.randn(5, 1, 3, 3)
    torch.testing.assert_close(sk.depthwise_conv2d(x, weight), sk.depthwise_conv2d_reference(x, weight))
    test_the_extension_refuses("dtype")
    test_the_extension_refuses("meta")


def test_a_foreign_capsule_is_refused() -> None:
    import datetime

    with pytest.raises(ValueError, match="incorrect name"):
        _C.set_tensor_types(Tensor, torch.nn.Parameter, datetime.datetime_CAPI)  # type: ignore[attr-defined]


def test_the_negative_bit_is_seen() -> None:
    x, weight = negative_view(2, 4, 6, 6), negative_view(4, 1, 3, 3)
    assert x.is_neg() and weight.is_neg()
    expected = sk.depthwise_conv2d_reference(x.resolve_neg(), weight.resolve_neg())
    torch.testing.assert_close(sk.depthwise_conv2d(x, weight), expected)
    gradient = negative_view(2, 4, 6, 6)
    leaf = x.detach().requires_grad_()
    (dx,) = torch.autograd.grad(sk.depthwise_conv2d(leaf, weight), leaf, gradient)
    (expected,) = torch.autograd.grad(sk.depthwise_conv2d_reference(leaf, weight), leaf, gradient)
    torch.testing.assert_close(dx, expected)


def test_requires_grad_does_not_matter_to_the_reader() -> None:
    call(x=channels_last(2, 4, 6, 6).requires_grad_())


def test_a_fake_tensor_becomes_a_fake_result() -> None:
    with FakeTensorMode():
        x, weight = channels_last(2, 8, 9, 9), torch.randn(8, 1, 3, 3)
        y = sk.depthwise_conv2d(x, weight, stride=2)
    assert type(y).__name__ == "FakeTensor"
    assert y.shape == (2, 8, 5, 5)
    assert y.stride() == (200, 1, 40, 8)


def test_a_plain_subclass_is_right() -> None:
    x, weight = channels_last(2, 4, 6, 6), torch.randn(4, 1, 3, 3)
    y = sk.depthwise_conv2d(x.as_subclass(Plain), weight)
    assert type(y) is Plain
    torch.testing.assert_close(y.as_subclass(Tensor), sk.depthwise_conv2d_reference(x, weight))


def test_a_dispatching_subclass_sees_the_operator() -> None:
    x, weight = channels_last(2, 4, 6, 6), torch.randn(4, 1, 3, 3)
    wrapped = Wrapped(x, [])
    torch.testing.assert_close(sk.depthwise_conv2d(wrapped, weight), sk.depthwise_conv2d_reference(x, weight))
    assert OPERATOR in wrapped.seen


def test_modes_see_the_operator_forward_and_backward() -> None:
    seen: list[str] = []

    class Dispatch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Function(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    x, weight = channels_last(2, 4, 6, 6).requires_grad_(), torch.randn(4, 1, 3, 3, requires_grad=True)
    y = sk.depthwise_conv2d(x, weight)
    with Dispatch():
        sk.depthwise_conv2d(x, weight)
        y.sum().backward()
    assert {OPERATOR, *(OPERATOR.replace("2d.", f"2d_{p}.") for p in ("dgrad", "wgrad"))} <= set(seen)
    seen.clear()
    with Function():
        sk.depthwise_conv2d(x, weight)
    assert any("spos_kernels.depthwise_conv2d" in name or "spos_kernels" in name for name in seen)


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "not a tensor": ({"x": [1.0]}, TypeError, "x: expected a torch.Tensor"),
    "numpy": ({"x": torch.zeros(2, 4, 6, 6).numpy()}, TypeError, "x: expected a torch.Tensor"),
    "dtype": ({"x": channels_last(2, 4, 6, 6).bfloat16()}, TypeError, "x: dtype is torch.bfloat16"),
    "integer": ({"x": channels_last(2, 4, 6, 6).int()}, TypeError, "x: dtype is torch.int32"),
    "mixed dtypes": ({"weight": torch.randn(4, 1, 3, 3).double()}, TypeError, "weight and x differ in dtype"),
    "output dtype": ({"y": channels_last(2, 4, 6, 6).double()}, TypeError, "y and x differ in dtype"),
    "layout": ({"x": torch.randn(2, 4, 6, 6)}, ValueError, "x: has strides .* expected channels_last"),
    "output layout": ({"y": torch.randn(2, 4, 6, 6)}, ValueError, "y: has strides .* expected channels_last"),
    "sparse": ({"x": torch.randn(2, 4, 6, 6).to_sparse()}, ValueError, "x: layout is torch.sparse_coo"),
    "meta": ({"x": torch.randn(2, 4, 6, 6, device="meta")}, ValueError, "x: is on meta"),
    "negative bit": ({"x": negative_view(2, 4, 6, 6)}, ValueError, "x: has the negative bit"),
    "3 dimensions": ({"x": torch.randn(4, 6, 6)}, ValueError, r"x: has shape \[4, 6, 6\]"),
    "5 dimensions": ({"x": torch.randn(1, 2, 4, 6, 6)}, ValueError, "x: has 5 dimensions"),
    "kernel": ({"weight": torch.randn(4, 1, 4, 4)}, ValueError, r"weight has shape \[4, 1, 4, 4\]"),
    "weight shape": ({"weight": torch.randn(5, 1, 3, 3)}, ValueError, "weight: has shape"),
    "weight strides": ({"weight": torch.randn(4, 1, 3, 3).transpose(2, 3)}, ValueError, "weight: has strides"),
    "output shape": ({"y": channels_last(2, 4, 6, 5)}, ValueError, r"y: has shape .* expected \[2, 4, 6, 6\]"),
    "stride": ({"stride": 3}, ValueError, "stride = 3"),
    "padding": ({"padding": -1}, ValueError, "padding = -1"),
    "too small": ({"x": channels_last(2, 4, 1, 6), "padding": 0}, ValueError, "x has shape"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_extension_refuses(name: str) -> None:
    arguments, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call(**arguments)


def test_tensors_without_memory_are_refused() -> None:
    with FakeTensorMode():
        fake = channels_last(2, 4, 6, 6)
    with pytest.warns(UserWarning, match="FakeTensor"), pytest.raises(ValueError, match="x: has no memory"):
        call(x=fake)
    freed = channels_last(2, 4, 6, 6)
    freed.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="x: has no memory"):
        call(x=freed)
    weight, y = torch.zeros(4, 1, 3, 3), ZEROS.clone()
    with pytest.raises(RuntimeError, match="storage"):
        torch.func.vmap(lambda x: call(x, weight, y))(torch.stack([ZEROS, ZEROS]))


def test_one_openmp_runtime_serves_torch_and_the_kernels() -> None:
    program = """
import spos_kernels as sk, torch
sk.depthwise_conv2d(torch.randn(4, 16, 8, 8), torch.randn(16, 1, 3, 3))
paths = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
print(sum(any(n in p.rsplit("/", 1)[1] for n in ("libgomp", "libomp", "libiomp")) for p in paths))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.strip() == "1"
