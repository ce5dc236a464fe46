"""How well do sums of measured block latencies predict whole networks?

    python benchmarks/study_latency.py --space shufflenet-oneshot-channels --batch 1 --networks 50

measures the table of a search space and then random networks whole, in turns. They are deployed with fresh weights,
which do not matter for the time: packed in a space with bit widths, else as float children on the kernels. The random
networks are spread from narrow to wide (`spos.latency_measurement.spread_networks`), `--uniform` draws them uniformly.
"""

from __future__ import annotations

import argparse
import time
from statistics import mean, median

import torch
from scipy.stats import spearmanr

import spos
from spos.latency_measurement import ROUNDS, spread_networks, time_networks


def main() -> None:
    """Measure, predict, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--space", default="resnet18-mixed")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--networks", type=int, default=50)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--uniform", action="store_true", help="draw the networks uniformly")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    net = spos.spaces.get(options.space, image_size=options.image_size)
    start = time.perf_counter()
    table = spos.measure_latency(net, batch=options.batch, rounds=options.rounds)
    low, high = spos.latency.range(net) or (0.0, 0.0)
    spread = median(value for block in table.blocks for value in block.spread.values())
    print(
        f"{options.space}, {options.batch} images of {options.image_size}², {options.threads} threads, "
        f"{table.machine['processor']}, {table.machine['isa']}: table in {time.perf_counter() - start:.0f} s, "
        f"quartiles {spread:.1%} apart; networks take {low:.2f} to {high:.2f} ms, {table.rest / 1e6:.2f} ms of it "
        "in no block"
    )
    rng = spos.generator(0, "latency check")
    uniform = [net.space.sample(rng) for _ in range(options.networks)]
    archs = uniform if options.uniform else spread_networks(net, options.networks)
    predicted = [float(spos.latency(net, arch)) for arch in archs]
    measured = time_networks(net, archs, batch=options.batch, rounds=options.rounds)
    errors = [abs(p - m) / m for p, m in zip(predicted, measured, strict=True)]
    constant = min(mean(abs(number - m) / m for m in measured) for number in measured)
    print(
        f"{len(archs)} random networks, measured whole: {min(measured):.2f} to {max(measured):.2f} ms; mean error "
        f"{mean(errors):.2%}, largest {max(errors):.2%}, of the best number for all {constant:.2%}, rank correlation "
        f"{spearmanr(predicted, measured).statistic:.3f}"
    )


if __name__ == "__main__":
    main()
