"""Floats by packed weights that become floats on the way, in plain PyTorch: what is accepted and what it means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lowbit_support import Draws

import spos_kernels as sk


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("groups", [1, 3])
def test_product(dtype: torch.dtype, groups: int) -> None:
    draws = Draws(groups)
    codes = draws.codes(3, 9, 48)
    scale, zero = torch.rand(9, groups) + 0.1, 3.5
    weight = sk.pack_weight(codes, 3, scale=scale, zero_point=zero)
    x, bias = torch.randn(2, 5, 48).to(dtype), torch.randn(9)
    meant = (codes.double() - zero) * scale.double().repeat_interleave(48 // groups, 1)
    exact = F.linear(x.double(), meant, bias.double()).clamp(min=0)
    for call in (sk.lowbit_matmul, sk.lowbit_matmul_reference):
        y = call(x, weight, x_quantizer=None, bias=bias, relu=True)
        assert isinstance(y, torch.Tensor) and y.dtype == dtype and y.shape == (2, 5, 9)
        eps = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
        assert float((y.double() - exact).norm() / exact.norm()) < 4 * eps


def test_convolution() -> None:
    draws = Draws(1)
    codes = draws.codes(5, 6, 2, 3, 2)
    weight = sk.pack_weight(codes, 5, scale=torch.rand(6) + 0.1, zero_point=16)
    assert weight.scale is not None
    x = torch.randn(2, 4, 7, 6)
    how: dict[str, Any] = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2}
    meant = (codes.double() - 16) * weight.scale[0].double()[:, None, None, None]
    exact = F.conv2d(x.double(), meant, **how)
    for call in (sk.lowbit_conv2d, sk.lowbit_conv2d_reference):
        y = call(x, weight, x_quantizer=None, **how)
        assert isinstance(y, torch.Tensor) and y.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(y, exact.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 8, dtype=torch.uint8)}, "x has dtype torch.uint8: expected floats where x_quantizer is"),
        ({"x": torch.zeros(2, 7)}, r"x has shape \[2, 7\]: expected \[\.\.\., 8\]"),
        ({"bias": torch.zeros(3)}, r"bias has shape \[3\]: expected \[4\]"),
        ({"bias": torch.zeros(4, dtype=torch.int32)}, "bias has dtype torch.int32: expected floats"),
        ({"bias": torch.zeros(4, device="meta")}, "bias is on the meta device: expected a tensor with values"),
        ({"x": torch.zeros(())}, r"x has shape \[\]: expected \[\.\.\., 8\]"),
        ({"x": torch.zeros(2, 0)}, r"x has shape \[2, 0\]: expected \[\.\.\., 8\]"),
        ({"keep_float": True}, "keep_float is given where x_quantizer is None"),
        ({"relu": 1}, "relu is a int: expected True or False"),
        ({"residual": torch.zeros(2, 4)}, "residual is given where x_quantizer is None: expected none"),
        ({"out_quantizer": sk.Quantizer(1.0)}, "out_quantizer is given where x_quantizer is None"),
        ({"weight": sk.pack_weight(torch.zeros(4, 8, dtype=torch.uint8), 2)}, "weight has no scale: expected one"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_errors(change: dict[str, Any], message: str) -> None:
    weight = sk.pack_weight(torch.zeros(4, 8, dtype=torch.uint8), 2, scale=torch.ones(4))
    arguments: dict[str, Any] = {"x": torch.zeros(2, 8), "weight": weight, "x_quantizer": None} | change
    for call in (sk.lowbit_matmul, sk.lowbit_matmul_reference):
        with pytest.raises((TypeError, ValueError), match=message):
            call(**arguments)


def test_nothing_to_do_and_large_biases() -> None:
    weight = sk.pack_weight(torch.zeros(4, 8, dtype=torch.uint8), 3, scale=torch.ones(4), zero_point=4)
    for shape in ((0, 8), (3, 0, 8)):
        empty = sk.lowbit_matmul(torch.zeros(shape), weight, x_quantizer=None, bias=torch.ones(4), relu=True)
        assert isinstance(empty, torch.Tensor) and empty.shape == (*shape[:-1], 4)
    kernel = sk.pack_weight(torch.zeros(4, 2, 1, 1, dtype=torch.uint8), 3, scale=torch.ones(4))
    empty = sk.lowbit_conv2d(torch.zeros(0, 2, 5, 4), kernel, x_quantizer=None)
    assert isinstance(empty, torch.Tensor) and empty.shape == (0, 4, 5, 4)
    x = torch.full((1, 8), 262.5, dtype=torch.float16)
    y = sk.lowbit_matmul(x, weight, x_quantizer=None, bias=torch.full((4,), 70000.0))
    assert isinstance(y, torch.Tensor) and y.tolist() == [[61600.0] * 4]  # 70,000 is no float16, the result is


def test_an_explicit_backend_without_it_says_so() -> None:
    weight = sk.pack_weight(torch.zeros(4, 8, dtype=torch.uint8), 2, scale=torch.ones(4))
    with sk.use_backend("cpu"), pytest.raises(NotImplementedError, match="backend 'cpu' does not have this operation"):
        sk.lowbit_matmul(torch.zeros(2, 8), weight, x_quantizer=None)
