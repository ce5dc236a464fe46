"""stem_conv2d: the reference's bits on every instruction set, at any size, and the layer made of it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from isa_support import ISAS
from lowbit_support import poisoned
from torch import Tensor

import spos_kernels as sk
from spos_kernels import _C

MODULE = import_module("spos_kernels.stem_conv2d")  # which the function of the same name hides

# Batch, channels, height, width, outputs, kernel, stride, padding.
SHAPES = [
    (1, 3, 32, 32, 16, (3, 3), 1, 1),
    (2, 3, 47, 33, 64, (7, 7), 2, 3),
    (1, 1, 1, 1, 1, (1, 1), 1, 0),
    (3, 2, 7, 129, 17, (3, 5), 3, 4),
    (1, 5, 61, 4, 9, (2, 1), 1, 0),
    (2, 1, 2, 2, 33, (5, 5), 2, 2),
]


def draw(shape: tuple[Any, ...], seed: int = 0) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    batch, channels, height, width, outputs, kernel, stride, padding = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, channels, height, width, generator=generator)
    weight = torch.randn(outputs, channels, *kernel, generator=generator)
    scale, bias = (torch.randn(outputs, generator=generator, dtype=torch.float64) for _ in range(2))
    return (x, weight, scale, bias), {"stride": stride, "padding": padding}


def same_bits(a: Tensor, b: Tensor) -> bool:
    layouts = {t.is_contiguous(memory_format=torch.channels_last) for t in (a, b)}
    return layouts == {True} and a.dtype == b.dtype == torch.float64 and torch.equal(a, b)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_results_are_the_references_to_the_bit(isa: _C.Isa, shape: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "ISA", isa)
    arguments, options = draw(shape)
    for relu in (False, True):
        for max_pool in (False, True):
            expected = sk.stem_conv2d_reference(*arguments, **options, relu=relu, max_pool=max_pool)
            for threads in (1, 2, 3, 8):
                monkeypatch.setattr(MODULE, "threads_for", lambda _, n=threads: n)
                with poisoned():
                    found = sk.stem_conv2d(*arguments, **options, relu=relu, max_pool=max_pool)
                assert same_bits(found, expected), (relu, max_pool, threads)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_reference_is_the_convolution(shape: Any) -> None:
    (x, weight, scale, bias), options = draw(shape)
    found = sk.stem_conv2d_reference(x, weight, scale, bias, **options, relu=True, max_pool=True)
    y = F.conv2d(x.double(), weight.double(), None, **options) * scale[:, None, None] + bias[:, None, None]
    torch.testing.assert_close(found, F.max_pool2d(y.relu(), 3, 2, 1), rtol=1e-12, atol=1e-12)


def test_any_strides_of_image_and_weight() -> None:
    (x, weight, scale, bias), options = draw(SHAPES[1])
    expected = sk.stem_conv2d(x, weight, scale, bias, **options)
    last = torch.channels_last
    wider = torch.full((2, 5, 47, 40), float("nan"))
    wider[:, 1:4, :, 3:36] = x
    transposed = x.transpose(2, 3).contiguous().transpose(2, 3)
    for image in (x.contiguous(memory_format=last), wider[:, 1:4, :, 3:36], transposed):
        assert same_bits(sk.stem_conv2d(image, weight.contiguous(memory_format=last), scale, bias, **options), expected)
    every = torch.stack([scale, bias], 1)
    assert same_bits(sk.stem_conv2d(x, weight, every[:, 0], every[:, 1], **options), expected)


@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_infinity_and_nan_go_where_they_belong(isa: _C.Isa, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "ISA", isa)
    (x, weight, scale, bias), options = draw((1, 1, 20, 20, 10, (3, 3), 1, 1))
    x[0, 0, 2, 2], x[0, 0, 9, 9], x[0, 0, 17, 3] = float("nan"), float("inf"), -float("inf")
    for max_pool in (False, True):
        found = sk.stem_conv2d(x, weight, scale, bias, **options, relu=True, max_pool=max_pool)
        expected = sk.stem_conv2d_reference(x, weight, scale, bias, **options, relu=True, max_pool=max_pool)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        assert found.isnan().any() and found.isinf().any() and found.isfinite().any()


def test_an_empty_batch_gives_an_empty_result() -> None:
    (x, *rest), options = draw(SHAPES[0])
    for run in (sk.stem_conv2d, sk.stem_conv2d_reference):
        assert run(x[:0], *rest, **options, max_pool=True).shape == (0, 16, 16, 16)


def test_the_operator_is_registered() -> None:
    arguments, _ = draw(SHAPES[1])
    torch.library.opcheck(torch.ops.spos_kernels.stem_conv2d, (*arguments, 2, 3, True, True))
    expected = sk.stem_conv2d(*arguments, stride=2, padding=3)
    compiled = torch.compile(lambda *a: sk.stem_conv2d(*a, stride=2, padding=3), backend="eager", fullgraph=True)
    assert same_bits(compiled(*arguments), expected)
    with sk.use_backend("reference"):
        assert same_bits(sk.stem_conv2d(*arguments, stride=2, padding=3), expected)


def test_a_layer_holds_its_weight() -> None:
    (x, weight, scale, bias), options = draw(SHAPES[1])
    layer = sk.StemConv2d(weight, scale, bias, **options, relu=True, max_pool=True)
    expected = sk.stem_conv2d(x, weight, scale, bias, **options, relu=True, max_pool=True)
    weight.zero_()
    assert same_bits(layer(x), expected) and not list(layer.parameters())
    assert same_bits(layer.to(memory_format=torch.channels_last)(x), expected)
    assert "3, 64, kernel_size=(7, 7), stride=2, padding=3, relu=True, max_pool=True" in repr(layer)
    bias[3] = float("inf")
    with pytest.raises(ValueError, match="bias has a value that is not finite"):
        sk.StemConv2d(weight, scale, bias)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"x": torch.zeros(1, 3, 9, 9).double()}, TypeError, "x is of dtype torch.float64: expected a torch.float32"),
        ({"x": [1]}, TypeError, "x is a list"),
        ({"x": torch.zeros(1, 2, 9, 9)}, ValueError, r"x has shape \[1, 2, 9, 9\]: expected \[N, 3, H, W\]"),
        ({"x": torch.zeros(1, 3, 9, 2)}, ValueError, r"expected a map that the kernel \[3, 3\] fits in"),
        ({"weight": torch.zeros(4, 3, 3, 3).half()}, TypeError, "weight is of dtype torch.float16"),
        ({"weight": torch.zeros(4, 27)}, ValueError, r"weight has shape \[4, 27\]: expected \[O, C, kh, kw\]"),
        ({"scale": torch.ones(4)}, TypeError, "scale is of dtype torch.float32: expected a torch.float64"),
        ({"bias": torch.zeros(5).double()}, ValueError, r"bias has shape \[5\]: expected \[4\]"),
        ({"stride": 0}, ValueError, "stride = 0: expected an integer from 1 to 1024"),
        ({"padding": -1}, ValueError, "padding = -1: expected an integer from 0 to 1024"),
        ({"stride": (1, 1)}, ValueError, r"stride = \(1, 1\): expected an integer"),
        ({"relu": 1}, TypeError, "relu = 1: expected True or False"),
        ({"max_pool": None}, TypeError, "max_pool = None: expected True or False"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], error: type[Exception], words: str) -> None:
    good = {"x": torch.zeros(1, 3, 9, 9), "weight": torch.zeros(4, 3, 3, 3), "scale": torch.ones(4).double(),
            "bias": torch.zeros(4).double()}  # fmt: skip
    for run in (sk.stem_conv2d, sk.stem_conv2d_reference):
        with pytest.raises(error, match=words):
            run(**(good | change))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"y": torch.empty(48, 4).double()}, ValueError, "y: has shape"),
        ({"y": torch.empty(49, 4)}, TypeError, "y: dtype is"),
        ({"weight": torch.zeros(4, 2, 3, 3)}, ValueError, "weight: has shape"),
        ({"bias": torch.zeros(8).double()[::2]}, ValueError, "bias"),
        ({"scale": torch.ones(3).double()}, ValueError, "scale: has shape"),
        ({"x": torch.zeros(1, 3, 2, 9)}, ValueError, "x: expected a map that the kernel fits in"),
        ({"stride": 0}, ValueError, "stride"),
        ({"padding": -1}, ValueError, "padding"),
    ],
)
def test_the_extension_keeps_memory_safe(change: dict[str, Any], error: type[Exception], words: str) -> None:
    good: dict[str, Any] = {
        "x": torch.zeros(1, 3, 9, 9), "weight": torch.zeros(4, 3, 3, 3), "scale": torch.ones(4).double(),
        "bias": torch.zeros(4).double(), "y": torch.empty(49, 4).double(), "stride": 1, "padding": 0, "relu": False,
        "max_pool": False, "isa": _C.best_isa(), "threads": 1,
    }  # fmt: skip
    _C.stem_conv2d(**good)
    with pytest.raises(error, match=words):
        _C.stem_conv2d(**(good | change))
