"""What does racing save in a search, and does it change what is found?

    python benchmarks/study_racing.py runs/search --data cifar-10-batches-bin

takes a trained supernet (RUN/supernet) and evolves with each seed twice, all else alike: every candidate scored on all
held-out images, and with `search.racing` at each of the confidences. Printed are the part of the validation images that
was still classified, the time, and how many of the ten best are not the same.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import spos


def main() -> None:
    """Search both ways and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run whose supernet is trained")
    parser.add_argument("--data", required=True, help="as `spos train --data`")
    parser.add_argument("--space", default="shufflenet-oneshot-channels-small")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--confidence", type=float, nargs="+", default=[0.99, 0.9])
    parser.add_argument("--population", type=int, default=32)
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--calibration", type=int, default=640, help="images")
    parser.add_argument("--max-flops", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    data = spos.data.load(spos.DataConfig(source=options.data, image_size=32))
    net = spos.spaces.get(options.space, num_classes=data.num_classes, image_size=data.image_size)
    with spos.RunDirectory.open(options.run / "supernet", read_only=True) as run:
        spos.load_weights(net, run, "supernet")
    children = options.population // 2
    config = spos.SearchConfig(
        population=options.population, generations=options.generations, mutations=children, crossovers=children,
        calibration_images=options.calibration, max_flops=options.max_flops,
    )  # fmt: skip
    ways = [0.0, *options.confidence]
    found: dict[float, list[tuple[float, float, set[spos.Arch]]]] = {way: [] for way in ways}
    for seed in options.seeds:
        for way in ways if seed % 2 else reversed(ways):
            start = time.perf_counter()
            result = spos.evolve(net, data, config=replace(config, racing=way), seed=seed)
            seen = float(np.mean([c.images or 0 for c in result.history])) / len(data.validation)
            found[way].append((time.perf_counter() - start, seen, {c.arch for c in result.top}))
            print(f"seed {seed}, racing {way:g}: {found[way][-1][0]:.0f} s, {seen:.1%} of the images", flush=True)
    print(f"\n{config.evaluations} candidates, {len(data.validation):,} images, {len(options.seeds)} seeds\n")
    print("| racing | images classified | time | of the ten best, others |\n|---|---|---|---|")
    for way, runs in found.items():
        time_ratio = sum(r[0] for r in runs) / sum(r[0] for r in found[0.0])
        changed = ", ".join(str(len(plain[2] - r[2])) for r, plain in zip(runs, found[0.0], strict=True))
        print(f"| {way:g} | {np.mean([r[1] for r in runs]):.1%} | {time_ratio:.2f} | {changed} |")


if __name__ == "__main__":
    main()
