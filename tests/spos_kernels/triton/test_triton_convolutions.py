"""Convolutions and linear layers on the Triton kernels: against float64, slices at offsets, widths in device memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import spos_kernels as sk
from spos_kernels.cuda import sliced_conv2d as kernels

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NAN = float("nan")


def assert_close(result: Tensor, exact: Tensor, magnitude: Tensor) -> None:
    """Within the rounding of the result's type, of sums that are as large as `magnitude`."""
    error = (result.double() - exact).abs()
    assert bool((error <= 4 * torch.finfo(result.dtype).eps * magnitude).all()), float((error / magnitude).max())


def inside(shape: tuple[int, ...], more: int, dtype: torch.dtype, device: str) -> tuple[Tensor, tuple[slice, slice]]:
    """A weight as a slice of a larger one that is NaN elsewhere, and where it is."""
    outputs, inputs = shape[:2]
    whole = torch.full((outputs + more, inputs + more, *shape[2:]), NAN, dtype=dtype, device=device)
    place = slice(more // 2, more // 2 + outputs), slice((more + 1) // 2, (more + 1) // 2 + inputs)
    whole[place] = torch.randn(shape, device=device).to(dtype) / 4
    return whole, place


SHAPES = [  # of x; outputs, kernel, stride, padding, groups, and how much larger the weight is
    ((1, 1, 1, 1), 1, 1, 1, 0, 1, 3),
    ((2, 7, 5, 6), 33, 1, 1, 0, 1, 5),
    ((1, 66, 4, 3), 70, 1, 1, 0, 1, 0),
    ((2, 9, 7, 5), 12, 3, 2, 1, 1, 4),
    ((1, 6, 6, 7), 10, 5, 1, 2, 2, 0),
    ((1, 5, 8, 3), 4, 2, 2, 0, 1, 3),
    ((3, 8, 6, 5), 8, 3, 1, 1, 8, 0),
    ((1, 40, 5, 9), 40, 5, 2, 2, 40, 0),
    ((1, 3, 7, 6), 3, 7, 1, 3, 3, 0),
]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, torch.float32) for shape in SHAPES),
        *((shape, dtype) for shape in SHAPES[2::3] for dtype in DTYPES[1:]),
    ],
    ids=str,
)
def test_sliced_convolution(shape: tuple[Any, ...], dtype: torch.dtype, device: str) -> None:
    x_shape, outputs, kernel, stride, padding, groups, more = shape
    inputs = x_shape[1] // groups
    wide = torch.full((x_shape[0], x_shape[1] + 3, *x_shape[2:]), NAN, dtype=dtype, device=device)
    x = wide.to(memory_format=torch.channels_last)[:, 1 : 1 + x_shape[1]]
    x.copy_(torch.randn(x_shape)).requires_grad_()
    weight, place = inside((outputs, inputs, kernel, kernel), more, dtype, device)
    weight.requires_grad_()
    options = {"stride": stride, "padding": padding, "groups": groups}
    with sk.use_backend("triton"):
        y = sk.sliced_conv2d(
            x, weight, out_channels=outputs, out_offset=place[0].start, in_offset=place[1].start, **options
        )
    dy = torch.randn(y.shape, device=device).to(dtype)
    dx, dweight = torch.autograd.grad(y, (x, weight), dy)

    def exact(a: Tensor, w: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, w = (t.detach().double().requires_grad_() for t in (a, w))
        result = F.conv2d(a, w, **options)  # type: ignore[arg-type]
        return result.detach(), *torch.autograd.grad(result, (a, w), g.double())

    used = weight.detach()[place]
    right, sizes = exact(x, used, dy), exact(x.detach().abs(), used.abs(), dy.abs())
    for result, one, size in zip((y, dx, dweight[place]), right, sizes, strict=True):
        assert_close(result.detach(), one, size)
    outside = torch.ones_like(dweight, dtype=torch.bool)
    outside[place] = False
    assert (dweight[outside] == 0).all()


def test_linear_layers_with_bias_and_a_sink(device: str) -> None:
    x = torch.randn(70, 33, device=device, requires_grad=True)
    weight, place = inside((41, 33), 4, torch.float32, device)
    bias = torch.full((45,), NAN, device=device)
    bias[place[0]] = torch.randn(41, device=device)
    weight.requires_grad_()
    offsets = {"out_features": 41, "out_offset": place[0].start, "in_offset": place[1].start}
    sink = sk.GradientSink([weight])
    with sk.use_backend("triton"), sink:
        for _ in range(2):
            sk.sliced_linear(x, weight, bias, **offsets).sum().backward()
    right = 2 * torch.ones(70, 41, device=device).double().T @ x.detach().double()
    torch.testing.assert_close(sink.buffer(weight)[place].double(), right, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kernel", [1, 3])
def test_widths_in_device_memory(kernel: int, device: str) -> None:
    x = torch.randn(2, 20, 5, 5, device=device).to(memory_format=torch.channels_last)
    weight = torch.randn(24, 20, kernel, kernel, device=device)
    options = (0, 0, 1, kernel // 2, 1)
    for inputs, outputs in ((20, 24), (7, 24), (20, 9), (0, 5), (3, 0), (99, 99)):
        widths = [torch.tensor([n], dtype=torch.int32, device=device) for n in (inputs, outputs)]
        inputs, outputs = min(inputs, 20), min(outputs, 24)
        y = torch.full((2, 24, 5, 5), NAN, device=device).to(memory_format=torch.channels_last)
        kernels.forward(x, weight, None, y, options, "triton", *widths)
        masked = weight.double()
        masked[:, inputs:] = 0
        right = F.conv2d(x.double(), masked, padding=kernel // 2)
        torch.testing.assert_close(y[:, :outputs].double(), right[:, :outputs], rtol=1e-4, atol=1e-4)
        assert y[:, outputs:].isnan().all()

        dy = torch.randn(2, 24, 5, 5, device=device).to(memory_format=torch.channels_last)
        dweight = torch.ones_like(weight)
        kernels.wgrad(x, dy, dweight, options, True, "triton", *widths)
        own = masked.requires_grad_()
        result = F.conv2d(x.double(), own, padding=kernel // 2)
        (gradient,) = torch.autograd.grad(result, own, dy.double())
        assert (dweight[outputs:] == 1).all() and (dweight[:, inputs:] == 1).all()
        torch.testing.assert_close(
            dweight[:outputs, :inputs].double(), gradient[:outputs, :inputs] + 1, rtol=1e-4, atol=1e-3
        )


def test_many_pixels_are_added_up_in_parts(device: str) -> None:
    x = torch.randn(1, 4, 19, 18, device=device).to(memory_format=torch.channels_last)
    dy = torch.randn(1, 6, 19, 18, device=device).to(memory_format=torch.channels_last)
    weight = torch.randn(6, 4, 1, 1, device=device, requires_grad=True)
    depthwise = torch.randn(4, 1, 3, 3, device=device, requires_grad=True)
    with sk.use_backend("triton"):
        found = [
            torch.autograd.grad(sk.sliced_conv2d(x, weight), weight, dy)[0],
            torch.autograd.grad(sk.depthwise_conv2d(x, depthwise, padding=1), depthwise, dy[:, :4])[0],
        ]
    right = [
        torch.autograd.grad(F.conv2d(x.double(), weight.double()), weight, dy.double())[0],
        torch.autograd.grad(
            F.conv2d(x.double(), depthwise.double(), padding=1, groups=4), depthwise, dy[:, :4].double()
        )[0],
    ]
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_operators(device: str) -> None:
    x = torch.randn(2, 4, 5, 5, device=device).to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(6, 4, 3, 3, device=device, requires_grad=True)
    torch.library.opcheck(torch.ops.spos_kernels.sliced_conv2d, (x, weight, 6, 0, 0, 1, 1, 1, "triton"))

    def network(x: Tensor) -> Tensor:
        return sk.sliced_conv2d(x, weight, out_channels=5, padding=1).relu()

    with sk.use_backend("triton"):
        compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), network(x))
