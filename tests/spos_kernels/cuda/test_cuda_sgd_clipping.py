"""Clipping of gradients by their norm on the CUDA kernels, in front of a prepared step of SGD."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from cuda_support import CUDA_BACKENDS, SEEDS, device_of, needs_emulator
from sgd_support import parameters
from test_cuda_sgd import MOMENTUM, number, pair, set_gradients
from torch import nn

import spos_kernels as sk

each_backend = pytest.mark.parametrize("backend", CUDA_BACKENDS)
pytestmark = pytest.mark.usefixtures("one_thread")


@each_backend
@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 1e6])
def test_clipping_by_the_norm_of_what_is_updated(max_norm: float, backend: str) -> None:
    """Of an odd, unaligned and a huge parameter; what is not chosen, and rows beyond the width, are NaN."""
    device = device_of(backend)
    shapes = (16, 1, 3, 3), (16, 9), (3,), (70, 131), (5000,)
    weights = parameters([torch.randn(shape, device=device) for shape in shapes])
    cpu = parameters([weight.detach().cpu() for weight in weights])
    choice, rows = number(0, backend), number(50, backend)
    conditions = {w: sk.StepCondition(choice, i) for i, w in enumerate(weights[:2])}
    conditions[weights[3]] = sk.StepCondition(rows=rows)
    optimizer, expected = sk.SGD(weights, **MOMENTUM), torch.optim.SGD(cpu, **MOMENTUM)
    set_gradients(weights, cpu)
    with sk.use_backend(backend):
        step = optimizer.prepare(conditions, max_norm=max_norm)
    for chosen in (1, 0):
        choice.fill_(chosen)
        for index, (a, b) in enumerate(zip(weights, cpu, strict=True)):
            gradient = torch.randn(b.shape)
            if index == 3:
                gradient[50:] = 0
            b.grad = None if index == 1 - chosen else gradient.clone()
            if index == 3:
                gradient[50:] = float("nan")
            assert a.grad is not None
            a.grad.copy_(gradient if b.grad is not None else torch.full_like(gradient, float("nan")))
        torch.nn.utils.clip_grad_norm_([b for b in cpu if b.grad is not None], max_norm)
        before = cpu[3].detach().clone()
        step.run()
        expected.step()
        with torch.no_grad():
            cpu[3][50:] = before[50:]  # torch decays them
        for a, b in zip(weights, cpu, strict=True):
            torch.testing.assert_close(a.detach().cpu(), b.detach(), rtol=2e-6, atol=2e-6)


@each_backend
def test_clipping_of_a_norm_that_is_not_finite(backend: str) -> None:
    """As torch has it: NaN makes all of them NaN, an infinity those that are infinite, and zeros of the rest."""
    for bad in (float("nan"), float("inf")):
        weights, cpu = pair([torch.ones(3), torch.ones(5)], backend)
        set_gradients(weights, cpu)
        assert weights[0].grad is not None and cpu[0].grad is not None
        weights[0].grad[1] = cpu[0].grad[1] = bad
        with sk.use_backend(backend):
            sk.SGD(weights, lr=0.5).prepare(max_norm=1.0).run()
        torch.nn.utils.clip_grad_norm_(cpu, 1.0)
        torch.optim.SGD(cpu, lr=0.5).step()
        for a, b in zip(weights, cpu, strict=True):
            torch.testing.assert_close(a.detach().cpu(), b.detach(), equal_nan=True)


@needs_emulator
def test_clipping_has_the_same_bits_for_every_order_of_blocks(emulator: ModuleType) -> None:
    values = [torch.randn(40, 1030), torch.randn(7)]
    gradients, results = [torch.randn_like(value) for value in values], []
    for seed in SEEDS:
        emulator.configure(seed)
        weights = parameters(values)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        with sk.use_backend("cuda-emulated"):
            step = sk.SGD(weights, **MOMENTUM).prepare(max_norm=0.5)
        for _ in range(2):  # the counter is zero again
            step.run()
        results.append(weights)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@each_backend
def test_prepare_refuses_a_negative_norm(backend: str) -> None:
    with pytest.raises(ValueError, match=r"max_norm = -1\.0: accepted are numbers from 0"), sk.use_backend(backend):
        sk.SGD([nn.Parameter(torch.ones(3, device=device_of(backend)))], lr=0.1).prepare(max_norm=-1.0)
