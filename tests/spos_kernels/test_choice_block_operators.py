"""The choice block as operators of torch.library: opcheck, compile, export, fake tensors, dispatch modes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from choice_block_support import CHOICES, Case, copied, draw, make_branch, map_tensors, named_tensors
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import spos_kernels as sk
from spos_kernels import Branch

pytestmark = pytest.mark.usefixtures("one_thread")

OPS = torch.ops.spos_kernels


def bank_of(branch: Branch) -> list[Tensor]:
    return [t for layer in branch.main + branch.proj for t in layer[:3] if t is not None]


def affine_of(branch: Branch) -> list[bool]:
    return [layer.gamma is not None for layer in branch.main + branch.proj]


def statistics_of(branch: Branch) -> Tensor:
    layers = branch.main + branch.proj
    return torch.cat([t for layer in layers for t in (layer.running_mean, layer.running_var) if t is not None])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("choice", "stride"), [("5", 1), ("x", 2)])
def test_opcheck(choice: str, stride: int, training: bool, affine: bool) -> None:
    branch = copied(make_branch(choice, 6, 5, 7, stride, affine))
    x = torch.randn(2, 6, 5, 4).to(memory_format=torch.channels_last).requires_grad_()
    bank, given = bank_of(branch), None if training else statistics_of(branch)
    options = (affine_of(branch), len(branch.main), stride, False)
    opcheck(OPS.choice_block.default, (x, bank, given, *options, 1e-5, "cpu"))
    with torch.no_grad():
        y, statistics, saved = OPS.choice_block(x, bank, given, *options, 1e-5, "cpu")
        wanted = [True] * (1 + len(bank))
        kept = (statistics if training else given, saved)
        bank = [t.detach() for t in bank]
        opcheck(
            OPS.choice_block_backward.default,
            (torch.randn_like(y), x.detach(), bank, *kept, wanted, *options, training, 1e-5, "cpu"),
        )


def test_gradcheck_of_the_operator() -> None:
    case = Case("3", 2, 3, 4, 3, 2, 3, 2, affine=True)
    inputs = draw(case, distance=2e-3).to(torch.float64)
    bank = bank_of(inputs.branch)
    options = (affine_of(inputs.branch), len(inputs.branch.main), 2, False, 1e-5, "cpu")
    function = lambda x, *bank: OPS.choice_block(x, list(bank), None, *options)[0]  # noqa: E731
    assert torch.autograd.gradcheck(function, [inputs.x.requires_grad_(), *bank])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("choice", "stride"), [(0, 1), (3, 2)])
def test_compile_has_one_graph_with_the_operator(choice: int, stride: int, affine: bool, training: bool) -> None:
    operators: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        operators.extend(str(node.target) for node in graph.graph.nodes if "spos_kernels" in str(node.target))
        return graph.forward

    torch.compiler.reset()
    branches = [make_branch(c, 6, 5, 7, stride, affine) for c in CHOICES]
    ours, plain = ([copied(branch) for branch in branches] for _ in range(2))
    options = {"stride": stride, "training": training}
    compiled = torch.compile(lambda x, b: sk.choice_block(x, b, choice, **options), fullgraph=True, backend=backend)
    x = torch.randn(2, 6, 5, 4, requires_grad=True)
    dy = torch.randn_like(sk.choice_block(x, [copied(b) for b in branches], choice, **options))
    results = []
    for function, bank in ((compiled, ours), (lambda x, b: sk.choice_block(x, b, choice, **options), plain)):
        y = function(x, bank)
        leaves = [x, *(t for t in bank_of(bank[choice]) if t is not None)]
        results.append([y, *torch.autograd.grad(y, leaves, dy), *(t for _, _, t in named_tensors(bank[choice]))])
    assert operators == ["spos_kernels.choice_block"]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_through_the_operator_frozen_tensors_get_no_gradient() -> None:
    branch = copied(make_branch("3", 6, 5, 7, 1, affine=True))
    frozen, trained = branch.main[0].weight.requires_grad_(False), branch.main[2].weight
    x = torch.randn(2, 6, 5, 4)
    y, _, _ = OPS.choice_block(x, bank_of(branch), None, affine_of(branch), 3, 1, False, 1e-5, "cpu")
    dy = torch.randn_like(y)
    y.backward(dy)
    assert frozen.grad is None and x.grad is None
    expected = sk.choice_block(x, [branch], 0)
    torch.testing.assert_close(trained.grad, torch.autograd.grad(expected, trained, dy)[0])


class Block(nn.Module):
    """A module over one branch, for export."""

    def __init__(self, branch: Branch) -> None:
        super().__init__()
        self.names = [name.replace(".", "_").replace("[", "").replace("]", "") for name, _, _ in named_tensors(branch)]
        for name, (_, _, tensor) in zip(self.names, named_tensors(branch), strict=True):
            self.register_buffer(name, tensor.detach())
        self.shape = branch

    def forward(self, x: Tensor) -> Tensor:
        tensors = iter([getattr(self, name) for name in self.names])
        return sk.choice_block(x, [map_tensors(self.shape, lambda *_: next(tensors))], 0, stride=2, training=False)


def test_export_keeps_the_operator() -> None:
    module, x = Block(copied(make_branch("3", 6, 5, 7, 2))).eval(), torch.randn(2, 6, 5, 4)
    exported = torch.export.export(module, (x,))
    assert "spos_kernels.choice_block" in exported.graph_module.code
    torch.testing.assert_close(exported.module()(x), module(x))


def test_fake_tensors_become_fake_results() -> None:
    with FakeTensorMode():
        branch = make_branch("x", 6, 5, 7, 2)
        x = torch.randn(2, 6, 5, 4).to(memory_format=torch.channels_last)
        y = sk.choice_block(x, [branch], 0, stride=2)
    assert type(y).__name__ == "FakeTensor"
    assert y.shape == (2, 13, 3, 2) and y.stride() == (78, 1, 26, 13)


def test_modes_see_the_operators_forward_and_backward() -> None:
    seen: list[str] = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    branch = copied(make_branch("3", 6, 5, 7, 1))
    before = [t.clone() for _, field, t in named_tensors(branch) if field == "running_mean"]
    x = torch.randn(2, 6, 5, 4, requires_grad=True)
    with Mode():
        sk.choice_block(x, [branch], 0).sum().backward()
    assert {"spos_kernels.choice_block.default", "spos_kernels.choice_block_backward.default"} <= set(seen)
    after = [t for _, field, t in named_tensors(branch) if field == "running_mean"]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
