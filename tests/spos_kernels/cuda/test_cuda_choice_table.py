"""The choice in device memory: the bits of the branch given by value, nothing of the others touched, errors."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from choice_block_support import CHOICES, Case, copied, make_branch, map_tensors, named_tensors
from cuda_support import CUDA_BACKENDS, device_of, needs_emulator
from torch import Tensor

import spos_kernels as sk
from spos_kernels.cuda.modules import module_of, stream_of
from spos_kernels.cuda.network_pass import Part
from spos_kernels.layout import empty_nhwc

pytestmark = pytest.mark.usefixtures("one_thread")
EPS, MOMENTUM = 1e-5, 0.1


def branches_of(case: Case, device: str) -> list[sk.Branch]:
    branches = [make_branch(c, case.channels, case.mid, case.out, case.stride, case.affine) for c in CHOICES]
    return [map_tensors(copied(branch), lambda t, _: t.detach().to(device)) for branch in branches]


def running_of(branches: list[sk.Branch]) -> list[Tensor]:
    fields = ("running_mean", "running_var", "num_batches_tracked")
    return [tensor for branch in branches for _, field, tensor in named_tensors(branch) if field in fields]


def gradients_but(part: Part, choice: int) -> list[Tensor]:
    others = [of for number, of in enumerate(part.gradients) if number != choice]
    return [tensor for of in others for layer in of for tensor in layer if tensor is not None]


def run_table(part: Part, dy: Tensor, backend: str) -> Tensor:
    """Forward and backward by the choice in memory; dx, poisoned before."""
    module = module_of(backend)
    workspace = torch.empty(max(part.workspaces), dtype=torch.uint8, device=dy.device)
    counters = torch.zeros(module.CHOICE_BLOCK_COUNTERS, dtype=torch.int32, device=dy.device)
    dx = empty_nhwc(part.x.shape, like=part.x).fill_(float("nan"))
    part.y.fill_(float("nan"))
    memory, options = (workspace, counters), (False, stream_of(dy))
    part.table.forward(
        part.x, part.rows, part.choice, part.y, part.kept, part.statistics, *memory, MOMENTUM, EPS, *options
    )
    part.table.backward(dy, part.x, part.rows, part.choice, part.kept, part.statistics, dx, *memory, EPS, *options)
    return dx


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("backend", CUDA_BACKENDS)
def test_every_choice_has_the_bits_of_its_branch_and_leaves_the_others(backend: str, stride: int, affine: bool) -> None:
    case = Case("3", stride, 3, 20, 9, 8, 13, 18, affine)
    device = device_of(backend)
    by_value = branches_of(case, device)
    by_choice = [map_tensors(branch, lambda tensor, _: tensor.clone()) for branch in by_value]
    x = torch.randn(case.x_shape, device=device).to(memory_format=torch.channels_last)
    dy = torch.randn(case.y_shape, device=device).to(memory_format=torch.channels_last)
    choice = torch.zeros(1, dtype=torch.int32, device=device)
    part = Part(x, by_choice, stride, False, choice, backend)
    for number in (2, 3, 0, 1, 3):
        choice.fill_(number)
        for of in part.gradients[number]:
            for gradient in of:
                if gradient is not None:
                    gradient.fill_(float("nan"))
        others = [tensor.clone() for tensor in gradients_but(part, number)]
        dx = run_table(part, dy, backend)
        leaves = map_tensors(by_value[number], lambda t, field: t.requires_grad_(field in ("weight", "gamma", "beta")))
        trained = [t for chain in leaves for layer in chain for t in layer[:3] if t is not None]
        with sk.use_backend(backend):
            y = sk.choice_block(x.requires_grad_(), [leaves], 0, stride=stride, momentum=MOMENTUM, eps=EPS)
            expected_dx, *expected = torch.autograd.grad(y, [x, *trained], dy)
        x.requires_grad_(False)
        assert torch.equal(part.y, y) and torch.equal(dx, expected_dx)
        found = [t for of in part.gradients[number] for t in of if t is not None]
        for mine, right in zip(found, expected, strict=True):
            assert torch.equal(mine, right)
        for before, after in zip(others, gradients_but(part, number), strict=True):
            assert torch.equal(before, after)
        for mine, other in zip(running_of(by_value), running_of(by_choice), strict=True):
            assert torch.equal(mine, other)


@needs_emulator
@pytest.mark.parametrize(("stride", "launches"), [(1, 7), (2, 9)])
def test_every_choice_launches_the_same(emulator: ModuleType, stride: int, launches: int) -> None:
    case = Case("3", stride)
    x = torch.randn(case.x_shape).to(memory_format=torch.channels_last)
    dy = torch.randn(case.y_shape).to(memory_format=torch.channels_last)
    choice = torch.zeros(1, dtype=torch.int32)
    part = Part(x, branches_of(case, "cpu"), stride, False, choice, "cuda-emulated")
    for number in range(4):
        choice.fill_(number)
        emulator.take_counters()
        run_table(part, dy, "cuda-emulated")
        assert emulator.take_counters()["launches"] == 2 * launches


@needs_emulator
def test_branches_that_do_not_fit_are_refused(emulator: ModuleType) -> None:
    case = Case("3", 1)
    x = torch.randn(case.x_shape).to(memory_format=torch.channels_last)
    choice = torch.zeros(1, dtype=torch.int32)
    wider = make_branch("5", case.channels, case.mid, case.out + 2, 1)
    with pytest.raises(ValueError, match="branches: expected the same number of outputs"):
        Part(x, [*branches_of(case, "cpu"), wider], 1, False, choice, "cuda-emulated")
    part = Part(x, branches_of(case, "cpu"), 1, False, choice, "cuda-emulated")
    part.choice = torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"choice: has shape \[2\], expected \[1\]"):
        run_table(part, part.y, "cuda-emulated")
