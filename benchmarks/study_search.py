"""Does evolution find better networks than random search, and either than the network of most FLOPs?

    python benchmarks/study_search.py runs/search --data cifar-10-batches-bin

One supernet is trained. With each seed, evolution and random search score equally many candidates within one FLOPs
budget on 2,000 held-out images; a ranking by FLOPs alone takes the dearest of those that random search drew. The ten
best of each are scored again on the 3,000 held-out images that no search saw. The one that is best there, or dearest,
is trained from fresh weights, all of them alike, and scored on the test images.

Supernet and data are the same for all seeds, so intervals are over the seeds of search and retraining. Started again,
it goes on where it was stopped. Processes of one thread each work beside each other.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from scipy.stats import t as student

import spos
from spos.atomic_files import write_bytes

METHODS = ("evolution", "random", "flops")
FINALISTS = 10
SEARCH_IMAGES = 2000
STEPS = {"batch_size": 64, "lr": 0.05, "weight_decay": 1e-4, "clip_norm": 1.0}


def load(options: argparse.Namespace) -> tuple[spos.Data, spos.Data]:
    """All data, and those of the searches, whose validation images they see and whose test images they do not."""
    data = spos.data.load(spos.DataConfig(source=options.data, image_size=32))
    order = np.random.default_rng(0).permutation(len(data.validation))
    seen, unseen = (data.validation.subset(np.sort(part)) for part in np.split(order, [SEARCH_IMAGES]))
    return data, spos.Data(data.train, seen, unseen, data.config)


def supernet(options: argparse.Namespace) -> spos.Supernet:
    return spos.spaces.get(options.space, num_classes=10, image_size=32)


def trained(options: argparse.Namespace) -> spos.Supernet:
    net = supernet(options)
    with spos.RunDirectory.open(options.out / "supernet", read_only=True) as run:
        spos.load_weights(net, run, "supernet")
    return net


def train(options: argparse.Namespace) -> None:
    """The one supernet, on all cores."""
    data, _ = load(options)
    config = spos.TrainConfig(epochs=options.train_epochs, **STEPS)
    result = spos.train_supernet(supernet(options), data, config=config, run=options.out / "supernet")
    print(f"supernet: {result.steps} steps in {result.seconds:.0f} s, last loss {result.loss:.3f}", flush=True)


def search(options: argparse.Namespace, method: str, seed: int) -> list[spos.Candidate]:
    """What a search scored, all of it."""
    torch.set_num_threads(1)
    config = spos.SearchConfig(
        population=options.population,
        generations=options.generations,
        mutations=options.population // 2,
        crossovers=options.population // 2,
        calibration_images=640,
        max_flops=options.max_flops,
    )
    run = spos.evolve if method == "evolution" else spos.random_search
    found = run(trained(options), load(options)[1], config=config, seed=seed, run=options.out / f"{method}-{seed}")
    return list(found.history)


def finalists(options: argparse.Namespace, method: str, history: Sequence[spos.Candidate]) -> list[dict[str, object]]:
    """The ten best, best first, and what they score on images that no search saw."""
    torch.set_num_threads(1)
    net, (_, data) = trained(options), load(options)
    first = sorted(history, key=lambda c: -c.flops if method == "flops" else -c.accuracy)[:FINALISTS]
    batches = data.calibration_batches(2560, 128, 0), list(data.test_batches(128))
    scores = spos.evaluate_population(net, [c.arch for c in first], *batches)
    rows = [
        {"arch": list(c.arch), "flops": c.flops, "searched": c.accuracy, "unseen": s.accuracy}
        for c, s in zip(first, scores, strict=True)
    ]
    return rows if method == "flops" else sorted(rows, key=lambda row: -float(str(row["unseen"])))


def retrain(options: argparse.Namespace, method: str, seed: int, arch: Sequence[int]) -> float:
    """Test accuracy of the architecture trained from fresh weights."""
    torch.set_num_threads(1)
    net = supernet(options)
    child = net.extract(arch, weights="fresh", seed=seed)
    config = spos.RetrainConfig(epochs=options.retrain_epochs, calibration_images=2560, **STEPS)
    folder = options.out / f"retrain-{method}-{seed}"
    return spos.retrain(child, load(options)[0], config=config, seed=seed, arch=arch, run=folder).test_accuracy


def one(options: argparse.Namespace, method: str, seed: int) -> dict[str, object]:
    """A method with a seed, to the end."""
    file = options.out / f"result-{method}-{seed}.json"
    if file.exists():
        return dict(json.loads(file.read_text()))
    history = search(options, "random" if method == "flops" else method, seed)
    best = finalists(options, method, history)
    result = {"method": method, "seed": seed, "candidates": len(history), "finalists": best}
    result["test_accuracy"] = retrain(options, method, seed, best[0]["arch"])  # type: ignore[arg-type]
    write_bytes(file, json.dumps(result, indent=1).encode())
    return result


def interval(values: Sequence[float], digits: int = 1) -> str:
    """Mean and half of the 95 % interval of Student's t."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    half = student.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"


def table(results: Sequence[dict[str, object]]) -> str:
    """The results in Markdown."""
    lines = [
        "| method | in search, % | the same on unseen images | MFLOPs | retrained, test % |",
        "|---|---|---|---|---|",
    ]
    tests: dict[str, list[float]] = {}
    pairs = []
    for method in METHODS:
        rows = [r for r in results if r["method"] == method]
        firsts = [r["finalists"][0] for r in rows]  # type: ignore[index]
        tests[method] = [100 * float(str(r["test_accuracy"])) for r in rows]
        pairs += [(f["unseen"], t) for f, t in zip(firsts, tests[method], strict=True)]
        lines.append(
            f"| {method} | {interval([100 * f['searched'] for f in firsts])} "
            f"| {interval([100 * f['unseen'] for f in firsts])} | {interval([f['flops'] / 1e6 for f in firsts], 2)} "
            f"| {interval(tests[method])} |"
        )
    for other in METHODS[1:]:
        lead = [a - b for a, b in zip(tests["evolution"], tests[other], strict=True)]
        lines.append(f"\nevolution less {other}, retrained, points, paired by seed: {interval(lead)}")
    rank = spearmanr(*zip(*pairs, strict=True)).statistic
    lines.append(f"\nSpearman of inherited and retrained accuracy over these {len(pairs)} networks: {rank:.2f}")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--data", required=True, help="as `spos train --data`")
    parser.add_argument("--space", default="shufflenet-oneshot-channels-small")
    parser.add_argument("--max-flops", type=float, required=True, help="the budget")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train-epochs", type=float, default=12.0)
    parser.add_argument("--retrain-epochs", type=float, default=4.0)
    parser.add_argument("--population", type=int, default=32)
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    options = parser.parse_args()
    started = time.monotonic()
    train(options)
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        # Random search comes before the ranking of what it drew.
        jobs: dict[tuple[str, int], Future[dict[str, object]]] = {}
        for seed in options.seeds:
            for method in METHODS[:2]:
                jobs[method, seed] = pool.submit(one, options, method, seed)
        for seed in options.seeds:
            jobs["random", seed].result()
            jobs["flops", seed] = pool.submit(one, options, "flops", seed)
        results = [jobs[method, seed].result() for method in METHODS for seed in options.seeds]
    print(f"\n{len(options.seeds)} seeds, {time.monotonic() - started:.0f} s; ± is half of the 95 % interval\n")
    print(table(results))


if __name__ == "__main__":
    main()
