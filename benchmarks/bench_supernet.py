"""Training steps and evaluation of the SPOS ShuffleNet supernet, another random path each time.

Every candidate has a network and an optimizer of its own and sees the same sequence of paths, so that all do the same
work in a round. Baselines: torch's layers, eager in NCHW and in NHWC, and our reference backend. torch.compile gets a
single path as a network of its own, since it would compile every new path for minutes; it and the others then repeat
that path.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from statistics import mean

import pytest
import torch
import torch.nn.functional as F
from ceilings import bound, fma_rate, load_rate
from interleave import Interleaved
from plain_shufflenet import memory_format, plain, plain_child
from pytest_benchmark.fixture import BenchmarkFixture
from report import Listing, Report, Row
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

import spos
import spos_kernels as sk
from spos.steps import make_optimizer

SIZES = [(64, 32), (8, 224)]
PATHS = 64


def supernet(size: int) -> spos.Supernet:
    return spos.spaces.get("shufflenet-oneshot", num_classes=1000 if size == 224 else 10, image_size=size)


def paths(net: spos.Supernet) -> list[spos.Arch]:
    return [net.space.sample(spos.generator(0, "benchmark", index)) for index in range(PATHS)]


def torch_sgd(model: nn.Module, config: spos.TrainConfig) -> torch.optim.Optimizer:
    """Return torch's SGD, set up as the released code has it."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD([g for g in groups if g["params"]], lr=config.lr, momentum=config.momentum)


def step(
    model: nn.Module,
    archs: Iterator[tuple[spos.Arch] | tuple[()]],
    batch: int,
    size: int,
    *,
    training: bool,
    nhwc: bool = True,
    plain: bool = False,
) -> Callable[[], object]:
    """Return one training step, optimizer included, or one evaluation; each call takes the next path.

    A plain network is trained by torch's optimizer, others by the library's own.
    """
    images = torch.randn(batch, 3, size, size).to(memory_format=memory_format(nhwc))
    labels = torch.arange(batch) % 10
    model.train(training)
    if not training:

        def evaluate() -> object:
            with torch.no_grad():
                return model(images, *next(archs))

        return evaluate
    config = spos.TrainConfig(lr=0.01)
    optimizer = torch_sgd(model, config) if plain else make_optimizer(model, config)

    def train() -> object:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(images, *next(archs)), labels)
        loss.backward()
        optimizer.step()
        return loss

    return train


def on_backend(name: str, work: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with sk.use_backend(name):
            return work()

    return run


def measure(
    benchmark: BenchmarkFixture,
    report: Report,
    suite: str,
    candidates: dict[str, Callable[[], object]],
    shape: tuple[int, int],
    operations: float,
) -> None:
    interleaved = Interleaved(candidates)
    rounds = interleaved.rounds_in(seconds=30, least=10, most=60)
    benchmark.pedantic(interleaved.round, rounds=rounds, warmup_rounds=0)
    spreads = interleaved.spreads()
    batch, size = shape
    row = Row(
        suite=suite,
        shape=f"{batch} images of {size}²",
        ours=spreads.pop("ours"),
        baselines=spreads,
        bound=bound(operations, 4 * batch * 3 * size**2, torch.get_num_threads()),
        operations=operations,
        rounds=rounds,
    )
    benchmark.extra_info.update(ratio=row.ratio, baseline=row.best)
    report.rows.append(row)


def operations_of(net: spos.Supernet, archs: list[spos.Arch], batch: int, training: bool) -> float:
    """Floating-point operations of a step, as the mean over paths; backward is twice forward."""
    return 2 * batch * (3 if training else 1) * mean(spos.flops(net, arch) for arch in archs)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("batch", "size"), SIZES)
def test_random_paths(benchmark: BenchmarkFixture, report: Report, batch: int, size: int, training: bool) -> None:
    net = supernet(size)
    archs = paths(net)

    def candidate(model: nn.Module, **options: bool) -> Callable[[], object]:
        return step(model, itertools.cycle((arch,) for arch in archs), batch, size, training=training, **options)

    candidates = {
        "ours": on_backend("cpu", candidate(copy.deepcopy(net))),
        "eager NHWC": candidate(plain(net, nhwc=True), plain=True),
        "eager NCHW": candidate(plain(net, nhwc=False), plain=True, nhwc=False),
        "reference": on_backend("reference", candidate(copy.deepcopy(net))),
    }
    suite = "supernet, training step" if training else "supernet, evaluation forward"
    measure(benchmark, report, suite, candidates, (batch, size), operations_of(net, archs, batch, training))


@pytest.mark.full
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("batch", "size"), SIZES)
@pytest.mark.timeout(1200)
def test_one_path_against_compile(
    benchmark: BenchmarkFixture, report: Report, batch: int, size: int, training: bool
) -> None:
    net = supernet(size)
    arch = paths(net)[0]

    def candidate(model: nn.Module, *arguments: spos.Arch) -> Callable[[], object]:
        return step(model, itertools.repeat(arguments), batch, size, training=training, plain=not arguments)

    torch.compiler.reset()
    candidates = {
        "ours": on_backend("cpu", candidate(net, arch)),
        "eager NHWC": candidate(plain_child(net, arch)),
        "compiled NHWC": candidate(torch.compile(plain_child(net, arch), dynamic=False)),
    }
    suite = "one path, " + ("training step" if training else "evaluation forward") + ", with torch.compile"
    measure(benchmark, report, suite, candidates, (batch, size), operations_of(net, [arch], batch, training))


@pytest.mark.parametrize(("batch", "size"), SIZES)
def test_where_a_training_step_goes(benchmark: BenchmarkFixture, report: Report, batch: int, size: int) -> None:
    net = supernet(size)
    archs = paths(net)[:10]
    work = on_backend("cpu", step(net, itertools.cycle((arch,) for arch in archs), batch, size, training=True))
    for _ in archs:
        work()
    names: dict[str, float] = {}

    def profiled() -> None:
        with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function("step"):
            for _ in archs:
                work()
        for event in profiler.key_averages():
            names[event.key] = names.get(event.key, 0.0) + event.self_cpu_time_total / 1e6 / len(archs)

    benchmark.pedantic(profiled, rounds=1)
    report.listings.append(phases(names, operations_of(net, archs, batch, False), f"{batch} images of {size}²"))


def phases(seconds: dict[str, float], forward: float, shape: str) -> Listing:
    """Sum the profiler's events (self times) by what they belong to.

    The fused operations, of the blocks, the stem and the last convolution, do all of the work that is counted but
    for the classifier's.
    """
    threads = torch.get_num_threads()
    found = dict.fromkeys(("fused operations, forward", "fused operations, backward", "optimizer", "rest"), 0.0)
    for name, time in seconds.items():
        if name == "_Eager":
            found["fused operations, forward"] += time
        elif name == "_EagerBackward":
            found["fused operations, backward"] += time
        elif "Optimizer" in name:
            found["optimizer"] += time
        else:
            found["rest"] += time
    total = sum(found.values())
    rows = []
    for name, time in found.items():
        rates = ("", "", "")
        if name.startswith("fused"):
            rate = (2 if "backward" in name else 1) * forward / time
            ceilings = (rate / fma_rate(threads), rate / load_rate(threads))
            rates = (f"{rate / 1e9:.0f}", *(f"{ceiling:.0%}" for ceiling in ceilings))
        rows.append((name, f"{time * 1e3:.1f}", f"{time / total:.0%}", *rates))
    columns = ("phase", "ms", "share", "GFLOP/s", "of FMA ceiling", "of FMA with a load each")
    return Listing(f"where our training step goes, {shape}", columns, rows)
