"""The gradient sink: it holds what autograd would have, where it was touched and nowhere else, at no other cost."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import spos_kernels as sk
from spos_kernels import _C
from spos_kernels.gradient_sink import Extent

Call = Callable[..., Tensor]


def conv(x: Tensor, weight: Tensor, width: int = 4, sliced: Call = sk.sliced_conv2d) -> Tensor:
    return sliced(x, weight, out_channels=width, out_offset=1, in_offset=2, padding=weight.shape[2] // 2)


def make(kernel: int = 3, channels_last: bool = False) -> tuple[Tensor, nn.Parameter]:
    weight = torch.randn(9, 8, kernel, kernel)
    if channels_last:
        weight = weight.to(memory_format=torch.channels_last)
    return torch.randn(2, 6, 7, 7, requires_grad=True), nn.Parameter(weight)


def poison(sink: sk.GradientSink, *parameters: Tensor) -> None:
    for parameter in parameters:
        sink.buffer(parameter).fill_(float("nan"))


def assert_holds(sink: sk.GradientSink, parameter: Tensor, expected: Tensor) -> None:
    """What autograd has, in the touched extents alone; the rest of the buffer is as poison() left it."""
    gradient = sink.gradient(parameter)
    assert gradient is not None
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
    buffer = sink.buffer(parameter).clone()
    assert buffer.stride() == parameter.stride()
    for extent in sink.extents(parameter):
        extent.of(buffer).fill_(float("nan"))
    assert buffer.isnan().all()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("inside", [False, True])
def test_a_gradient_goes_to_the_sink_alone(kernel: int, channels_last: bool, inside: bool) -> None:
    x, weight = make(kernel, channels_last)
    sink = sk.GradientSink([weight])
    poison(sink, weight)
    with sink as entered:
        assert entered is sink
        y = conv(x, weight)
        if inside:
            y.square().sum().backward()
    if not inside:
        y.square().sum().backward()
    assert weight.grad is None
    assert sink.extents(weight) == (Extent(1, 5, 2, 8),)
    dx, expected = torch.autograd.grad(conv(x, weight, sliced=sk.sliced_conv2d_reference).square().sum(), (x, weight))
    assert_holds(sink, weight, expected)
    torch.testing.assert_close(x.grad, dx, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("widths", [(4, 4), (6, 3), (3, 6), (2, 5, 3)])
def test_gradients_of_one_step_add_up_whatever_their_widths(widths: tuple[int, ...]) -> None:
    x, weight = make()
    sink = sk.GradientSink([weight])
    poison(sink, weight)
    expected = torch.zeros_like(weight)
    for width in widths:
        with sink:
            conv(x, weight, width).square().sum().backward()
        loss = conv(x, weight, width, sk.sliced_conv2d_reference).square().sum()
        expected += torch.autograd.grad(loss, weight)[0]
    assert_holds(sink, weight, expected)
    touched = sum((e.row_end - e.row_begin) * (e.column_end - e.column_begin) for e in sink.extents(weight))
    assert touched == max(widths) * 6


def test_extents_that_overlap_in_part() -> None:
    parameter = nn.Parameter(torch.zeros(10, 12))
    sink = sk.GradientSink([parameter])
    poison(sink, parameter)
    expected = torch.zeros(10, 12)
    for extent in (
        Extent(2, 6, 3, 9),
        Extent(4, 10, 0, 5),
        Extent(0, 10, 4, 7),
        Extent(3, 5, 4, 8),
        Extent(9, 9, 0, 4),
    ):
        gradient = torch.randn(extent.row_end - extent.row_begin, extent.column_end - extent.column_begin)
        sink.accumulate(parameter, extent, gradient)
        extent.of(expected).add_(gradient)
    assert_holds(sink, parameter, expected)
    seen = torch.zeros(10, 12)
    for extent in sink.extents(parameter):
        extent.of(seen).add_(1)
    assert torch.equal(seen, (expected != 0).float())  # disjoint


def test_the_first_gradient_after_zero_grad_overwrites() -> None:
    x, weight = make()
    sink = sk.GradientSink([weight])
    for _ in range(2):
        sink.zero_grad()
        assert sink.gradient(weight) is None and sink.extents(weight) == ()
        poison(sink, weight)
        with sink:
            conv(x, weight).sum().backward()
    (expected,) = torch.autograd.grad(conv(x, weight, sliced=sk.sliced_conv2d_reference).sum(), weight)
    assert_holds(sink, weight, expected)


@pytest.mark.parametrize("kernel", [3, 5])
def test_depthwise_slices_store_and_add(kernel: int) -> None:
    x, weight = torch.randn(2, 6, 9, 9), nn.Parameter(torch.randn(10, 1, kernel, kernel))
    options = {"out_offset": 3, "padding": kernel // 2, "groups": 6}
    sink = sk.GradientSink([weight])
    poison(sink, weight)
    (once,) = torch.autograd.grad(sk.sliced_conv2d_reference(x, weight, **options).square().sum(), weight)
    for times in (1, 2):
        with sink:
            sk.sliced_conv2d(x, weight, **options).square().sum().backward()
        assert_holds(sink, weight, times * once)


def test_linear_layers_send_weight_and_bias() -> None:
    x = torch.randn(4, 6, requires_grad=True)
    weight, bias = nn.Parameter(torch.randn(9, 8)), nn.Parameter(torch.randn(9))
    options = {"out_features": 5, "out_offset": 2, "in_offset": 1}
    expected = torch.autograd.grad(
        sk.sliced_linear_reference(x, weight, bias, **options).square().sum(), (x, weight, bias)
    )
    for parameters in ([weight, bias], [weight], [bias]):
        x.grad = weight.grad = bias.grad = None
        sink = sk.GradientSink(parameters)
        poison(sink, *parameters)
        with sink:
            sk.sliced_linear(x, weight, bias, **options).square().sum().backward()
        torch.testing.assert_close(x.grad, expected[0])
        for parameter, right in ((weight, expected[1]), (bias, expected[2])):
            if parameter in sink:
                assert parameter.grad is None
                assert_holds(sink, parameter, right)
            else:
                torch.testing.assert_close(parameter.grad, right)


def test_sliced_parameters_serve_other_operations() -> None:
    x, gamma = torch.randn(3, 4, 5, 5), nn.Parameter(torch.randn(9))
    sink = sk.GradientSink([gamma])
    poison(sink, gamma)
    with sink:
        F.batch_norm(x, None, None, sk.sliced_parameter(gamma, 4, 2), training=True).square().sum().backward()
    assert gamma.grad is None
    F.batch_norm(x, None, None, sk.sliced_parameter(gamma, 4, 2), training=True).square().sum().backward()
    assert gamma.grad is not None
    assert_holds(sink, gamma, gamma.grad)
    with pytest.raises(ValueError, match="offset = 6, length = 4: accepted are ranges within the 9 rows"):
        sk.sliced_parameter(gamma, 4, 6)


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("how", ["reference", "dispatch mode"])
def test_every_path_of_a_call_sends_its_gradient(how: str) -> None:
    x, weight = make()
    matrix, bias = nn.Parameter(torch.randn(5, 7)), nn.Parameter(torch.randn(5))
    sink = sk.GradientSink([weight, matrix, bias])
    poison(sink, weight, matrix, bias)

    def loss() -> Tensor:
        y = conv(x, weight).mean((2, 3))
        return sk.sliced_linear(y, matrix, bias, out_features=3, out_offset=1, in_offset=2).square().sum()

    with sink, sk.use_backend("reference") if how == "reference" else Mode():
        value = loss()
    value.backward()
    expected = torch.autograd.grad(loss(), (weight, matrix, bias))
    for parameter, right in zip((weight, matrix, bias), expected, strict=True):
        assert parameter.grad is None
        assert_holds(sink, parameter, right)


def test_what_is_not_in_the_sink_is_as_ever() -> None:
    x, weight = make()
    _, other = make()
    sink = sk.GradientSink([weight])
    with sink:
        conv(x, other).sum().backward()
        assert other.grad is not None and sink.extents(weight) == () and sink.extents(other) == ()
        y = torch.func.functional_call(_Layer(weight), {"weight": other}, (x,))
        y.sum().backward()
        assert sink.extents(weight) == ()
        with torch.no_grad():
            assert not conv(x, weight).requires_grad
    assert sink.extents(weight) == () and weight.grad is None
    conv(x, weight).sum().backward()
    assert weight.grad is not None and sink.extents(weight) == ()


class _Layer(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return conv(x, self.weight)


def test_sinks_nest_and_end_with_an_error() -> None:
    x, weight = make()
    outer, inner = sk.GradientSink([weight]), sk.GradientSink([weight])
    with outer:
        with pytest.raises(KeyError), inner, inner:
            conv(x, weight).sum().backward()
            raise KeyError
        assert inner.extents(weight) and not outer.extents(weight)
        conv(x, weight).sum().backward()
    assert outer.extents(weight)


def test_a_weight_that_moves_to_another_layout_or_dtype_gets_another_buffer() -> None:
    x, weight = make()
    module = _Layer(weight)
    sink = sk.GradientSink(module.parameters())
    for move in ({"memory_format": torch.channels_last}, {"dtype": torch.float64}):
        with sink:
            module(x.to(weight.dtype)).sum().backward()
        module.to(**move)
        sink.zero_grad()
        with sink:
            module(x.to(weight.dtype)).sum().backward()
        buffer = sink.buffer(weight)
        assert buffer.dtype == weight.dtype and buffer.stride() == weight.stride()


def test_clipping_sees_the_sink_and_grad() -> None:
    x, weight = make()
    plain, both = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(4))
    sink = sk.GradientSink([weight, plain, both])

    def loss() -> Tensor:
        return conv(x, weight).square().sum() + plain.square().sum() + (sk.sliced_parameter(both, 2) * both[2:]).sum()

    loss().backward()
    expected = [p.grad.clone() for p in (weight, plain, both) if p.grad is not None]
    right = torch.nn.utils.clip_grad_norm_([weight, plain, both], 0.5)
    clipped = [p.grad.clone() for p in (weight, plain, both) if p.grad is not None]
    for parameter in (weight, plain, both):
        parameter.grad = None
    poison(sink, weight, both)
    with sink:
        loss().backward()
    norm = sink.clip_grad_norm_(0.5)
    torch.testing.assert_close(norm, right)
    assert weight.grad is None
    assert_holds(sink, weight, clipped[0])
    torch.testing.assert_close(plain.grad, clipped[1])
    torch.testing.assert_close(both.grad, clipped[2])
    assert not torch.equal(expected[0], clipped[0])
    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="max_norm = "):
            sink.clip_grad_norm_(bad)


def test_double_backward_is_refused() -> None:
    x, weight = make()
    with sk.GradientSink([weight]), pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(conv(x, weight).square().sum(), (x, weight), create_graph=True, allow_unused=True)


def test_compile_inside_a_sink_is_refused_and_outside_fine() -> None:
    x, weight = make()
    compiled = torch.compile(lambda x: conv(x, weight), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), conv(x, weight))
    with sk.GradientSink([weight]), pytest.raises(Exception, match=r"GradientSink does not work under torch\.compile"):
        compiled(x)


@pytest.mark.parametrize(
    ("parameter", "error", "message"),
    [
        (1.0, TypeError, r"parameters\[0\]: expected a torch.Tensor, got float"),
        (torch.zeros(3, dtype=torch.bfloat16, requires_grad=True), TypeError, "dtype torch.bfloat16"),
        (torch.zeros(3), ValueError, "no leaf that requires a gradient"),
        (torch.zeros(3, requires_grad=True) * 2, ValueError, "no leaf"),
        (torch.zeros((), requires_grad=True), ValueError, "no dimension"),
    ],
)
def test_bad_parameters(parameter: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sk.GradientSink([parameter])


def test_the_extension_is_given_the_weight_itself_and_the_buffer_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = make()
    sink = sk.GradientSink([weight])
    seen: dict[str, int] = {}
    for name, position in (("forward", 1), ("dgrad", 1), ("wgrad", 2)):

        def spy(*args: Any, name: str = name, position: int = position, original: Any = None) -> None:
            seen[name] = args[position].data_ptr()
            original(*args)

        original = getattr(_C, f"sliced_conv2d_{name}")
        monkeypatch.setattr(
            _C, f"sliced_conv2d_{name}", lambda *args, spy=spy, original=original: spy(*args, original=original)
        )
    with sink:
        conv(x, weight).sum().backward()
    pointer = weight.data_ptr()
    assert seen == {"forward": pointer, "dgrad": pointer, "wgrad": sink.buffer(weight).data_ptr()}
