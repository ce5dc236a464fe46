"""Floats by packed weights on the Triton kernels: unpacked and made floats on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lowbit_support import Draws, on, poisoned

import spos_kernels as sk

# Errors of the products' rounding, relative to the norm of the result: the weight's, and the result's own.
EPS = {kind: 3 * torch.finfo(kind).eps for kind in (torch.float16, torch.bfloat16)} | {torch.float32: 1e-6}


def compare(call: Any, x: torch.Tensor, weight: sk.PackedWeight, device: str, how: dict[str, Any]) -> None:
    with sk.use_backend("triton"), poisoned():
        moved = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in how.items()}
        found = call(x.to(device), on(device, weight), x_quantizer=None, **moved)
    with sk.use_backend("reference"):
        exact = call(x.double(), weight, x_quantizer=None, **how)
    assert found.dtype == x.dtype and found.shape == exact.shape
    assert float((found.cpu().double() - exact).norm()) <= EPS[x.dtype] * float(exact.norm())


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", list(EPS), ids=str)
def test_product(bits: int, dtype: torch.dtype, device: str) -> None:
    draws = Draws(bits)
    groups = draws.any.choice([1, 2, 3])
    weight = draws.weight(
        bits, True, draws.any.choice([1, 33, 70]), 8 * groups * draws.any.randrange(1, 6), groups=groups
    )
    x = torch.randn(draws.any.randrange(1, 40), weight.shape[1]).to(dtype)
    how = {"bias": torch.randn(weight.shape[0]), "relu": True} if bits % 2 else {}
    compare(sk.lowbit_matmul, x, weight, device, how)


@pytest.mark.parametrize("seed", range(6))
def test_convolution(seed: int, device: str) -> None:
    draws = Draws(200 + seed)
    groups, inputs, outputs = [(1, 5, 7), (3, 2, 4), (5, 1, 1), (1, 17, 34), (2, 1, 3), (1, 8, 66)][seed]
    weight = draws.weight(1 + seed, True, groups * outputs, inputs, *draws.any.choice([(1, 1), (3, 3), (2, 3)]))
    how: dict[str, Any] = {
        "stride": draws.any.choice([1, 2, (2, 1)]),
        "padding": draws.any.choice([0, 1, (1, 2)]),
        "dilation": draws.any.choice([1, 2]),
        "groups": groups,
        "relu": seed % 2 == 0,
    }
    wide = torch.randn(2, groups * inputs + 3, 7, 6).to(memory_format=torch.channels_last)
    x = wide[:, 2 : 2 + groups * inputs]  # a slice of channels, read in place
    compare(sk.lowbit_conv2d, x, weight, device, how)


def test_operator_and_compiled(device: str) -> None:
    """No graph break, and what torch asks of an operator."""
    draws = Draws(3)
    weight = on(device, draws.weight(3, True, 12, 16))
    x, bias = torch.randn(5, 16, device=device), torch.randn(12, device=device)
    assert weight.scale is not None
    sizes = (1, 1, 5, 1, 5, 1, 16, 12, 1, 1, 1, 1, 0, 0, 1, 1)
    torch.library.opcheck(
        torch.ops.spos_kernels.weight_only_products.default,
        (x, weight.packed, weight.twice_zero, weight.scale, bias, sizes, 3, True),
    )

    def layer(x: torch.Tensor) -> Any:
        return sk.lowbit_matmul(x * 2, weight, x_quantizer=None, bias=bias)

    with sk.use_backend("triton"):
        torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
