"""Does a supernet that trains on the fused blocks end where one in plain PyTorch does?

    python benchmarks/study_loss_curves.py

trains the small space on synthetic images, freely: every run goes its own way from the first rounding on. What the
fused run is compared with has to differ by nothing but rounding either, so the reference runs have the same paths,
batches and dropout masks, and initial weights that are moved by about a unit in the last place. That is the strict
choice: over seeds, the spread would be many times larger and would hide more. The mean of the last losses of the fused
run has to lie within three standard deviations of the reference runs' ones.

Step-for-step agreement, which rounding does not blur, is a test: tests/spos/core/test_fused_supernet.py.
"""

from __future__ import annotations

import argparse
import sys
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor

import spos
import spos_kernels as sk
from spos.steps import make_optimizer

CLASSES = 4
SIDE = 16


def batch(step: int, size: int) -> tuple[Tensor, Tensor]:
    """Noise over a class's own pattern."""
    patterns = torch.randn(CLASSES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1 + step)
    labels = torch.randint(CLASSES, (size,), generator=generator)
    noise = torch.randn(size, 3, SIDE, SIDE, generator=generator)
    return (patterns[labels] + noise).contiguous(memory_format=torch.channels_last), labels


def train(backend: str, nudge: int, options: argparse.Namespace) -> list[float]:
    """Return the losses of one run; `nudge` is the seed of what its initial weights are moved by, 0 for not at all."""
    net = spos.spaces.get("shufflenet-oneshot-small", num_classes=CLASSES, image_size=SIDE).train()
    if nudge:
        generator = torch.Generator().manual_seed(nudge)
        with torch.no_grad():
            for weight in net.parameters():
                weight.mul_(1 + 2**-23 * torch.randn(weight.shape, generator=generator))
    optimizer = make_optimizer(net, spos.TrainConfig(lr=options.lr))
    losses = []
    for step in range(options.steps):
        optimizer.param_groups[0]["lr"] = options.lr * (1 - step / options.steps)
        images, labels = batch(step, options.batch)
        torch.manual_seed(step)  # of the dropout mask
        optimizer.zero_grad(set_to_none=True)
        with sk.use_backend(backend):
            logits = net(images, net.space.sample(spos.generator(0, "path", step)))
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--last", type=int, default=50, help="how many losses the mean is over")
    options = parser.parse_args()
    runs = {f"reference {n}": train("reference", n, options) for n in range(5)} | {"fused": train("cpu", 0, options)}
    first = runs["reference 0"]
    for name, losses in runs.items():
        apart = next((i for i, (a, b) in enumerate(zip(losses, first, strict=True)) if abs(a - b) > 1e-3 * b), None)
        ends = f"first {mean(losses[: options.last]):.4f}, last {mean(losses[-options.last :]):.4f}"
        print(f"{name:<12} {ends}", "" if apart is None else f"  0.1% from reference 0 at step {apart}")
    means = [mean(losses[-options.last :]) for name, losses in runs.items() if name != "fused"]
    distance = (mean(runs["fused"][-options.last :]) - mean(means)) / stdev(means)
    print(
        f"reference: {mean(means):.4f} ± {stdev(means):.4f}; the fused run is {distance:+.2f} standard deviations away"
    )
    if abs(distance) > 3:
        sys.exit("the fused run ends outside of three standard deviations")


if __name__ == "__main__":
    main()
