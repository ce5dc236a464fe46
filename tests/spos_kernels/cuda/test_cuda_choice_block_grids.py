"""Blocks whose grids are cut unusually: more channels than a row of the last kernel has, branches of unequal widths."""

from __future__ import annotations

import pytest
import torch
from choice_block_support import CHOICES, Case, assert_accurate, copied, expected, make_branch, map_tensors, run
from cuda_support import CUDA_BACKENDS, device_of
from test_cuda_choice_table import EPS, gradients_but, run_table, running_of

import spos_kernels as sk
from spos_kernels.cuda.modules import module_of, stream_of
from spos_kernels.cuda.network_pass import Part

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.parametrize("backend", CUDA_BACKENDS)]


@pytest.mark.parametrize(
    "case", [Case("3", 1, 3, 1100, 7, 6, 24, 560, affine=True), Case("5", 2, 3, 12, 7, 6, 24, 1030)], ids=str
)
def test_more_channels_than_threads_across(backend: str, case: Case) -> None:
    """Above 1024 float32 channels y has several columns of blocks; the statistics are moved once all the same."""
    inputs, _, _ = expected(case)
    inputs = inputs.to(torch.float32)
    device = device_of(backend)
    branch = map_tensors(inputs.branch, lambda t, _: t.detach().to(device).requires_grad_(t.requires_grad))
    with sk.use_backend(backend):
        results = run(sk.choice_block, type(inputs)(inputs.x.to(device), branch, inputs.dy.to(device)), case)
    assert_accurate({name: tensor.cpu() for name, tensor in results.items()}, case)


@pytest.mark.parametrize("stride", [1, 2])
def test_branches_of_unequal_widths(backend: str, stride: int) -> None:
    """Launches are as large as the widest branch needs: the other branches' blocks that are too many do nothing."""
    device, channels, out = device_of(backend), 20, 11
    mids = (5, 70, 9, 40)
    by_value = [
        map_tensors(copied(make_branch(c, channels, mid, out, stride)), lambda t, _: t.detach().to(device))
        for c, mid in zip(CHOICES, mids, strict=True)
    ]
    by_choice = [map_tensors(branch, lambda tensor, _: tensor.clone()) for branch in by_value]
    case = Case("3", stride, 3, channels, 9, 8, 5, out)
    x = torch.randn(case.x_shape, device=device).to(memory_format=torch.channels_last)
    dy = torch.randn(case.y_shape, device=device).to(memory_format=torch.channels_last)
    choice = torch.zeros(1, dtype=torch.int32, device=device)
    part = Part(x, by_choice, stride, False, choice, backend)
    for number in (0, 1, 2, 3, 0):
        choice.fill_(number)
        others = [tensor.clone() for tensor in gradients_but(part, number)]
        dx = run_table(part, dy, backend)
        leaves = map_tensors(by_value[number], lambda t, field: t.requires_grad_(field in ("weight", "gamma", "beta")))
        trained = [t for chain in leaves for layer in chain for t in layer[:3] if t is not None]
        with sk.use_backend(backend):
            y = sk.choice_block(x.requires_grad_(), [leaves], 0, stride=stride)
            expected_dx, *right = torch.autograd.grad(y, [x, *trained], dy)
        x.requires_grad_(False)
        found = [t for of in part.gradients[number] for t in of if t is not None]
        for mine, by_branch in zip([part.y, dx, *found], [y, expected_dx, *right], strict=True):
            assert torch.equal(mine, by_branch)
        for mine, other in zip(
            [*gradients_but(part, number), *running_of(by_value)], [*others, *running_of(by_choice)], strict=True
        ):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_evaluation_by_the_choice_in_memory(backend: str, stride: int, dtype: torch.dtype) -> None:
    """The last layer's kernel writes y, and at stride 1 copies what passes, of a number of pixels that is no tile's."""
    device, channels, out = device_of(backend), 22, 9
    case = Case("3", stride, 3, channels, 7, 9, 13, out, training=False)

    def convert(tensor: torch.Tensor, field: str) -> torch.Tensor:
        return tensor.detach().to(device, dtype if field == "weight" else tensor.dtype)

    branches = [
        map_tensors(copied(make_branch(c, channels, mid, out, stride, True)), convert)
        for c, mid in zip(CHOICES, (13, 5, 40, 13), strict=True)
    ]
    x = torch.randn(case.x_shape).to(device, dtype, memory_format=torch.channels_last)
    choice = torch.zeros(1, dtype=torch.int32, device=device)
    part = Part(x, branches, stride, False, choice, backend, gradients=False)
    workspace = torch.empty(max(part.workspaces[:1]), dtype=torch.uint8, device=device)
    counters = torch.zeros(module_of(backend).CHOICE_BLOCK_COUNTERS, dtype=torch.int32, device=device)
    for number, branch in enumerate(branches):
        choice.fill_(number)
        part.y.fill_(float("nan"))
        memory = (part.kept, workspace, counters)
        part.table.evaluate(x, part.rows, choice, part.y, *memory, EPS, False, stream_of(x))
        with sk.use_backend(backend):  # what can be differentiated is kept layer by layer, and rounded as here
            right = sk.choice_block(x.requires_grad_(), [branch], 0, stride=stride, training=False, eps=EPS)
        x.requires_grad_(False)
        assert torch.equal(part.y, right)
