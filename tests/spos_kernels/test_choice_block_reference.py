"""The reference of the choice block, against torch's own modules put together as the published network has them."""

from __future__ import annotations

import pytest
import torch
from choice_block_support import CHOICES
from torch import Tensor, nn

import spos_kernels as sk
from spos_kernels import Branch, ConvBN

pytestmark = pytest.mark.usefixtures("one_thread")


def pointwise(inputs: int, outputs: int, affine: bool) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs, affine=affine), nn.ReLU()]


def depthwise(channels: int, kernel: int, stride: int, affine: bool) -> list[nn.Module]:
    conv = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
    return [conv, nn.BatchNorm2d(channels, affine=affine)]


class PlainBlock(nn.Module):
    """The published block: channels shuffled by reshaping, then split in half."""

    def __init__(self, choice: str, inputs: int, outputs: int, stride: int, affine: bool) -> None:
        super().__init__()
        branch, mid = inputs // 2 if stride == 1 else inputs, outputs // 2
        main = outputs - branch
        if choice == "x":
            layers = [*depthwise(branch, 3, stride, affine), *pointwise(branch, mid, affine)]
            layers += [*depthwise(mid, 3, 1, affine), *pointwise(mid, mid, affine)]
            layers += [*depthwise(mid, 3, 1, affine), *pointwise(mid, main, affine)]
        else:
            layers = [*pointwise(branch, mid, affine), *depthwise(mid, int(choice), stride, affine)]
            layers += pointwise(mid, main, affine)
        kernel = 3 if choice == "x" else int(choice)
        self.main = nn.Sequential(*layers)
        self.proj = nn.Sequential(*depthwise(branch, kernel, 2, affine), *pointwise(branch, branch, affine))
        if stride == 1:
            self.proj = nn.Sequential()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2)
                for parameter in module.parameters():
                    nn.init.uniform_(parameter, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.proj):
            return torch.cat([self.proj(x), self.main(x)], 1)
        batch, channels, height, width = x.shape
        pairs = x.reshape(batch * channels // 2, 2, height * width).permute(1, 0, 2)
        passed, rest = pairs.reshape(2, -1, channels // 2, height, width)
        return torch.cat([passed, self.main(rest)], 1)

    def branch(self) -> Branch:
        """Its tensors, shared."""
        chains = []
        for chain in (self.main, self.proj):
            convs = [m for m in chain if isinstance(m, nn.Conv2d)]
            norms = [m for m in chain if isinstance(m, nn.BatchNorm2d)]
            chains.append(
                tuple(
                    ConvBN(c.weight, n.weight, n.bias, n.running_mean, n.running_var, n.num_batches_tracked)
                    for c, n in zip(convs, norms, strict=True)
                )
            )
        return Branch(*chains)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("choice", CHOICES)
def test_it_is_the_published_block(choice: str, stride: int, momentum: float | None, affine: bool, training: bool):
    torch.manual_seed(1)
    ours = PlainBlock(choice, 6, 6 if stride == 1 else 10, stride, affine).double()
    torch.manual_seed(1)
    plain = PlainBlock(choice, 6, 6 if stride == 1 else 10, stride, affine).double().train(training)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum, module.eps = momentum, 1e-3
    options = {"stride": stride, "training": training, "momentum": momentum, "eps": 1e-3}
    for _ in range(3):
        x = torch.randn(2, 6, 5, 8, dtype=torch.float64, requires_grad=True)
        y, right = sk.choice_block_reference(x, [ours.branch()], 0, **options), plain(x)
        torch.testing.assert_close(y, right)
        assert y.is_contiguous(memory_format=torch.channels_last)
        dy = torch.randn_like(y)
        gradients = torch.autograd.grad(y, [x, *ours.parameters()], dy)
        torch.testing.assert_close(gradients, torch.autograd.grad(right, [x, *plain.parameters()], dy))
        torch.testing.assert_close(dict(ours.named_buffers()), dict(plain.named_buffers()))


def test_double_backward_and_meta_tensors() -> None:
    block = PlainBlock("5", 4, 4, 1, affine=True).double()
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    function = lambda x: sk.choice_block_reference(x, [block.branch()], 0)  # noqa: E731
    assert torch.autograd.gradgradcheck(function, x)
    on_meta = PlainBlock("x", 4, 10, 2, affine=False).to("meta")
    assert sk.choice_block_reference(torch.empty(3, 4, 5, 5, device="meta"), [on_meta.branch()], 0, stride=2).shape == (
        (3, 10, 3, 3)
    )
