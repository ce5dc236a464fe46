"""Does it matter how candidates are scored: by all images, by this library's defaults, or by the released recipe?

    python benchmarks/study_ranks.py runs/search --data cifar-10-batches-bin

takes a trained supernet (RUN/supernet, as `spos train` and `study_search.py` leave it) and scores the same random
architectures three ways: with statistics over all training images and on all held-out ones, which the others are
measured by; as `spos search` does by default; and as the released code, moving averages over 200 batches of 128 images.
Printed are Spearman's rank correlations with the first, intervals by bootstrap over the architectures.

With --validation, the last two see so many held-out images; the released recipe's 8,000 are more than CIFAR-10 has.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn

import spos
from spos.variation import draw_random

Labelled = list[tuple[Tensor, Tensor]]


def by_moving_averages(
    net: spos.Supernet, archs: Sequence[spos.Arch], calibration: Sequence[Tensor], validation: Labelled
) -> list[float]:
    """Accuracies by the released recipe: torch's batch normalisation, momentum 0.1, images taken again if too few."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    accuracies = []
    for arch in archs:
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
        with torch.no_grad(), net.path(arch):
            for i in range(200):
                net.module(calibration[i % len(calibration)])
            net.eval()
            right = sum(int((net.module(x).argmax(1) == y).sum()) for x, y in validation)
        accuracies.append(right / sum(len(y) for _, y in validation))
    return accuracies


def interval(statistic: Callable[[NDArray[np.int64]], float], count: int) -> tuple[float, float]:
    """95 % of the bootstrap distribution of a statistic of `count` architectures."""
    rng = np.random.default_rng(0)
    found = [statistic(rng.integers(count, size=count)) for _ in range(2000)]
    return float(np.percentile(found, 2.5)), float(np.percentile(found, 97.5))


def main() -> None:
    """Score three ways and print the correlations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run whose supernet is trained")
    parser.add_argument("--data", required=True, help="as `spos train --data`")
    parser.add_argument("--space", default="shufflenet-oneshot-channels-small")
    parser.add_argument("--candidates", type=int, default=120)
    parser.add_argument("--validation", type=int, default=0, help="held-out images; 0 for all")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    data = spos.data.load(spos.DataConfig(source=options.data, image_size=32))
    net = spos.spaces.get(options.space, num_classes=data.num_classes, image_size=data.image_size)
    with spos.RunDirectory.open(options.run / "supernet", read_only=True) as run:
        spos.load_weights(net, run, "supernet")
    net = net.eval()
    rng = spos.generator(0, "ranks")
    archs = list(draw_random(net.space, options.candidates, set(), lambda _: True, rng))
    some, every = data.validation_batches(options.validation, 128, 0), data.validation_batches(0, 128, 0)
    default = spos.SearchConfig().calibration_images

    def scored(images: int, validation: Labelled) -> list[float]:
        calibration = data.calibration_batches(images, 128, 0)
        return [s.accuracy for s in spos.evaluate_population(net, archs, calibration, validation)]

    ways: dict[str, Callable[[], list[float]]] = {
        "all images": lambda: scored(len(data.train), every),
        f"{default:,} images, cumulative": lambda: scored(default, some),
        "200 × 128 images, moving": lambda: by_moving_averages(
            net, archs, data.calibration_batches(200 * 128, 128, 0), some
        ),
    }
    accuracy, seconds = {}, {}
    for name, way in ways.items():
        start = time.perf_counter()
        accuracy[name] = np.array(way())
        seconds[name] = time.perf_counter() - start
        print(f"{name}: {seconds[name]:.0f} s, {100 * accuracy[name].mean():.2f} %", flush=True)
    full, ours, theirs = accuracy.values()

    def rank(of: NDArray[np.float64], at: NDArray[np.int64]) -> float:
        return float(spearmanr(full[at], of[at]).statistic)

    everyone = np.arange(len(archs))
    print(f"\nrank correlation with the first, {len(archs)} architectures, {len(some)} batches to classify:")
    for name, of in (("ours", ours), ("released", theirs)):
        low, high = interval(lambda at, of=of: rank(of, at), len(archs))  # type: ignore[misc]
        print(f"{name}: {rank(of, everyone):.4f} ({low:.4f} to {high:.4f})")
    low, high = interval(lambda at: rank(ours, at) - rank(theirs, at), len(archs))
    print(f"ours less released: {rank(ours, everyone) - rank(theirs, everyone):+.4f} ({low:+.4f} to {high:+.4f})")


if __name__ == "__main__":
    main()
