"""The Python face of the choice block: autograd, what lies off the path, statistics, backends, operators."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from choice_block_support import CHOICES, Case, copied, draw, make_branch, map_tensors, named_tensors
from torch import Tensor

import spos_kernels as sk
from spos_kernels import _C, Branch

pytestmark = pytest.mark.usefixtures("one_thread")

MODULE = sys.modules["spos_kernels.choice_block_kernels"]  # sk.choice_block is the function of that name


@pytest.fixture
def block() -> tuple[Tensor, list[Branch]]:
    """A stride-2 block with all four branches, affine, at [2, 6, 5, 4]."""
    branches = [copied(make_branch(choice, 6, 5, 7, 2, affine=True)) for choice in CHOICES]
    return torch.randn(2, 6, 5, 4).to(memory_format=torch.channels_last).requires_grad_(), branches


def tensors_of(branch: Branch) -> list[Tensor]:
    return [t for _, _, t in named_tensors(branch)]


def trained(branch: Branch) -> list[Tensor]:
    return [t for _, field, t in named_tensors(branch) if field in ("weight", "gamma", "beta")]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("choice", CHOICES)
def test_gradcheck(choice: str, stride: int, affine: bool, training: bool) -> None:
    case = Case(choice, stride, 3, 4, 3, 2, 3, 2, affine=affine, training=training)
    inputs = draw(case, distance=2e-3).to(torch.float64)
    given = [inputs.x.requires_grad_(), *trained(inputs.branch)]

    def function(x: Tensor, *tensors: Tensor) -> Tensor:
        rest = iter(tensors)
        branch = map_tensors(inputs.branch, lambda t, f: next(rest) if f in ("weight", "gamma", "beta") else t)
        return sk.choice_block(x, [branch], 0, stride=stride, training=training)

    with sk.use_backend("cpu"):
        assert torch.autograd.gradcheck(function, given)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("choice", range(4))
def test_the_other_branches_stay_to_the_bit_and_get_no_gradient(
    block: tuple[Tensor, list[Branch]], choice: int, training: bool
) -> None:
    x, branches = block
    before = [[t.detach().clone() for t in tensors_of(branch)] for branch in branches]
    sk.choice_block(x, branches, choice, stride=2, training=training).square().sum().backward()
    for index, (branch, old) in enumerate(zip(branches, before, strict=True)):
        for (name, field, tensor), value in zip(named_tensors(branch), old, strict=True):
            is_statistic = field not in ("weight", "gamma", "beta")
            moved = index == choice and training and is_statistic
            assert torch.equal(tensor, value) != moved, name
            assert (tensor.grad is None) == (index != choice or is_statistic), name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("choice", [1, 3])
def test_only_the_gradients_that_are_asked_for_are_returned(
    block: tuple[Tensor, list[Branch]], choice: int, training: bool
) -> None:
    """Each alone, which leaves out of the kernel's passes what the others share with it, and every third."""
    x, branches = block
    everything = [x, *trained(branches[choice])]

    def forward() -> Tensor:
        return sk.choice_block(x, branches, choice, stride=2, training=training)

    y = forward()
    dy = torch.randn_like(y)
    full = torch.autograd.grad(y, everything, dy)
    indices = range(len(everything))
    for wanted in [[index] for index in indices] + [list(indices[start::3]) for start in range(3)]:
        for index, tensor in enumerate(everything):
            tensor.requires_grad_(index in wanted)
        forward().backward(dy)
        for index, tensor in enumerate(everything):
            assert (tensor.grad is not None) == (index in wanted)
            assert tensor.grad is None or torch.equal(tensor.grad, full[index]), index
            tensor.grad = None


def test_without_grad_mode_nothing_is_kept_and_statistics_move(block: tuple[Tensor, list[Branch]]) -> None:
    x, branches = block
    with_grad, without = ([copied(b) for b in branches] for _ in range(2))
    y = sk.choice_block(x, with_grad, 1, stride=2)
    with torch.no_grad():
        other = sk.choice_block(x, without, 1, stride=2)
    with torch.inference_mode():
        inferred = sk.choice_block(x, branches, 1, stride=2)
    assert y.requires_grad and not other.requires_grad and other.grad_fn is None
    assert torch.equal(y, other) and torch.equal(y, inferred)
    for a, b, c in zip(tensors_of(with_grad[1]), tensors_of(without[1]), tensors_of(branches[1]), strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    for t in [x, *trained(branches[1])]:
        t.requires_grad_(False)
    assert not sk.choice_block(x, branches, 1, stride=2).requires_grad


@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_kept_for_backward_is_at_most_65_percent_of_what_torch_keeps(stride: int) -> None:
    for choice in CHOICES:
        inputs = draw(Case(choice, stride, 8, 32, 14, 14, 32, 32 if stride == 2 else 16), distance=0)
        kept = []
        for function in (sk.choice_block, sk.choice_block_reference):
            x = inputs.x.clone(memory_format=torch.channels_last).requires_grad_()
            kept.append(bytes_kept(lambda: function(x, [inputs.branch], 0, stride=stride), x))  # noqa: B023
        assert kept[0] <= 0.65 * kept[1], (choice, kept)


def bytes_kept(function: Callable[[], Tensor], x: Tensor) -> int:
    """Bytes of the distinct memory that stays for backward, with the result; x belongs to who made it."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        saved.append(function())
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    storages.pop(x.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def test_backward_twice_over_a_kept_graph(block: tuple[Tensor, list[Branch]]) -> None:
    x, branches = block
    y = sk.choice_block(x, branches, 0, stride=2)
    dy = torch.randn_like(y)
    everything = [x, *trained(branches[0])]
    first = torch.autograd.grad(y, everything, dy, retain_graph=True)
    second = torch.autograd.grad(y, everything, dy)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, x, dy)


def test_two_calls_before_one_backward_add_up(block: tuple[Tensor, list[Branch]]) -> None:
    """Statistics of the second call must not reach the first one's backward."""
    x, branches = block
    other = torch.randn_like(x)
    weight = branches[2].main[0].weight
    separate = []
    for value in (x, other):
        y = sk.choice_block(value, branches, 2, stride=2)
        separate.append(torch.autograd.grad(y.square().sum(), weight)[0])
    loss = sum(sk.choice_block(value, branches, 2, stride=2).square().sum() for value in (x, other))
    assert isinstance(loss, Tensor)
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], separate[0] + separate[1])


@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_that_change_before_backward_do_not_matter(
    block: tuple[Tensor, list[Branch]], training: bool
) -> None:
    x, branches = block
    gradients = []
    for change in (0.0, 1.0):
        y = sk.choice_block(x, branches, 2, stride=2, training=training)
        kept = [(t, t.clone()) for _, f, t in named_tensors(branches[2]) if f.startswith("running")]
        for tensor, _ in kept:
            tensor.add_(change)
        gradients.append(torch.autograd.grad(y.square().sum(), x)[0])
        for tensor, value in kept:
            tensor.copy_(value)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("changed", ["x", "weight", "gamma"])
def test_changing_a_tensor_in_place_before_backward_is_noticed(
    block: tuple[Tensor, list[Branch]], changed: str
) -> None:
    x, branches = block
    y = sk.choice_block(x, branches, 2, stride=2)
    with torch.no_grad():
        (x if changed == "x" else getattr(branches[2].main[1], changed)).add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_double_backward_is_refused_and_the_reference_has_it(block: tuple[Tensor, list[Branch]]) -> None:
    x, branches = block
    with pytest.raises(RuntimeError, match=r"double backward .* use backend 'reference'"):
        torch.autograd.grad(sk.choice_block(x, branches, 0, stride=2).square().sum(), x, create_graph=True)
    with sk.use_backend("reference"):
        y = sk.choice_block(x, branches, 0, stride=2)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    assert torch.autograd.grad(dx.square().sum(), branches[0].main[0].weight)[0].isfinite().all()


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the extension's functions for the block, as they are called."""
    calls: list[str] = []

    def counted(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: (calls.append(name), kernel(*args))[1]

    for name in ("choice_block_forward", "choice_block_backward"):
        monkeypatch.setattr(_C, name, counted(name, getattr(_C, name)))
    return calls


def test_backward_runs_where_forward_ran(block: tuple[Tensor, list[Branch]], kernel_calls: list[str]) -> None:
    x, branches = block
    with sk.use_backend("cpu"):
        fused = sk.choice_block(x, branches, 0, stride=2)
    with sk.use_backend("reference"):
        plain = sk.choice_block(x, branches, 0, stride=2)
        fused.sum().backward()
    with sk.use_backend("cpu"):
        plain.sum().backward()
    assert kernel_calls == ["choice_block_forward", "choice_block_backward"]


def test_tracking_is_decided_for_each_normalisation(block: tuple[Tensor, list[Branch]]) -> None:
    """Statistics that only some of a branch's normalisations have are updated there."""
    x, branches = block
    bare = {"running_mean": None, "running_var": None, "num_batches_tracked": None}
    first, *rest = branches[3].main
    for main in ((first._replace(**bare), *rest), (first, *(layer._replace(**bare) for layer in rest))):
        ours, plain = (copied(branches[3]._replace(main=main)) for _ in range(2))
        sk.choice_block(x, [ours], 0, stride=2)
        sk.choice_block_reference(x, [plain], 0, stride=2)
        for (name, _, a), (_, _, b) in zip(named_tensors(ours), named_tensors(plain), strict=True):
            torch.testing.assert_close(a, b, msg=lambda m, name=name: f"{name}: {m}")


def test_statistics_without_a_count_and_counts_without_momentum(block: tuple[Tensor, list[Branch]]) -> None:
    x, branches = block
    uncounted = map_tensors(branches[0], lambda t, f: t)._replace(
        main=tuple(layer._replace(num_batches_tracked=None) for layer in branches[0].main)
    )
    ours, plain = copied(uncounted), copied(uncounted)
    sk.choice_block(x, [ours], 0, stride=2, momentum=0.3)
    sk.choice_block_reference(x, [plain], 0, stride=2, momentum=0.3)
    for a, b in zip(tensors_of(ours), tensors_of(plain), strict=True):
        torch.testing.assert_close(a, b)
    fresh = map_tensors(branches[1], lambda t, f: torch.zeros_like(t) if "running" in f or "num" in f else t)
    ours, plain = copied(fresh), copied(fresh)
    for _ in range(3):  # momentum None: the mean of three batches
        value = torch.randn(2, 6, 5, 4)
        sk.choice_block(value, [ours], 0, stride=2, momentum=None)
        sk.choice_block_reference(value, [plain], 0, stride=2, momentum=None)
    for a, b in zip(tensors_of(ours), tensors_of(plain), strict=True):
        torch.testing.assert_close(a, b)


def test_statistics_are_updated_through_views_of_strided_memory(block: tuple[Tensor, list[Branch]]) -> None:
    x, branches = block
    strided = map_tensors(branches[0], lambda t, f: torch.stack([t, t], 1)[:, 0] if "running" in f else t)
    ours, plain = strided, copied(branches[0])
    sk.choice_block(x, [ours], 0, stride=2)
    sk.choice_block_reference(x, [plain], 0, stride=2)
    for a, b in zip(tensors_of(ours), tensors_of(plain), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("function", [sk.choice_block, sk.choice_block_reference])
def test_autocast_computes_in_float32(function: Any, block: tuple[Tensor, list[Branch]]) -> None:
    x, branches = block
    half = x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = function(half, branches, 0, stride=2)
    assert y.dtype == torch.float32
    plain = copied(branches[0])
    torch.testing.assert_close(y, sk.choice_block_reference(half.detach().float(), [plain], 0, stride=2))
    y.sum().backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16
    weight = branches[0].main[0].weight
    assert weight.grad is not None and weight.grad.dtype == torch.float32


def test_an_explicit_backend_does_not_fall_back(block: tuple[Tensor, list[Branch]]) -> None:
    _, branches = block
    on_meta = map_tensors(branches[0], lambda t, f: t.to("meta"))
    x = torch.empty(2, 6, 5, 4, device="meta")
    assert sk.choice_block(x, [on_meta], 0, stride=2).shape == (2, 13, 3, 2)
    with sk.use_backend("cpu"), pytest.raises(ValueError, match="x is on meta: backend 'cpu' accepts CPU tensors"):
        sk.choice_block(x, [on_meta], 0, stride=2)


def test_the_negative_bit_is_seen(block: tuple[Tensor, list[Branch]]) -> None:
    x, branches = block
    negative = torch._neg_view(x.detach())
    assert negative.is_neg()
    y = sk.choice_block(negative, [copied(branches[0])], 0, stride=2)
    torch.testing.assert_close(y, sk.choice_block_reference(-x.detach(), [copied(branches[0])], 0, stride=2))


def test_torch_func_runs_on_the_reference_and_an_explicit_backend_says_no(block: tuple[Tensor, list[Branch]]) -> None:
    x, branches = block
    branch = map_tensors(branches[0], lambda t, f: t.detach())

    def loss(function: Any) -> Callable[[Tensor], Tensor]:
        return lambda x: function(x, [branch], 0, stride=2, training=False).square().sum()

    gradient = torch.func.grad(loss(sk.choice_block))
    torch.testing.assert_close(gradient(x.detach()), torch.func.grad(loss(sk.choice_block_reference))(x.detach()))
    with sk.use_backend("cpu"), pytest.raises(RuntimeError, match=r"torch\.func transforms: use backend 'reference'"):
        gradient(x.detach())
