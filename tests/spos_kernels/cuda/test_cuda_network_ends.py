"""What stands before and behind a network's blocks on a GPU: windows, pool with dropout, cross entropy."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from cuda_support import CUDA_BACKENDS, DTYPES, SEEDS, device_of
from torch import Tensor

from spos_kernels.cuda.modules import module_of, stream_of
from spos_kernels.layout import empty_nhwc

pytestmark = pytest.mark.parametrize("backend", CUDA_BACKENDS)
NAN = float("nan")
ONE = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def maps(shape: tuple[int, ...], dtype: torch.dtype, backend: str, more: int = 0) -> Tensor:
    """Random maps, as a slice of the channels of wider ones that are NaN elsewhere."""
    batch, channels, height, width = shape
    wide = torch.full((batch, channels + more, height, width), NAN, dtype=dtype, device=device_of(backend))
    x = wide.to(memory_format=torch.channels_last)[:, more // 2 : more // 2 + channels]
    return x.copy_(torch.randn(shape))


@ONE
@pytest.mark.parametrize("more", [0, 5])
@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [((2, 3, 9, 7), 3, 2, 1), ((1, 1, 1, 1), 3, 1, 1), ((3, 5, 6, 8), 5, 1, 0), ((2, 3, 11, 10), 7, 3, 3)],
)
def test_windows(
    shape: tuple[int, ...], kernel: int, stride: int, padding: int, more: int, dtype: torch.dtype, backend: str
) -> None:
    x = maps(shape, dtype, backend, more)
    batch, channels = shape[:2]
    expected = F.unfold(x.float(), kernel, padding=padding, stride=stride).to(dtype)  # [N, C·k·k, pixels]
    height, width = ((n + 2 * padding - kernel) // stride + 1 for n in shape[2:])
    expected = expected.view(batch, channels, kernel * kernel, height, width).transpose(1, 2).flatten(1, 2)
    y = empty_nhwc(tuple(expected.shape), like=x).fill_(NAN)
    module_of(backend).im2row(x, y, kernel, stride, padding, stream_of(x))
    assert torch.equal(y, expected)


def philox(seed: int, step: int, index: int) -> int:
    """The first word of Philox 4x32-10."""
    word = (1 << 32) - 1
    counter = [index & word, index >> 32, step & word, step >> 32]
    keys = [seed & word, seed >> 32]
    for _ in range(10):
        first, second = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [(second >> 32) ^ counter[1] ^ keys[0], second & word, (first >> 32) ^ counter[3] ^ keys[1]]
        counter.append(first & word)
        keys = [(keys[0] + 0x9E3779B9) & word, (keys[1] + 0xBB67AE85) & word]
    return counter[0]


def factors(shape: tuple[int, int], rate: float, seed: int, step: int) -> Tensor:
    """1 / (1 - rate) for the features that dropout keeps, 0 for the others."""
    draws = [(philox(seed, step, index) >> 8) * 2.0**-24 for index in range(math.prod(shape))]
    return torch.tensor([0.0 if draw < rate else 1 / (1 - rate) for draw in draws]).view(shape)


def test_philox_has_the_published_values(backend: str) -> None:
    """Known answers of Random123, which the kernel's draws are compared with below by way of this function."""
    assert philox(0, 0, 0) == 0x6627E8D5
    assert philox((1 << 64) - 1, (1 << 64) - 1, (1 << 64) - 1) == 0x408F276D
    assert philox(0x299F31D0_A4093822, 0x03707344_13198A2E, 0x85A308D3_243F6A88) == 0xD16CFE09


@ONE
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(2, 8, 3, 5), (3, 70, 1, 1), (5, 129, 2, 3), (1, 1, 7, 7)])
def test_pool(shape: tuple[int, int, int, int], rate: float, dtype: torch.dtype, backend: str) -> None:
    x = maps(shape, dtype, backend)
    batch, channels, height, width = shape
    seed, step = 0x123456789ABCDEF, torch.tensor([(7 << 32) + 5], device=x.device)
    expected = factors((batch, channels), rate, seed, int(step)).to(x.device).double()
    features = torch.full((batch, channels), NAN, dtype=dtype, device=x.device)
    module_of(backend).pool(x, features, rate, seed, step, False, stream_of(x))
    mean, size = (x.double().mean((2, 3)), x.double().abs().mean((2, 3)))
    eps = torch.finfo(dtype).eps
    assert ((features.double() - mean * expected).abs() <= 2 * eps * size * expected).all()

    dy = torch.randn(batch, channels, device=x.device).to(dtype)
    dx = empty_nhwc(shape, like=x).fill_(NAN)
    module_of(backend).pool(dx, dy, rate, seed, step, True, stream_of(x))
    right = (dy.double() * expected / (height * width))[:, :, None, None].expand(shape)
    assert ((dx.double() - right).abs() <= 2 * eps * right.abs()).all()


@ONE
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("batch", "classes"), [(1, 2), (9, 10), (3, 33), (20, 1000)])
def test_cross_entropy(batch: int, classes: int, smoothing: float, dtype: torch.dtype, backend: str) -> None:
    device = device_of(backend)
    logits = (4 * torch.randn(batch, classes)).to(dtype).to(device)
    labels = torch.randint(classes, (batch,)).to(device)
    exact = logits.double().requires_grad_()
    losses = F.cross_entropy(exact, labels, reduction="none", label_smoothing=smoothing)
    (gradient,) = torch.autograd.grad(losses.mean(), exact)
    found = []
    for seed in SEEDS:
        if backend == "cuda-emulated":
            module_of(backend).configure(seed=seed)
        mine = torch.full((batch,), NAN, device=device), torch.full((1,), NAN, device=device)
        dlogits = torch.full_like(logits, NAN)
        module_of(backend).cross_entropy(logits, labels, *mine, dlogits, smoothing, stream_of(logits))
        found.append((*mine, dlogits))
    if backend == "cuda-emulated":
        module_of(backend).configure()
    for a, b in zip(found[0] * 2, [*found[1], *found[2]], strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(found[0][0].double(), losses.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0][1].double(), losses.detach().mean()[None], rtol=1e-5, atol=1e-5)
    eps = max(torch.finfo(dtype).eps, 4e-6)  # expf's, relative to the largest probability
    assert float((found[0][2].double() - gradient).abs().max()) <= eps / batch


@pytest.mark.parametrize(("row", "label"), [(0, -1), (4, 6), (0, -(1 << 40)), (4, 1 << 40)])
def test_a_label_that_is_no_class_makes_the_loss_nan(row: int, label: int, backend: str) -> None:
    logits = torch.randn(5, 6, device=device_of(backend))
    labels = torch.zeros(5, dtype=torch.int64, device=logits.device)
    labels[row] = label
    losses, loss, dlogits = (torch.zeros(shape, device=logits.device) for shape in ((5,), (1,), (5, 6)))
    module_of(backend).cross_entropy(logits, labels, losses, loss, dlogits, 0.0, stream_of(logits))
    assert losses.isnan().tolist() == [i == row for i in range(5)] and bool(loss.isnan())
