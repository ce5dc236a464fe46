"""What does sharing prefixes save, over a whole evolutionary search?

    python benchmarks/study_shared_prefixes.py [--run runs/c10] [--data cifar10.zip]

evolves a population with the paper's settings (50 candidates, then 20 generations of 50) and scores every generation
both ways, candidates one by one and together, in turns. The scores must be the same. Printed are the stages that ran,
the nodes of the generations' tries, the ratio of multiply-accumulates, and the ratio of wall times.

Then some candidates are scored by the released code's recipe (statistics over 200 batches of 128 images, 8,000 images
to classify), one by one, on the library's kernels and by torch's own layers in NHWC, and compared with the time that a
candidate takes with this library's defaults.

Without --run the supernet is untrained and without --data the images are noise: times are the same, and the search has
scores to go by, if poor ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from plain_shufflenet import plain
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import spos
from spos.prefix_sharing import Node, Trie
from spos.variation import draw_random, propose
from spos_kernels import use_backend

Batches = tuple[list[Tensor], list[tuple[Tensor, Tensor]]]


def noise(images: int, classes: int, side: int) -> spos.Data:
    """Images of noise, with labels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (images, side, side, 3), dtype=np.uint8)
    return spos.data.from_arrays(pixels, np.arange(images) % classes, config=spos.DataConfig(image_size=side))


def multiply_accumulates(net: spos.Supernet, archs: Sequence[spos.Arch]) -> tuple[int, int]:
    """Of one image along all architectures: one by one, and along their trie."""
    trie = Trie(net, archs)
    known: dict[tuple[object, ...], int] = {}
    shared = 0

    def cost(node: Node, x: Tensor) -> tuple[int, Tensor]:
        counter = FlopCounterMode(display=False)
        with use_backend("reference"), torch.no_grad(), net.path(node.arch), counter:
            for module in trie.stages[node.stage].modules:
                x = module(x)
        return counter.get_total_flops() // 2, x

    shapes: dict[int, Tensor] = {0: torch.zeros(1, *(net.input_shape or ()))}
    net.eval()
    for node in sorted(trie.nodes, key=lambda n: n.stage):
        key = (node.stage, *(node.arch[p] for p in trie.stages[node.stage].decisions))
        if key not in known:
            known[key], shapes[node.stage + 1] = cost(node, shapes[node.stage])
        shared += known[key]
    return sum(spos.flops(net, arch) for arch in archs), shared


def scored(
    net: spos.Supernet, archs: Sequence[spos.Arch], data: Batches, share: bool
) -> tuple[float, list[spos.Score]]:
    """Seconds, and the scores."""
    start = time.perf_counter()
    scores = spos.evaluate_population(net, archs, *data, share_prefixes=share)
    return time.perf_counter() - start, scores


def search(net: spos.Supernet, data: Batches, config: spos.SearchConfig, seed: int) -> None:
    """Evolve, scoring both ways, and print what that took."""
    history: dict[spos.Arch, spos.Score] = {}
    seconds, work, stages = np.zeros(2), np.zeros(2), np.zeros(2, int)
    for number in range(config.generations + 1):
        rng = spos.generator(seed, "evolution", number)
        if number == 0:
            archs = draw_random(net.space, config.population, set(), lambda _: True, rng)
        else:
            parents = sorted(history, key=lambda a: (-history[a].accuracy, history[a].loss))[: config.parents]
            archs = [arch for arch, _ in propose(net.space, parents, set(history), lambda _: True, config, rng)]
        found = {}
        for share in (True, False) if number % 2 else (False, True):
            took, found[share] = scored(net, archs, data, share)
            seconds[int(share)] += took
        assert found[True] == found[False], "scores differ"
        history |= dict(zip(archs, found[True], strict=True))
        trie = Trie(net, archs)
        work += multiply_accumulates(net, archs)
        stages += len(archs) * len(trie.stages), len(trie.nodes)
        print(
            f"generation {number}: {len(archs)} candidates, {seconds[0] / seconds[1]:.3f} times as fast so far, "
            f"{work[0] / work[1]:.3f} times fewer multiply-accumulates, {stages[0] / stages[1]:.3f} fewer stages",
            flush=True,
        )
    print(
        f"\n{len(history)} candidates, scores the same to the bit\n"
        f"stages run for each batch: {stages[0]:,} one by one, {stages[1]:,} together, as many as the tries' nodes\n"
        f"multiply-accumulates: {work[0] / work[1]:.3f} times fewer\n"
        f"wall time: {seconds[0]:.0f} s one by one, {seconds[1]:.0f} s together, {seconds[0] / seconds[1]:.3f} times "
        f"as fast, {seconds[0] / seconds[1] / (work[0] / work[1]):.3f} of the ratio of multiply-accumulates"
    )


def released(net: spos.Supernet, data: spos.Data, config: spos.SearchConfig, seed: int, candidates: int) -> None:
    """Compare with the released recipe, images taken again where there are too few."""
    rng = spos.generator(seed, "released")
    archs = draw_random(net.space, config.population, set(), lambda _: True, rng)

    def batches(calibration: int, validation: int) -> Batches:
        images = data.calibration_batches(min(calibration, len(data.train)), 128, seed)
        labelled = data.validation_batches(0, 128, seed)
        return (
            [images[i % len(images)] for i in range(calibration // 128)],
            [labelled[i % len(labelled)] for i in range(validation // 128)],
        )

    whole = batches(200 * 128, 40 * 200)
    theirs = scored(net, archs[:candidates], whole, share=False)[0] / candidates
    eager = scored(plain(net, nhwc=True), archs[:candidates], whole, share=False)[0] / candidates
    ours = scored(net, archs, batches(config.calibration_images, 40 * 200), share=True)[0] / len(archs)
    print(
        f"\na candidate by the released recipe: {theirs:.2f} s on these kernels, {eager:.2f} s in eager PyTorch, NHWC\n"
        f"by this library's defaults, a first population together: {ours:.2f} s, {theirs / ours:.2f} and "
        f"{eager / ours:.2f} times as fast"
    )


def main() -> None:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="folder of a run whose supernet is trained")
    parser.add_argument("--data", help="as `spos train --data`; noise if it is left out")
    parser.add_argument("--space", default="shufflenet-oneshot")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--calibration", type=int, default=256, help="images for each candidate of the search")
    parser.add_argument("--validation", type=int, default=512, help="the same, to classify")
    parser.add_argument("--candidates", type=int, default=3, help="to score by the released recipe")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = (
        spos.data.load(spos.DataConfig(source=options.data, image_size=options.image_size))
        if options.data
        else noise(8000, 10, options.image_size)
    )
    net = spos.spaces.get(options.space, num_classes=data.num_classes, image_size=options.image_size, seed=options.seed)
    if options.run:
        with spos.RunDirectory.open(f"{options.run}/supernet", read_only=True) as run:
            spos.load_weights(net, run, "supernet")
    config = spos.SearchConfig()
    small = replace(config, calibration_images=options.calibration, validation_images=options.validation)
    images = data.calibration_batches(small.calibration_images, 128, options.seed)
    search(net, (images, data.validation_batches(small.validation_images, 128, options.seed)), small, options.seed)
    released(net, data, config, options.seed, options.candidates)


if __name__ == "__main__":
    main()
