"""Run by the Python of a second environment that has the wheel: it must be imported from there, and compute."""

import sys
from pathlib import Path

import torch

import spos
import spos_kernels as sk

for package in (spos, sk):
    location = Path(package.__file__ or "").resolve()
    if not location.is_relative_to(Path(sys.prefix).resolve()):
        sys.exit(f"{package.__name__} came from {location}, not from the wheel in {sys.prefix}")

x = torch.randn(2, 16, 14, 14).to(memory_format=torch.channels_last).requires_grad_()
conv = sk.DepthwiseConv2d(16, 3)
sk_loss = conv(x).square().sum()
gradients = torch.autograd.grad(sk_loss, (x, conv.weight))
expected = torch.autograd.grad(conv.plain()(x).square().sum(), (x, conv.weight))
for gradient, reference in zip(gradients, expected, strict=True):
    torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-4)
print(f"wheel: spos and spos_kernels imported, forward and backward agree with torch {torch.__version__} ({sk.isa()})")
