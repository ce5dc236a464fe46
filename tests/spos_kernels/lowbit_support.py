"""What the tests of low-bit operations share: random calls, and running one on every instruction set and method."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import spos_kernels as sk
from spos_kernels import _C, lowbit_products

Result = Tensor | tuple[Tensor, Tensor]


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote is NaN, or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def force(monkeypatch: pytest.MonkeyPatch, isa: _C.Isa, method: str) -> None:
    """Run what follows on one instruction set, by one method."""
    lowbit_products._prepare.cache_clear()
    monkeypatch.setattr(lowbit_products, "ISA", isa)
    monkeypatch.setattr(lowbit_products, "methods_of", lambda *_: (method,))


def on(device: str, weight: sk.PackedWeight) -> sk.PackedWeight:
    """Return a packed weight on a device."""
    parts = (weight.packed, weight.sums, weight.twice_zero, weight.scale)
    packed, sums, twice_zero, scale = (None if part is None else part.to(device) for part in parts)
    assert packed is not None and sums is not None and twice_zero is not None
    return sk.PackedWeight(packed, weight.bits, weight.shape, sums, twice_zero, scale)


def same(found: Result, expected: Result) -> bool:
    """Whether two results have the same dtypes and values."""
    pairs = [(found, expected)] if isinstance(found, Tensor) else list(zip(found, expected, strict=True))
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


class Draws:
    """Random calls from a seed, with scales, biases, residuals and floats to quantize of a dtype."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.any = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def codes(self, bits: int, *shape: int) -> Tensor:
        if self.any.random() < 0.15:  # extremes
            return torch.full(shape, self.any.choice([0, 2**bits - 1]), dtype=torch.uint8)
        return torch.randint(0, 2**bits, shape, generator=self.generator, dtype=torch.int32).to(torch.uint8)

    def weight(self, bits: int, scaled: bool, *shape: int, groups: int = 1) -> sk.PackedWeight:
        zero = self.any.choice([None, (2**bits - 1) / 2, 0.0, float(2**bits), float(self.any.randrange(2**bits))])
        scale = (torch.rand(shape[0], groups, generator=self.generator) + 0.1).to(self.dtype) if scaled else None
        if scale is not None and self.dtype == torch.float64:
            scale *= 1 / 3  # digits that float32 has not
        return sk.pack_weight(self.codes(bits, *shape), bits, scale=scale, zero_point=zero)

    def floats(self, *shape: int) -> Tensor:
        """Draw from a normal distribution; of float64 the float32 numbers that are taken for it, now and then."""
        values = torch.randn(shape, generator=self.generator)
        return values if self.dtype == torch.float32 or self.any.random() < 0.2 else values.double() / 3

    def options(self, outputs: int, shape: tuple[int, ...]) -> dict[str, Any]:
        """Draw an epilogue for a result of `shape`."""
        options: dict[str, Any] = {"relu": self.any.random() < 0.5}
        if self.any.random() < 0.5:
            options["bias"] = self.floats(outputs) * 10
        kind = self.any.random()
        if kind < 0.3:
            options["residual"] = self.floats(*shape) * 20
        elif kind < 0.5:
            options["residual"] = self.codes(4, *shape)
            options["residual_quantizer"] = sk.Quantizer(0.9, 4, 3)
        if self.any.random() < 0.6:
            bits = self.any.randint(1, 8)
            options["out_quantizer"] = sk.Quantizer(7.3, bits, self.any.choice([0, 2**bits - 1]))
            options["keep_float"] = self.any.random() < 0.5
        return options

    def conv2d(self) -> tuple[Tensor, sk.PackedWeight, dict[str, Any]] | None:
        """Draw arguments of `lowbit_conv2d`; None where the kernel does not fit the map."""
        pick = self.any.choice
        w_bits, x_bits = self.any.randint(1, 8), self.any.randint(1, 8)
        groups, inputs = pick([1, 1, 1, 2, 3]), pick([1, 2, 3, 4, 7, 16, 33, 64, 65, 130])
        outputs, kernel = pick([1, 2, 5, 16, 17, 40, 64, 70]), (pick([1, 1, 2, 3, 5]), pick([1, 1, 2, 3]))
        if self.any.random() < 0.2:  # depthwise
            groups, inputs, outputs = pick([5, 16, 33, 70]), 1, 1
        batch, height, width = pick([1, 2, 3]), self.any.randint(1, 9), self.any.randint(1, 9)
        stride, padding = (pick([1, 2]), pick([1, 2])), (pick([0, 1, 2]), pick([0, 1]))
        dilation = (pick([1, 2]), pick([1, 1, 2]))
        size = [
            (n + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
            for i, n in enumerate((height, width))
        ]
        if min(size) < 1:
            return None
        scaled = self.any.random() < 0.6
        weight = self.weight(w_bits, scaled, outputs * groups, inputs, *kernel)
        quantizer = sk.Quantizer(0.37, x_bits, pick([0, 0, self.any.randrange(2**x_bits)]))
        x = self.codes(x_bits, batch, groups * inputs, height, width)
        if self.any.random() < 0.5:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.any.random() < 0.3:
            x = (x.float() * 0.41 - 1).to(self.dtype if scaled else torch.float32)
        options = {
            "x_quantizer": quantizer,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
        }
        epilogue = self.options(outputs * groups, (batch, outputs * groups, *size)) if scaled else {}
        return x, weight, options | epilogue

    def matmul(self) -> tuple[Tensor, sk.PackedWeight, dict[str, Any]]:
        """Draw arguments of `lowbit_matmul`."""
        pick = self.any.choice
        w_bits, x_bits = self.any.randint(1, 8), self.any.randint(1, 8)
        groups = pick([1, 1, 1, 2, 3])
        inputs = pick([1, 2, 7, 8, 63, 64, 65, 129, 512, 520, 1000, 2048])
        inputs = inputs if groups == 1 else 8 * groups * pick([1, 3, 9])
        rows, outputs = self.any.randint(1, 7), pick([1, 2, 3, 16, 33, 100])
        scaled = groups > 1 or self.any.random() < 0.6
        weight = self.weight(w_bits, scaled, outputs, inputs, groups=groups)
        x = self.codes(x_bits, rows, inputs)
        options = {"x_quantizer": sk.Quantizer(0.3, x_bits, self.any.randrange(2**x_bits))}
        return x, weight, options | (self.options(outputs, (rows, outputs)) if scaled else {})


def run_everywhere(
    monkeypatch: pytest.MonkeyPatch, methods: tuple[str, ...], isa: _C.Isa, call: Callable[[], Result], expected: Result
) -> None:
    """Assert that a call gives the expected result by each method."""
    for method in methods:
        force(monkeypatch, isa, method)
        with poisoned():
            found = call()
        assert same(found, expected), method
