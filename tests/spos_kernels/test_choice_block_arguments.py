"""What the choice block refuses, and by which words, on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from choice_block_support import CHOICES, make_branch, make_layer

import spos_kernels as sk
from spos_kernels import Branch, ConvBN

pytestmark = pytest.mark.usefixtures("one_thread")

FUNCTIONS = [sk.choice_block, sk.choice_block_reference]


def arguments(stride: int = 1, affine: bool = True) -> dict[str, Any]:
    branches = [make_branch(choice, 6, 5, 7, stride, affine) for choice in CHOICES]
    return {"x": torch.randn(2, 6, 4, 4), "branches": branches, "choice": 2, "stride": stride}


def with_layer(branches: list[Branch], part: str, index: int, **tensors: Any) -> list[Branch]:
    """Put other tensors into one convolution of branch 2."""
    chain = list(getattr(branches[2], part))
    chain[index] = chain[index]._replace(**tensors)
    return [*branches[:2], branches[2]._replace(**{part: tuple(chain)}), *branches[3:]]


def call(function: Callable[..., Any], given: dict[str, Any]) -> None:
    function(given.pop("x"), given.pop("branches"), given.pop("choice"), **given)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": None}, TypeError, "x: expected a torch.Tensor, got NoneType"),
        ({"x": torch.zeros(6, 4, 4)}, ValueError, r"x has shape \[6, 4, 4\]: expected \[N, C, H, W\]"),
        ({"x": torch.zeros(2, 6, 0, 4)}, ValueError, r"x has shape \[2, 6, 0, 4\]: expected C, H and W of at least 1"),
        ({"x": torch.zeros(2, 5, 4, 4)}, ValueError, "x has 5 channels: at stride 1, half of them pass"),
        ({"x": torch.zeros(2, 8, 4, 4)}, ValueError, r"branches\[2\]\.main\[0\]\.weight has shape .* 4 channels arriv"),
        ({"x": torch.zeros(2, 6, 4, 4, dtype=torch.bfloat16)}, TypeError, "x has dtype torch.bfloat16: accepted are"),
        ({"x": torch.zeros(2, 6, 4, 4, dtype=torch.int64)}, TypeError, "x has dtype torch.int64"),
        ({"x": torch.zeros(2, 6, 4, 4).double()}, TypeError, r"branches\[2\]\.main\[0\]\.weight has dtype torch.float"),
        ({"x": torch.zeros(2, 6, 4, 4, device="meta")}, ValueError, r"branches\[2\]\.main\[0\]\.weight is on cpu: exp"),
        ({"x": torch.zeros(2, 6, 4, 4).to_sparse()}, ValueError, "x has layout torch.sparse_coo"),
        ({"x": torch.zeros(1, 6, 1, 1)}, ValueError, r"x has shape \[1, 6, 1, 1\]: branches\[2\].* 1 values a channel"),
        ({"x": torch.zeros(0, 6, 4, 4)}, ValueError, "over 0 values a channel, expected at least 2 in training"),
        ({"branches": None}, TypeError, "branches is a NoneType: expected a sequence of Branch"),
        ({"branches": Branch(())}, TypeError, "branches is a Branch: expected a sequence of Branch"),
        ({"branches": []}, ValueError, "choice = 2"),
        ({"branches": [(), (), ()]}, TypeError, r"branches\[2\] is a tuple: expected a Branch"),
        ({"branches": [Branch([])] * 3}, TypeError, r"branches\[2\]\.main is a list: expected a tuple of ConvBN"),
        ({"branches": [Branch((), ())] * 3}, ValueError, r"branches\[2\]\.main has 0 convolutions: expected"),
        ({"branches": [Branch((1,))] * 3}, TypeError, r"branches\[2\]\.main\[0\] is a int: expected a ConvBN"),
        ({"branches": [Branch(ConvBN(torch.zeros(1)))] * 3}, TypeError, r"branches\[2\]\.main is a ConvBN"),
        ({"choice": 4}, ValueError, "choice = 4: expected an integer from 0 to 3"),
        ({"choice": -1}, ValueError, "choice = -1: expected an integer from 0 to 3"),
        ({"choice": 1.0}, TypeError, r"choice = 1\.0: expected an integer from 0 to 3"),
        ({"choice": True}, TypeError, "choice = True"),
        ({"stride": 3}, ValueError, "stride = 3: accepted are 1 and 2"),
        ({"stride": (1, 1)}, ValueError, r"stride = \(1, 1\)"),
        ({"stride": 2}, ValueError, r"branches\[2\]\.proj has 0 convolutions: expected a depthwise and a pointwise"),
        ({"training": 1}, TypeError, "training = 1: expected a bool"),
        ({"momentum": 1.5}, ValueError, r"momentum = 1\.5: expected None or a number from 0 to 1"),
        ({"momentum": float("nan")}, ValueError, "momentum = nan"),
        ({"momentum": "0.1"}, TypeError, "momentum = '0.1'"),
        ({"eps": 0.0}, ValueError, r"eps = 0\.0: expected a positive number"),
        ({"eps": float("nan")}, ValueError, "eps = nan"),
        ({"eps": float("inf")}, ValueError, "eps = inf"),
        ({"eps": None}, TypeError, "eps = None"),
    ],
)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_bad_arguments(function: Any, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(function, arguments() | changes)


@pytest.mark.parametrize(
    ("index", "tensors", "error", "message"),
    [
        (0, {"weight": None}, TypeError, r"main\[0\]\.weight: expected a torch\.Tensor, got NoneType"),
        (0, {"weight": torch.zeros(5, 3)}, ValueError, r"main\[0\]\.weight has shape \[5, 3\]: 3 channels arrive"),
        (0, {"weight": torch.zeros(0, 3, 1, 1)}, ValueError, r"main\[0\]\.weight has shape \[0, 3, 1, 1\]"),
        (0, {"weight": torch.zeros(5, 4, 1, 1)}, ValueError, r"main\[0\]\.weight has shape \[5, 4, 1, 1\]: 3 channels"),
        (2, {"weight": torch.zeros(5, 1, 3, 3)}, ValueError, r"main\[2\]\.weight .* a second depthwise convolution"),
        (1, {"weight": torch.zeros(5, 5, 1, 1)}, ValueError, r"main\[1\]\.weight .* a second pointwise convolution"),
        (1, {"weight": torch.zeros(5, 1, 4, 4)}, ValueError, r"main\[1\]\.weight has shape \[5, 1, 4, 4\]"),
        (1, {"weight": torch.zeros(5, 1, 3, 5)}, ValueError, r"main\[1\]\.weight has shape \[5, 1, 3, 5\]"),
        (1, {"weight": torch.zeros(5, 1, 9, 9)}, ValueError, r"main\[1\]\.weight has shape .* k = 3, 5 or 7"),
        (1, {"weight": torch.zeros(5, 5, 3, 3)}, ValueError, r"main\[1\]\.weight has shape \[5, 5, 3, 3\]"),
        (1, {"weight": torch.zeros(6, 1, 3, 3)}, ValueError, r"main\[1\]\.weight has shape .*: 5 channels arrive"),
        (1, {"weight": torch.zeros(5, 1, 3, 3).half()}, TypeError, r"main\[1\]\.weight has dtype torch\.float16"),
        (1, {"weight": torch.zeros(5, 1, 3, 3).to_sparse()}, ValueError, r"main\[1\]\.weight has layout"),
        (2, {"gamma": None}, ValueError, r"main\[2\]\.gamma is None: expected gamma and beta, or neither"),
        (2, {"beta": None}, ValueError, r"main\[2\]\.beta is None: expected gamma and beta, or neither"),
        (2, {"gamma": torch.ones(5)}, ValueError, r"main\[2\]\.gamma has shape \[5\]: expected \[7\]"),
        (2, {"beta": torch.ones(7, 1)}, ValueError, r"main\[2\]\.beta has shape \[7, 1\]: expected \[7\]"),
        (2, {"beta": 0.0}, TypeError, r"main\[2\]\.beta: expected a torch\.Tensor, got float"),
        (2, {"gamma": torch.ones(7).double()}, TypeError, r"main\[2\]\.gamma has dtype torch\.float64"),
        (2, {"running_mean": None}, ValueError, r"main\[2\]\.running_mean is None: expected running_mean and running"),
        (2, {"running_var": None}, ValueError, r"main\[2\]\.running_var is None: expected running_mean and running"),
        (2, {"running_mean": torch.ones(8)}, ValueError, r"main\[2\]\.running_mean has shape \[8\]: expected \[7\]"),
        (2, {"running_var": torch.ones(7).half()}, TypeError, r"main\[2\]\.running_var has dtype torch\.float16"),
        (2, {"running_var": torch.ones(7, device="meta")}, ValueError, r"main\[2\]\.running_var is on meta"),
        (2, {"num_batches_tracked": torch.tensor(1.0)}, TypeError, r"main\[2\]\.num_batches_tracked has dtype torch"),
        (2, {"num_batches_tracked": 3}, TypeError, r"main\[2\]\.num_batches_tracked has type int"),
        (2, {"num_batches_tracked": torch.tensor([1])}, ValueError, r"main\[2\]\.num_batches_tracked has shape \[1\]"),
        (
            2,
            {"running_mean": None, "running_var": None},
            ValueError,
            r"main\[2\]\.num_batches_tracked is given without running_mean",
        ),
    ],
)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_bad_tensors_are_named(
    function: Any, index: int, tensors: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = arguments()
    with pytest.raises(error, match=r"branches\[2\]\." + message):
        call(function, given | {"branches": with_layer(given["branches"], "main", index, **tensors)})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_projection_is_checked_too(function: Any) -> None:
    given = arguments(stride=2)
    with pytest.raises(ValueError, match=r"branches\[2\]\.proj\[1\]\.weight has shape \[6, 5, 1, 1\]: 6 channels"):
        call(function, given | {"branches": with_layer(given["branches"], "proj", 1, weight=torch.zeros(6, 5, 1, 1))})
    given = arguments(stride=2)
    for outputs in (4, 8):
        norm = {name: torch.ones(outputs) for name in ("gamma", "beta", "running_mean", "running_var")}
        other = with_layer(given["branches"], "proj", 1, weight=torch.zeros(outputs, 6, 1, 1), **norm)
        with pytest.raises(
            ValueError, match=rf"proj\[1\]\.weight has shape \[{outputs}, 6, 1, 1\]: expected \[6, 6, 1"
        ):
            call(function, given | {"branches": other})
    with pytest.raises(ValueError, match=r"branches\[2\]\.proj has 2 convolutions: expected none at stride 1"):
        call(function, given | {"stride": 1})
    with pytest.raises(ValueError, match=r"branches\[2\]\.proj has 1 convolutions: expected a depthwise and a"):
        call(function, given | {"branches": [b._replace(proj=b.proj[:1]) for b in given["branches"]]})
    with pytest.raises(ValueError, match=r"branches\[2\]\.proj has 2 convolutions: .* last, a pointwise one"):
        call(function, given | {"branches": [b._replace(proj=b.proj[::-1]) for b in given["branches"]]})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_chains_are_as_long_as_those_of_the_space(function: Any) -> None:
    given = arguments()
    pair = (make_layer((7, 1, 3, 3)), make_layer((7, 7, 1, 1)))
    for length in (1, 2, 3, 4, 5, 6, 7, 8, 9):
        chain = (
            *given["branches"][2].main[:1],
            make_layer((5, 1, 3, 3)),
            make_layer((7, 5, 1, 1)),
            *pair,
            *pair,
            *pair,
        )
        branches = [Branch(chain[:length])] * 3
        if length in (3, 5):
            call(function, given | {"branches": branches})
        else:
            message = rf"branches\[2\]\.main has {length} convolutions: expected at most 6"
            with pytest.raises(ValueError, match=message):
                call(function, given | {"branches": branches})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_modes_need_their_statistics(function: Any) -> None:
    given = arguments()
    bare = {"running_mean": None, "running_var": None, "num_batches_tracked": None}
    untracked = [Branch(*(tuple(layer._replace(**bare) for layer in chain) for chain in b)) for b in given["branches"]]
    call(function, given | {"branches": untracked})
    call(function, given | {"branches": untracked, "momentum": None})
    with pytest.raises(ValueError, match=r"branches\[2\]\.main\[0\]\.running_mean is None: expected running stat"):
        call(function, given | {"branches": untracked, "training": False})
    uncounted = with_layer(given["branches"], "main", 1, num_batches_tracked=None)
    call(function, given | {"branches": uncounted})
    with pytest.raises(ValueError, match=r"main\[1\]\.num_batches_tracked is None: expected it with momentum = None"):
        call(function, given | {"branches": uncounted, "momentum": None})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_refused_call_changes_no_statistics(function: Any) -> None:
    given = arguments(stride=2)
    before = [[t.clone() for layer in b.main + b.proj for t in layer if t is not None] for b in given["branches"]]
    with pytest.raises(TypeError, match=r"proj\[1\]\.gamma"):
        call(function, given | {"branches": with_layer(given["branches"], "proj", 1, gamma=torch.ones(6).half())})
    for branch, tensors in zip(given["branches"], before, strict=True):
        now = [t for layer in branch.main + branch.proj for t in layer if t is not None]
        assert all(torch.equal(a, b) for a, b in zip(now, tensors, strict=True))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_an_empty_batch_is_evaluated(function: Any) -> None:
    for stride in (1, 2):
        given = arguments(stride) | {"x": torch.zeros(0, 6, 5, 4), "training": False}
        y = function(given.pop("x"), given.pop("branches"), given.pop("choice"), **given)
        assert y.shape == ((0, 10, 5, 4) if stride == 1 else (0, 13, 3, 2))
