"""Which of two ways to train a supernet is better?

    python benchmarks/study_supernet.py widths runs/widths --data cifar10.zip
    python benchmarks/study_supernet.py clips runs/clips --data cifar10.zip

"widths": channel numbers all drawn from the start, or the widest alone first and narrower ones opened step by step (see
`spos.sampling`). "clips": of each quantized layer, a value to clip activations at for each number of bits, or one for
all. Supernets are trained both ways, each with every seed, for the same number of steps. All of them then score the
same random architectures, with recomputed statistics, on the same held-out images. What counts is how well
architectures do with the weights they inherit, cheap ones and dear ones, and whether two seeds agree on their order.

Started again, it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

import spos


@dataclass(frozen=True)
class Arm:
    """One way: the folder's name, and what differs in the space and in training."""

    folder: str
    space: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A space, the key of the cost to order its architectures by, and two ways to train its supernet."""

    space: str
    cost: str
    arms: Mapping[str, Arm]


QUESTIONS = {
    "widths": Question(
        "shufflenet-oneshot-channels-small",
        "flops",
        {
            "all widths from the start": Arm("none", train={"width_warmup": 0.0, "width_widening": 0.0}),
            # Shares of the steps: those of CanyonWind/Single-Path-One-Shot-NAS-MXNet.
            "warm-up": Arm("warmup", train={"width_warmup": 0.5, "width_widening": 0.075}),
        },
    ),
    "clips": Question(
        "resnet-mixed-small",
        "bitops",
        {
            "a clip for each number of bits": Arm("own"),
            "one clip for all": Arm("shared", space={"share_clip": True}),
        },
    ),
}


def scores(
    options: argparse.Namespace, data: spos.Data, question: Question, arm: str, seed: int
) -> list[spos.Candidate]:
    """Train one supernet and score the architectures, in the order of drawing, which is the same for every one."""
    how = question.arms[arm]
    net = spos.spaces.get(
        question.space,
        num_classes=data.num_classes,
        image_size=data.image_size,
        in_channels=data.in_channels,
        seed=seed,
        **how.space,
    )
    train = spos.TrainConfig(
        epochs=options.epochs, batch_size=64, lr=0.05, weight_decay=1e-4, clip_norm=1.0, **how.train
    )
    folder = options.out / f"{how.folder}-{seed}"
    trained = spos.train_supernet(net, data, config=train, seed=seed, run=folder / "supernet")
    print(
        f"{arm}, seed {seed}: {trained.steps} steps in {trained.seconds:.0f} s, last loss {trained.loss:.3f}",
        flush=True,
    )
    search = spos.SearchConfig(
        population=options.candidates, generations=0, calibration_images=640, validation_images=2000
    )
    return list(spos.random_search(net, data, config=search, seed=0, run=folder / "scores").history)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--data", required=True, help="as `spos train --data`")
    parser.add_argument("--epochs", type=float, default=6.0)
    parser.add_argument("--candidates", type=int, default=60)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    question = QUESTIONS[options.question]
    data = spos.data.load(spos.DataConfig(source=options.data, image_size=32))
    rows = []
    for arm in question.arms:
        runs = [scores(options, data, question, arm, seed) for seed in options.seeds]
        order = np.argsort([getattr(c, question.cost) for c in runs[0]])
        accuracy = 100 * np.array(
            [[run[i].accuracy for i in order] for run in runs]
        )  # [seeds, candidates], cheap first
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
