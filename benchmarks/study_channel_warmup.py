"""Does a supernet of channel numbers train better when its widths are warmed up?

    python benchmarks/study_channel_warmup.py runs/warmup --data cifar10.zip

trains supernets that draw all widths from the start, and others that begin with the widest alone and open narrower ones
step by step (see `spos.sampling`), each with every seed, for the same number of steps. All of them then score the same
random architectures, with recomputed statistics, on the same held-out images. What counts is how well architectures
do with the weights they inherit, narrow ones and wide ones, and whether two seeds agree on their order.

Started again, it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau

import spos

# Shares of the steps: widest only, then opening. The warm-up is that of CanyonWind/Single-Path-One-Shot-NAS-MXNet.
ARMS = {"all widths from the start": (0.0, 0.0), "warm-up": (0.5, 0.075)}


def scores(options: argparse.Namespace, data: spos.Data, arm: str, seed: int) -> list[spos.Candidate]:
    """Train one supernet and score the architectures, in the order of drawing, which is the same for every one."""
    warmup, widening = ARMS[arm]
    net = spos.spaces.get(
        options.space, num_classes=data.num_classes, image_size=data.image_size, in_channels=data.in_channels, seed=seed
    )
    train = spos.TrainConfig(
        epochs=options.epochs,
        batch_size=64,
        lr=0.05,
        weight_decay=1e-4,
        clip_norm=1.0,
        width_warmup=warmup,
        width_widening=widening,
    )
    folder = options.out / f"{'warmup' if warmup else 'none'}-{seed}"
    trained = spos.train_supernet(net, data, config=train, seed=seed, run=folder / "supernet")
    print(f"{arm}, seed {seed}: {trained.steps} steps in {trained.seconds:.0f} s, last loss {trained.loss:.3f}")
    search = spos.SearchConfig(
        population=options.candidates, generations=0, calibration_images=640, validation_images=2000
    )
    return list(spos.random_search(net, data, config=search, seed=0, run=folder / "scores").history)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--data", required=True, help="as `spos train --data`")
    parser.add_argument("--space", default="shufflenet-oneshot-channels-small")
    parser.add_argument("--epochs", type=float, default=6.0)
    parser.add_argument("--candidates", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    data = spos.data.load(spos.DataConfig(source=options.data, image_size=32))
    rows = []
    for arm in ARMS:
        runs = [scores(options, data, arm, seed) for seed in options.seeds]
        order = np.argsort([c.flops for c in runs[0]])
        accuracy = 100 * np.array(
            [[run[i].accuracy for i in order] for run in runs]
        )  # [seeds, candidates], narrow first
        half = len(order) // 2
        cells = [f"{v.mean():.1f} ({', '.join(f'{s.mean():.1f}' for s in v)})"
                 for v in (accuracy, accuracy[:, :half], accuracy[:, half:])]  # fmt: skip
        cells.append(f"{accuracy.max():.1f}")
        cells.append(f"{kendalltau(accuracy[0], accuracy[1]).statistic:.2f}" if len(runs) > 1 else "")
        rows.append(f"| {arm} | {' | '.join(cells)} |")
    print(f"\nAccuracy in percent, mean over {options.candidates} architectures (each seed's):\n")
    print("| | all | cheaper half | dearer half | best | τ between the first two seeds |\n|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
