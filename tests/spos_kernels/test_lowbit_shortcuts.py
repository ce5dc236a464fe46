"""Calls like earlier ones skip checks: they give what the checked call gives, and only calls that are alike do."""

from __future__ import annotations

import copy
import pickle
from importlib import import_module
from typing import Any

import pytest
import torch
from lowbit_support import Draws, same
from torch.utils.flop_counter import FlopCounterMode

import spos_kernels as sk
from spos_kernels import lowbit_shortcuts


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many calls were checked, so far, as the only entry."""
    checked = [0]
    for name in ("lowbit_matmul", "lowbit_conv2d"):  # modules, which functions of the same name hide
        module = import_module(f"spos_kernels.{name}")
        whole = module._check

        def count(*arguments: Any, whole: Any = whole) -> Any:
            checked[0] += 1
            return whole(*arguments)

        monkeypatch.setattr(module, "_check", count)
    return checked


@pytest.mark.parametrize("seed", range(60))
def test_a_second_call_gives_what_the_reference_gives(seed: int) -> None:
    draws = Draws(seed, torch.float64 if seed % 4 > 1 else torch.float32)
    drawn = draws.conv2d() if seed % 2 else draws.matmul()
    if drawn is None:
        return
    x, weight, options = drawn
    run, reference = (
        (sk.lowbit_conv2d, sk.lowbit_conv2d_reference) if seed % 2 else (sk.lowbit_matmul, sk.lowbit_matmul_reference)
    )
    for _ in range(2):
        run(x, weight, **options)
    for _ in range(2):  # other values in memory of the same layout
        flipped = x.flip(0) if x.is_floating_point() else (2 ** options["x_quantizer"].bits - 1) - x
        other = torch.empty_like(x).copy_(flipped)
        for name in ("bias", "residual"):
            if name in options and options[name].is_floating_point():
                options[name] = torch.empty_like(options[name]).copy_(options[name] * 2 - 1)
        found, expected = run(other, weight, **options), reference(other, weight, **options)
        assert same(found, expected)
        pair = [(found, expected)] if isinstance(found, torch.Tensor) else zip(found, expected, strict=True)
        assert all(a.shape == b.shape and a.stride() == b.stride() for a, b in pair)
        x = other


def test_calls_alike_are_checked_twice_and_then_no_more(counted: list[int]) -> None:
    weight = Draws(0).weight(3, True, 20, 40)
    how = {"x_quantizer": sk.Quantizer(0.3, 4), "bias": torch.rand(20)}
    for _ in range(4):
        sk.lowbit_matmul(Draws(1).codes(4, 2, 40), weight, **how)
    assert counted == [2]
    maps = Draws(2).weight(2, True, 20, 16, 3, 3)
    x = Draws(1).codes(4, 2, 16, 6, 6).contiguous(memory_format=torch.channels_last)
    for _ in range(4):
        sk.lowbit_conv2d(x, maps, x_quantizer=sk.Quantizer(0.3, 4), padding=1, residual=torch.rand(2, 20, 6, 6).to(
            memory_format=torch.channels_last))  # fmt: skip
    assert counted == [4]
    empty = torch.empty(0, 40, dtype=torch.uint8)
    for _ in range(4):
        assert sk.lowbit_matmul(empty, weight, x_quantizer=sk.Quantizer(0.3, 4)).shape == (0, 20)
    assert counted == [8]  # what has no memory cannot be told apart


def test_what_a_call_depends_on_besides_its_arguments(counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x, how = Draws(0).weight(3, True, 20, 40), torch.rand(2, 40), {"x_quantizer": sk.Quantizer(0.3, 4)}

    def checks() -> int:
        before = counted[0]
        assert same(sk.lowbit_matmul(x, weight, **how), sk.lowbit_matmul_reference(x, weight, **how))
        return counted[0] - before - 1  # the reference checks too

    assert [checks() for _ in range(4)] == [1, 1, 0, 0]
    with sk.use_backend("reference"):
        assert checks() == 1
    with FlopCounterMode(display=False):  # a mode that is to see every call
        assert checks() == 1
    assert torch.compile(lambda x: sk.lowbit_matmul(x, weight, **how), backend="eager")(x).shape == (2, 20)
    assert torch.func.vmap(lambda x: sk.lowbit_matmul(x, weight, **how))(x[None]).shape == (1, 2, 20)
    assert checks() == 0
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert [checks() for _ in range(3)] == [1, 1, 0]
    monkeypatch.undo()


def test_a_copy_remembers_nothing() -> None:
    weight, x = Draws(0).weight(3, True, 20, 40), Draws(1).codes(4, 2, 40)
    for _ in range(3):
        expected = sk.lowbit_matmul(x, weight, x_quantizer=sk.Quantizer(0.3, 4))
    size = len(pickle.dumps(weight))
    for other in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert not other.shortcuts and len(pickle.dumps(other)) == size
        assert same(sk.lowbit_matmul(x, other, x_quantizer=sk.Quantizer(0.3, 4)), expected)


def test_calls_that_differ_are_checked(counted: list[int]) -> None:
    weight = Draws(0).weight(3, True, 20, 40)
    x, how = Draws(1).codes(4, 2, 40), {"x_quantizer": sk.Quantizer(0.3, 4)}
    wide = torch.zeros(2, 48, dtype=torch.uint8)
    wide[:, 8:] = x
    different: list[tuple[Any, dict[str, Any]]] = [
        (x, how),
        (x[:1], how),
        (x[0], how),
        (wide[:, 8:], how),
        (x.float(), how),
        (x, how | {"x_quantizer": sk.Quantizer(0.3, 5)}),
        (x, how | {"relu": True}),
        (x, how | {"bias": torch.rand(20)}),
        (x, how | {"bias": torch.rand(40)[::2]}),
        (x, how | {"residual": torch.rand(2, 20)}),
        (x, how | {"out_quantizer": sk.Quantizer(0.5, 4)}),
        (x, how | {"out_quantizer": sk.Quantizer(0.5, 4), "keep_float": True}),
    ]
    for number, (values, options) in enumerate(different, start=1):
        found = sk.lowbit_matmul(values, weight, **options)
        assert counted == [number]
        assert same(found, sk.lowbit_matmul_reference(values, weight, **options))
        counted[0] = number


def test_bad_calls_are_refused_after_good_ones(counted: list[int]) -> None:
    weight, maps = Draws(0).weight(3, True, 20, 40), Draws(2).weight(2, True, 20, 16, 3, 3)
    x, image = Draws(1).codes(4, 2, 40), Draws(1).codes(4, 2, 16, 6, 6).contiguous(memory_format=torch.channels_last)
    how: dict[str, Any] = {"x_quantizer": sk.Quantizer(1.0, 4), "bias": torch.rand(20)}
    for _ in range(3):
        sk.lowbit_matmul(x, weight, **how)
        sk.lowbit_conv2d(image, maps, stride=1, **how)
        sk.lowbit_conv2d(image, maps, stride=(1, 1), **how)
    assert counted == [6]  # all three are remembered
    quantizers = [(1.0, 4, 0), [1.0, 4, 0], sk.Quantizer(1.0, 4.0), sk.Quantizer(True, 4), sk.Quantizer(1.0, 4, False)]  # type: ignore[arg-type]
    refused: list[tuple[Any, dict[str, Any]]] = [
        *((TypeError, {"x_quantizer": quantizer}) for quantizer in quantizers[:4]),
        (ValueError, {"x_quantizer": quantizers[4]}),
        (TypeError, {"bias": torch.rand(20).double()}),
        (ValueError, {"bias": torch.rand(21)}),
        (TypeError, {"bias": [1.0] * 20}),
    ]
    for error, options in refused:
        with pytest.raises(error, match=r"quantizer|bias"):
            sk.lowbit_matmul(x, weight, **how | options)
    for stride in (True, 1.0, [1, 1.0], (1.0, 1), (True, 1)):
        with pytest.raises((TypeError, ValueError), match="stride"):
            sk.lowbit_conv2d(image, maps, stride=stride, **how)
    with pytest.raises(TypeError, match="relu is a Tensor"):  # whose value may be another at the next call
        sk.lowbit_matmul(x, weight, relu=torch.tensor(False), **how)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="codes of more than x_bits bits"):
        sk.lowbit_matmul(torch.full_like(x, 16), weight, **how)
    with sk.use_backend("reference"):
        assert same(sk.lowbit_matmul(x, weight, **how), sk.lowbit_matmul_reference(x, weight, **how))


def test_what_is_remembered_has_an_end() -> None:
    weight, x = Draws(0).weight(3, True, 20, 40), Draws(1).codes(4, 2, 40)
    for number in range(3 * lowbit_shortcuts.MOST_SHORTCUTS):
        for _ in range(2):
            sk.lowbit_matmul(x, weight, x_quantizer=sk.Quantizer(1 / (1 + number), 4))
    assert 0 < len(weight.shortcuts) <= lowbit_shortcuts.MOST_SHORTCUTS
