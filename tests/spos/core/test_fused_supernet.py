"""Training of a supernet on the fused blocks, step for step against the same training in plain PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import spos
import spos_kernels as sk
from spos.steps import make_optimizer

STEPS = 200
CLASSES = 4


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other at every layer take minutes where other programs hold a core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Noise over a class's own pattern of stripes, faint enough that the loss stays away from zero."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(CLASSES, (16,), generator=generator)
    waves = torch.sin(torch.arange(16.0) * (1 + torch.arange(CLASSES)[:, None]) / 2)
    images = waves[labels][:, None, None, :] + 0.5 * torch.randn(16, 1, 16, 16, generator=generator)
    return images.contiguous(memory_format=torch.channels_last), labels


def loss_with_gradients(net: spos.Supernet, arch: spos.Arch, step: int, backend: str) -> float:
    """The loss of one step; its gradients are in the net's parameters afterwards."""
    images, labels = batch(step)
    torch.manual_seed(step)  # of the dropout mask
    net.zero_grad(set_to_none=True)
    with sk.use_backend(backend):
        loss = F.cross_entropy(net(images, arch), labels, label_smoothing=0.1)
    loss.backward()
    return float(loss.detach())


def relative(a: Iterable[Tensor | None], b: Iterable[Tensor | None]) -> float:
    """The relative norm of the difference of two lists of tensors, which have None at the same places."""
    pairs = list(zip(a, b, strict=True))
    assert all((x is None) == (y is None) for x, y in pairs)
    found = [(x.double(), y.double()) for x, y in pairs if x is not None and y is not None]
    error, size = sum(float((x - y).square().sum()) for x, y in found), sum(float(y.square().sum()) for _, y in found)
    return (error / size) ** 0.5


@pytest.fixture(scope="module")
def records() -> dict[str, list[float]]:
    """Losses and relative differences of 200 steps, the fused net set to the reference's state before each."""
    reference = spos.spaces.get("shufflenet-oneshot-small", num_classes=CLASSES, image_size=16, in_channels=1).train()
    fused = copy.deepcopy(reference)
    optimizer = make_optimizer(reference, spos.TrainConfig(lr=0.02))
    kept: dict[str, list[float]] = {"reference": [], "fused": [], "gradient": [], "statistics": []}
    for step in range(STEPS):
        arch = reference.space.sample(spos.generator(0, "path", step))
        fused.load_state_dict(reference.state_dict())
        kept["reference"].append(loss_with_gradients(reference, arch, step, "reference"))
        kept["fused"].append(loss_with_gradients(fused, arch, step, "cpu"))
        gradients = ([p.grad for p in net.parameters()] for net in (fused, reference))
        kept["gradient"].append(relative(*gradients))
        kept["statistics"].append(relative(fused.buffers(), reference.buffers()))
        optimizer.step()
    return kept


def test_two_hundred_losses_agree_step_by_step(records: dict[str, list[float]]) -> None:
    for step, (ours, right) in enumerate(zip(records["fused"], records["reference"], strict=True)):
        assert abs(ours - right) <= 1e-4 * right, step
    first, last = (sum(part) for part in (records["reference"][:20], records["reference"][-20:]))
    assert last < 0.8 * first, "nothing was trained: the losses say little"


def test_gradients_and_statistics_agree_step_by_step(records: dict[str, list[float]]) -> None:
    """Most gradients to rounding. In some steps an input of a ReLU lies so near zero that the two round it to different
    sides; the gradients then differ by what one of many pixels contributes.
    """
    assert sorted(records["gradient"])[STEPS // 2] <= 1e-5
    assert max(records["gradient"]) <= 0.1
    assert max(records["statistics"]) <= 1e-6
