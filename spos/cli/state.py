"""What `spos info` says: the installation, or how far a run is."""

from __future__ import annotations

from collections.abc import Iterator

from spos.cli.display import duration
from spos.ranking import ranking_key
from spos.run_directory import RunDirectory, RunDirectoryError
from spos.run_folder import SEARCH, SUPERNET, RunFolder


def installation_lines() -> Iterator[str]:
    """Versions, instruction set, backends and search spaces."""
    import spos
    import spos_kernels
    from spos.run_directory import versions

    now = versions()
    yield f"spos {now['spos']}, torch {now['torch']}, Python {now['python']}"
    yield f"processor: {now['processor']}; {now['isa']} kernels, {now['threads']} threads"
    yield "backends:"
    for name, status in spos_kernels.backends().items():
        yield f"  {name}: {'' if status.available else 'not available: '}{status.reason}"
    yield "search spaces:"
    for name in spos.spaces.names():
        space = spos.spaces.get(name, num_classes=10, image_size=32).space
        yield f"  {name}: {len(space)} decisions, {space.size():.2e} architectures"


def run_lines(folder: RunFolder) -> Iterator[str]:
    """Each stage of a run: how far it is, and the best so far."""
    searches = folder.search_stages() or [SEARCH]
    stages = [SUPERNET, *searches, *folder.retrain_stages()]
    if not any(folder.started(stage) for stage in stages):
        raise RunDirectoryError(f"{folder.path} holds no run: expected a folder that `spos train` or `spos demo` made")
    space = folder.space()
    if space:
        yield f"space: {space['name']}, {len(space['decisions'])} decisions"
    for stage in stages:
        if folder.started(stage):
            with folder.open(stage) as run:
                yield from _search_lines(run, stage) if stage in searches else _training_lines(run, stage)
        else:
            yield f"{stage}: not started"


def _training_lines(run: RunDirectory, stage: str) -> Iterator[str]:
    records = run.records("train")
    result = run.read_json("result")
    if not records:
        yield f"{stage}: started, no step recorded yet"
        return
    last = records[-1]
    text = (
        f"{stage}: step {last['step']}, epoch {last['epoch']:.1f}, loss {last['loss']:.4f}, {duration(last['seconds'])}"
    )
    if result is None:
        yield f"{text}; not finished"
    elif "test_accuracy" in result:
        yield f"{text}; finished, test accuracy {result['test_accuracy']:.2%}"
    else:
        yield f"{text}; finished"


def _search_lines(run: RunDirectory, stage: str) -> Iterator[str]:
    of = "" if stage == SEARCH else f"{stage}, "
    for stream, name, result in (("evolution", "evolution", "result"), ("random", "random search", "result-random")):
        records = run.records(stream)
        if not records:
            yield f"{of}{name}: no candidate scored yet"
            continue
        best = min(records, key=ranking_key)
        end = "finished" if run.read_json(result) else "not finished"
        bits = "" if best.get("bitops") is None else f", {best['bitops']:.4g} G bit operations"
        time = "" if best.get("latency") is None else f", {best['latency']:.3g} ms predicted"
        yield (
            f"{of}{name}: {len(records)} candidates, {end}; best {','.join(map(str, best['arch']))}, "
            f"validation accuracy {best['accuracy']:.2%}, {best['flops'] / 1e6:.2f} MFLOPs{bits}{time}"
        )
