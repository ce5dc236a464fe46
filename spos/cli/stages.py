"""The stages of a run, from settings to finished run directories, saying on the way what they do.

Every stage goes on with what an earlier call left in the folder, and does nothing where it is finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spos.cli.budget import say_budget
from spos.cli.display import Display, duration
from spos.config import Config
from spos.run_directory import RunDirectoryError, versions
from spos.run_folder import SUPERNET, UNIFORM, RunFolder, retrain_stage, search_stage

if TYPE_CHECKING:
    import torch

    import spos
    from spos.space import Arch, SearchSpace

# Random architectures to compare with: how near their cost must be, and how many draws that may take.
_TOLERANCE = 0.01
_COMPARISON_DRAWS = 20_000


def train(folder: RunFolder, config: Config, display: Display) -> None:
    """Trains the supernet."""
    import spos

    data, net = prepare(config, display)
    net.to(device_of(config, display))
    with folder.held(SUPERNET):
        _begin(folder, SUPERNET, config, display)
        if not folder.started(SUPERNET) or folder.space() is None:
            folder.write_space(net, data)
        display.say(f"supernet: {net.name}, {len(net.space)} decisions, {_count(net.space.size())} architectures")
        result = spos.train_supernet(
            net,
            data,
            config=config.train,
            seed=config.seed,
            run=folder.directory(SUPERNET),
            progress=display.progress,
        )
    display.say(
        f"supernet: {result.steps} steps in {duration(result.seconds)}, training loss {result.loss:.4f}, "
        f"accuracy {result.accuracy:.2%} (of random paths)"
    )


def search(
    folder: RunFolder, config: Config, display: Display, *, label: str | None = None, random: bool = False
) -> None:
    """Evolves architectures, or draws as many at random, and scores them with the trained supernet's weights."""
    import spos
    from spos.budgets import bounds_of

    require(folder, SUPERNET, "spos train")
    data, net = prepare(config, display)
    with folder.open(SUPERNET) as run:
        spos.load_weights(net, run, "supernet")
    net.to(device_of(config, display))
    stage = search_stage(label)
    wanted = config.search.max_latency or config.search.min_latency or "latency" in config.search.objectives
    _attach_latency(folder, net, display, needed=bool(wanted))
    say_budget(net, bounds_of(config.search), display)
    with folder.held(stage):
        _begin(folder, stage, config, display)
        method = spos.random_search if random else spos.evolve
        result = method(
            net,
            data,
            config=config.search,
            seed=config.seed,
            reuse=[folder.directory(other) for other in folder.search_stages() if other != stage],
            run=folder.directory(stage),
            progress=display.progress,
        )
    best, reused = result.best, sum(c.reused for c in result.history)
    display.say(
        f"{'random search' if random else 'evolution'}: {len(result.history)} candidates"
        f"{f', {reused} of them scored by another search' * bool(reused)}, best {_listed(best.arch)}: "
        f"validation accuracy {best.accuracy:.2%}, {_cost(best.flops, best.params, best.bitops, best.latency)}"
    )
    if not random and config.search.method == "nsga2":
        display.say(f"Pareto front of {', '.join(config.search.objectives)}: {len(result.pareto)} architectures")
    _say_labels(net.space, best.arch, display)
    if best.latency is not None:
        _say_measured(net, best.arch, display)


def retrain(
    folder: RunFolder,
    config: Config,
    display: Display,
    *,
    arch: Sequence[int] | str | None = None,
    label: str | None = None,
    found_by: str | None = None,
    random_archs: int = 0,
) -> None:
    """Trains `arch`, or the best of the evolutionary search, from fresh weights; then random ones of the same cost.

    `arch` may be text such as "uniform:w2a2", the same option in every decision of a kind. `found_by` is the label of
    the search.
    """
    if arch is None:
        stage = search_stage(found_by)
        labelled = [s.partition("-")[2] for s in folder.search_stages() if s != stage]
        if found_by is None and labelled and not folder.started(stage):
            raise RunDirectoryError(f"{folder.path} has searches {', '.join(labelled)}: say which by --search")
        require(folder, stage, "spos search", "" if found_by is None else f" --label {found_by}")
        with folder.open(stage) as run:
            arch = (run.read_json("result") or {})["best"]["arch"]
        label, origin = label or "best", "search"
    else:
        label, origin = label or "given", "given"
    data, net = prepare(config, display)
    chosen = _uniform(net.space, arch) if isinstance(arch, str) else net.space.arch(arch)
    others = _comparisons(net, chosen, random_archs, config.seed)  # first: it may find too few
    _retrain_one(folder, config, display, data, net, chosen, label, origin)
    for number, other in enumerate(others, start=1):
        name = f"random-{number}" if found_by is None else f"{label}-random-{number}"
        _retrain_one(folder, config, display, data, net, other, name, "random")


def _retrain_one(
    folder: RunFolder,
    config: Config,
    display: Display,
    data: spos.Data,
    net: spos.Supernet,
    arch: Arch,
    label: str,
    origin: str,
) -> None:
    import spos
    from spos.quantized import has_bits

    stage = retrain_stage(label)
    costs = {"flops": spos.flops(net, arch), "params": spos.params(net, arch)}
    if has_bits(net):
        costs["bitops"] = spos.bitops(net, arch)
    with folder.held(stage):
        if folder.started(stage) and (held := folder.plan(stage).get("arch", list(arch))) != list(arch):
            raise RunDirectoryError(
                f"{folder.directory(stage)} holds another architecture, {_listed(held)}: "
                f"expected {_listed(arch)}, or give another --label"
            )
        if not folder.started(stage):
            folder.write_plan(stage, {"label": label, "origin": origin, "arch": list(arch), **costs})
        _begin(folder, stage, config, display)
        display.say(f"{label}: architecture {_listed(arch)}, {_cost(**costs)}")
        _say_labels(net.space, arch, display)
        result = spos.retrain(
            net.extract(arch, weights="fresh", seed=config.seed).to(device_of(config, display)),
            data,
            config=config.retrain,
            seed=config.seed,
            arch=arch,
            run=folder.directory(stage),
            progress=display.progress,
        )
    display.say(
        f"{label}: test accuracy {result.test_accuracy:.2%} on {result.test_images} images, "
        f"{result.steps} steps in {duration(result.seconds)}"
    )


def _attach_latency(folder: RunFolder, net: spos.Supernet, display: Display, *, needed: bool) -> None:
    """Gives the supernet the run's table of latencies; where it is not needed, says why it cannot be used."""
    import spos
    from spos.latency_measurement import other_machine

    if not folder.latency.exists():
        if needed:
            raise RunDirectoryError(f"{folder.latency} does not exist: run `spos latency {folder.path}` first")
        return
    try:
        table = spos.load_latency(folder.latency).attach(net)
    except ValueError as error:
        if needed:
            raise ValueError(f"{folder.latency}: {error}") from None
        display.say(f"note: no latencies are shown: {error}")
        return
    if changed := other_machine(table, net):
        display.say(f"note: latencies were measured with {changed}")


def _say_measured(net: spos.Supernet, arch: Arch, display: Display) -> None:
    """Measures a network whole, beside what the table predicts of it."""
    import spos
    from spos.latency_measurement import time_networks

    table = spos.latency.measured(net)
    [milliseconds] = time_networks(net, [arch], batch=table.batch)
    display.say(f"  latency of {table.batch} images: {spos.latency(net, arch):.3g} ms predicted, {milliseconds:.3g} ms "
                "measured now")  # fmt: skip


def device_of(config: Config, display: Display) -> torch.device:
    """The device that the settings name, said where it is a GPU. ValueError where there is none."""
    import torch

    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise ValueError("device = 'cuda': torch sees no GPU here, expected 'auto' or 'cpu'")
    if not there or config.device == "cpu":
        return torch.device("cpu")
    from spos_kernels import backends

    display.say(f"device: {torch.cuda.get_device_name()}; CUDA kernels: {backends()['cuda'].reason}")
    return torch.device("cuda")


def prepare(config: Config, display: Display) -> tuple[spos.Data, spos.Supernet]:
    """The images and an untrained supernet for them. The split into training and validation never depends on a seed."""
    import torch

    import spos

    if config.threads:
        torch.set_num_threads(config.threads)
    data = spos.data.load(config.data)
    display.say(
        f"data: {config.data.source}, {len(data.train)} training and {len(data.validation)} validation images, "
        f"{data.num_classes} classes, {data.image_size} pixels"
    )
    net = spos.spaces.get(
        config.space.name,
        num_classes=data.num_classes,
        image_size=data.image_size,
        in_channels=data.in_channels,
        seed=config.seed,
        operators=config.space.operators or None,
        widths=config.space.widths or None,
        bits="any" if config.space.bits == ("any",) else config.space.bits or None,
        share_clip=config.space.share_clip,
        initial_clip=config.space.initial_clip or None,
    )
    return data, net


def _begin(folder: RunFolder, stage: str, config: Config, display: Display) -> None:
    """Keeps the settings, and says whether this starts something or goes on with it."""
    if not folder.started(stage):
        folder.write_settings(stage, config)
        display.say(f"starting {folder.directory(stage)}")
        return
    with folder.open(stage) as run:
        display.say(f"{folder.directory(stage)} exists: going on with it")
        now = versions()
        changed = [f"{k} {was}, now {now[k]}" for k, was in run.versions.items() if k in now and now[k] != was]
    if changed:
        display.say(f"note: it was started with {'; '.join(changed)}: results may differ in the last digits")


def require(folder: RunFolder, stage: str, command: str, options: str = "") -> None:
    """RunDirectoryError, saying what to run, unless a stage is finished."""
    what = f"`{command} {folder.path}{options}`"
    if not folder.started(stage):
        raise RunDirectoryError(f"{folder.path} has no {stage} yet: run {what} first")
    with folder.open(stage) as run:
        if run.read_json("result") is None:
            raise RunDirectoryError(f"{run.path} is not finished: run {what} to go on with it")


def _comparisons(net: spos.Supernet, chosen: Arch, count: int, seed: int) -> list[Arch]:
    """Different random architectures with FLOPs, or bit operations where bits are a choice, within 1% of the chosen."""
    import spos
    from spos.costs import sampler
    from spos.quantized import has_bits

    if not count:
        return []
    name, cost = ("bit operations", spos.bitops) if has_bits(net) else ("FLOPs", spos.flops)
    target = cost(net, chosen)
    around = sampler(net, [cost >= (1 - _TOLERANCE) * target, cost <= (1 + _TOLERANCE) * target])
    if around is not None and around.count <= count:  # the chosen one may be among them
        raise ValueError(
            f"random-archs = {count}: only {around.count:,} architectures have {name} within {_TOLERANCE:.0%} of "
            f"{target:,}"
        )
    draw = net.space.sample if around is None else around.sample
    rng = spos.generator(seed, "comparison")
    found: dict[Arch, None] = {}  # in the order of drawing: asking for more later starts with the same ones
    for _ in range(_COMPARISON_DRAWS):
        arch = draw(rng)
        if arch != chosen and abs(cost(net, arch) - target) <= _TOLERANCE * target:
            found[arch] = None
            if len(found) == count:
                break
    if len(found) < count:
        raise ValueError(
            f"random-archs = {count}: only {len(found)} of {_COMPARISON_DRAWS:,} random architectures have {name} "
            f"within {_TOLERANCE:.0%} of {target:,}"
        )
    return list(found)


def _uniform(space: SearchSpace, text: str) -> Arch:
    """The architecture of "uniform:w2a2", or of "uniform:" and kind=label pairs with commas between them."""
    options: dict[str, Any] = {}
    for part in text.removeprefix(UNIFORM).split(","):
        kind, equals, label = part.partition("=")
        options[kind.strip() if equals else "bits"] = _number(label.strip() if equals else part.strip())
    try:
        return space.uniform(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--arch {text!r}: {error}") from None


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _say_labels(space: SearchSpace, arch: Sequence[int], display: Display) -> None:
    """Names the options, kind by kind, where numbers alone would not show which kind they are of."""
    labels = space.labels(arch)
    if len(labels) > 1:
        for kind, options in labels.items():
            display.say(f"  {kind}: {' '.join(options)}")


def _listed(arch: Sequence[Any]) -> str:
    return ",".join(map(str, arch))


def _cost(flops: float, params: float, bitops: float | None = None, latency: float | None = None) -> str:
    bits = "" if bitops is None else f", {bitops:.4g} G bit operations"
    bits += "" if latency is None else f", {latency:.3g} ms predicted"
    return f"{flops / 1e6:.2f} MFLOPs, {params / 1e6:.3f} M parameters{bits}"


def _count(number: int) -> str:
    return f"{number:,}" if number < 10**6 else f"{number:.2e}"
