"""The page: what is known of a run, in the order a reader asks for it. Whatever comes from a file is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spos.report import charts
from spos.report.collect import BITOPS, Retrained, RunData, Searched, Training
from spos.report.drawing import draw_architecture
from spos.report.markup import NONE, Row, duration, figure, percent, section, table, text
from spos.report.search_sections import search_sections, validation_images
from spos.report.style import STYLE


def render(run: RunData) -> str:
    """The whole HTML document."""
    title = _title(run)
    sections = [
        _header(run, title),
        _architecture(run),
        *(part for search in run.searches for part in search_sections(run, search)),
        _retrained(run),
        _deployed(run),
        _losses(run),
        _costs(run),
        _settings(run),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{text(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _title(run: RunData) -> str:
    space = run.space["name"] if run.space else run.config.space.name if run.config else "search"
    source = run.config.data.source.rstrip("/").rpartition("/")[2] if run.config else ""
    return f"{space} on {source}" if source else str(space)


def _header(run: RunData, title: str) -> str:
    facts = [run.created.replace("T", " ").replace("+00:00", " UTC"), f"run {run.name}"]
    if run.config:
        facts.append(f"seed {run.config.seed}")
    numbers = "".join(f"<div><dt>{text(name)}</dt><dd>{value}</dd></div>" for name, value in _numbers(run))
    missing = _missing(run)
    note = f'<p class="missing">Not in this run yet: {text("; ".join(missing))}.</p>' if missing else ""
    line = f'<p class="muted">{text(" · ".join(facts))}</p>'
    return f'<h1>{text(title)}</h1>{line}<dl class="numbers">{numbers}</dl>{note}'


def _numbers(run: RunData) -> Iterator[tuple[str, str]]:
    found = run.found
    result = found.training.result if found else None
    best = run.best
    if found and result:
        yield "test accuracy, retrained", percent(result["test_accuracy"], result["test_images"])
    elif best:
        yield "best validation accuracy", percent(best["accuracy"], validation_images(run, run.config))
    elif run.supernet and run.supernet.records:
        yield "supernet training loss", text(f"{run.supernet.records[-1]['loss']:.3f}")
    costs = run.shown
    if costs and costs.get("flops") and costs.get("params"):
        yield "FLOPs", f"{costs['flops'] / 1e6:,.1f} <small>M</small>"
        yield "parameters", f"{costs['params'] / 1e6:,.2f} <small>M</small>"
        if costs.get("bitops") is not None:
            yield "bit operations", f"{costs['bitops']:.4g} <small>G</small>"
        if costs.get("latency") is not None:
            yield "predicted latency", f"{costs['latency']:.3g} <small>ms</small>"
    candidates = sum(len(s.candidates) for s in run.searches)
    if candidates:
        yield "candidates scored", f"{candidates:,}"
    yield "time of all stages", text(duration(_total_seconds(run)))


def _missing(run: RunData) -> list[str]:
    missing = []
    if not (run.supernet and run.supernet.result):
        missing.append("a finished supernet")
    if not any(s.evolution and s.evolution.finished for s in run.searches):
        missing.append("a finished evolution")
    if not any(s.random and s.random.finished for s in run.searches):
        missing.append("a finished random search to compare with")
    if not (run.found and run.found.training.result):
        missing.append("the architecture found, retrained and tested")
    if not any(r.origin == "random" and r.training.result for r in run.retrained):
        missing.append(f"retrained random architectures of the same {run.cost.name}")
    return missing


def _architecture(run: RunData) -> str:
    if run.shown is None:
        return ""
    arch = tuple(run.shown["arch"])
    what = "architecture found" if run.best else "retrained architecture"
    caption = f"The {what}: {', '.join(map(str, arch))}. A box for each decision, in order, coloured by its option"
    if run.space and any(block.get("widths") for block in run.space["blocks"]):
        caption += ", with the widths inside of a block below it"
    if run.space and run.space["blocks"]:
        caption += "; heights grow with the square root of output channels (ch), ↓ marks a stride"
    return section(f"The {what}", figure(draw_architecture(arch, run.space), text(caption + ".")))


def _retrained(run: RunData) -> str:
    if not run.retrained:
        return ""
    rows = [_retrained_row(run, one) for one in run.retrained]
    bits = ["#G bit operations"] if run.cost is BITOPS else []
    head = ["", "architecture", "#MFLOPs", *bits, "#M parameters", "#validation, inherited", "#test, retrained"]
    listed = table(head, rows)
    done = [r for r in run.retrained if r.training.result]
    chart = charts.retrained_chart(done) if len(done) > 1 else ""
    return section("Retrained from fresh weights", listed + (figure(chart, text(_comparison(run))) if chart else ""))


def _retrained_row(run: RunData, one: Retrained) -> Row:
    result = one.training.result
    known = {tuple(c["arch"]): c["accuracy"] for s in reversed(run.searches) for c in reversed(s.whole)}
    inherited = known.get(one.arch) if one.arch else None
    bits = [f"{one.bitops:.4g}" if one.bitops is not None else NONE] if run.cost is BITOPS else []
    return (
        text(one.label),
        "<br>".join(f"<code>{text(line)}</code>" for line in _arch_lines(run, one.arch or ())),
        f"{one.flops / 1e6:.2f}" if one.flops else NONE,
        *bits,
        f"{one.params / 1e6:.3f}" if one.params else NONE,
        f"{100 * inherited:.2f}%" if inherited is not None else NONE,
        percent(result["test_accuracy"], result["test_images"]) if result else "not finished",
    )


def _arch_lines(run: RunData, arch: Sequence[int]) -> list[str]:
    """The numbers of an architecture's options; where bits are among them, a line of labels for each kind."""
    decisions = run.space["decisions"] if run.space and len(run.space["decisions"]) == len(arch) else ()
    kinds = list(dict.fromkeys(d["kind"] for d in decisions))
    if "bits" not in kinds:
        return [" ".join(map(str, arch))]
    options = [(d["kind"], d["options"][index]) for d, index in zip(decisions, arch, strict=True)]
    return [f"{kind}: {' '.join(label for k, label in options if k == kind)}" for kind in kinds]


def _comparison(run: RunData) -> str:
    others = [r.training.result["test_accuracy"] for r in run.retrained if r.origin == "random" and r.training.result]
    found = run.found.training.result if run.found else None
    if not others or not found:
        return "Test accuracy of each, all trained alike."
    mean = sum(others) / len(others)
    difference = 100 * (found["test_accuracy"] - mean)
    return (
        f"The architecture found reaches {100 * found['test_accuracy']:.2f}% on {found['test_images']:,} test images; "
        f"{len(others)} random ones of the same {run.cost.name}, trained alike, average {100 * mean:.2f}%: "
        f"a difference of {difference:+.2f} points."
    )


def _deployed(run: RunData) -> str:
    found = [(one, one.deployed) for one in run.retrained if one.deployed]
    if not found:
        return ""
    rows = [
        (
            text(one.label),
            f"{facts['file_bytes']:,}",
            f"{facts['packed_bytes']:,}",
            f"{1000 * facts['seconds']:.3g} ms",
            f"{1000 * facts['float_seconds']:.3g} ms",
            f"{facts['differing'] / facts['codes']:.1e}",
            f"{100 * facts['agreement']:.2f}%",
        )
        for one, facts in found
    ]
    head = ["", "#file, bytes", "#packed weights", "#latency", "#float32 layers", "#codes that differ", "#same class"]
    settings = {(f["batch"], f["threads"], f["images"]) for _, f in found}
    said = "; ".join(f"{batch}, {threads}, {images:,}" for batch, threads, images in sorted(settings))
    caption = (
        "Networks of packed integers. Latency is the median for a batch, beside that of the same network as float32 "
        "layers; codes and classes are compared with the network in float64 on validation images. Batch, threads and "
        f"images compared: {said}."
    )
    return section("Deployed", figure(table(head, rows), text(caption)))


def _losses(run: RunData) -> str:
    trained = [t for t in (run.supernet, *(r.training for r in run.retrained)) if t and t.records]
    if not trained:
        return ""
    said = [f"{t.stage} ends at {t.records[-1]['loss']:.3f}" for t in trained[:4]]
    caption = f"Mean training loss between records, label smoothing included: {', '.join(said)}."
    return section("Training", figure(charts.loss_chart(run), text(caption)))


def _costs(run: RunData) -> str:
    rows: list[Row] = []
    if run.supernet:
        rows.append(_training_row("supernet", run.supernet))
    for search in run.searches:
        of = f", {search.label}" if search.label else ""
        rows += [_search_row(name + of, searched) for name, searched in search.ways if searched.best]
    rows += [_training_row(f"retraining, {one.label}", one.training) for one in run.retrained]
    total = ("all stages", "", text(duration(_total_seconds(run))), "", "")
    return section("Costs", table(("stage", "work", "#wall time", "#time for each", "outcome"), rows, total))


def _training_row(name: str, training: Training) -> Row:
    if not training.records:
        return text(name), "started", NONE, NONE, NONE
    last, result = training.records[-1], training.result
    work = f"{last['step']:,} steps, {last['epoch']:.1f} epochs"
    outcome = f"training loss {last['loss']:.3f}"
    if result and "test_accuracy" in result:
        outcome = f"test accuracy {100 * result['test_accuracy']:.2f}%"
    return (
        text(name),
        text(work + ("" if result else ", not finished")),
        text(duration(training.seconds)),
        text(f"{1000 * training.seconds / max(1, last['step']):.0f} ms/step"),
        text(outcome),
    )


def _search_row(name: str, searched: Searched) -> Row:
    best, count = searched.best or {}, len(searched.candidates)
    return (
        text(name),
        text(f"{count:,} candidates" + ("" if searched.finished else ", not finished")),
        text(duration(searched.seconds)),
        text(f"{searched.seconds / count:.2f} s/candidate"),
        text(f"best validation accuracy {100 * best['accuracy']:.2f}%"),
    )


def _settings(run: RunData) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in run.versions.items())
    parts = [f"<p>{text(versions)}</p>"]
    for stage, toml in run.settings.items():
        parts.append(f"<details><summary>{text(stage)}.toml</summary><pre>{text(toml)}</pre></details>")
    hashes = "\n".join(
        f"{stage} {name} {value}" for stage, parts_ in run.identity.items() for name, value in parts_.items()
    )
    parts.append(
        f"<details><summary>identity: hashes of settings, data, space</summary><pre>{text(hashes)}</pre></details>"
    )
    return section("Settings, versions, machine", "".join(parts))


def _total_seconds(run: RunData) -> float:
    trained = [t.seconds for t in (run.supernet, *(r.training for r in run.retrained)) if t]
    return sum(trained) + sum(way.seconds for s in run.searches for _, way in s.ways)
