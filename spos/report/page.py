"""The page: what is known of a run, in the order a reader asks for it. Whatever comes from a file is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sequence

from spos.config import Config
from spos.report import charts
from spos.report.collect import BITOPS, Retrained, RunData, Search, Searched, Training
from spos.report.drawing import draw_architecture
from spos.report.style import STYLE

Row = Sequence[str]  # cells, already HTML
_NONE = "&ndash;"


def render(run: RunData) -> str:
    """The whole HTML document."""
    title = _title(run)
    sections = [
        _header(run, title),
        _architecture(run),
        *(part for search in run.searches for part in (_search(run, search), _scatter(run, search))),
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
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n<body>\n"
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
    numbers = "".join(f"<div><dt>{_text(name)}</dt><dd>{value}</dd></div>" for name, value in _numbers(run))
    missing = _missing(run)
    note = f'<p class="missing">Not in this run yet: {_text("; ".join(missing))}.</p>' if missing else ""
    line = f'<p class="muted">{_text(" · ".join(facts))}</p>'
    return f'<h1>{_text(title)}</h1>{line}<dl class="numbers">{numbers}</dl>{note}'


def _numbers(run: RunData) -> Iterator[tuple[str, str]]:
    found = run.found
    result = found.training.result if found else None
    best = run.best
    if found and result:
        yield "test accuracy, retrained", _percent(result["test_accuracy"], result["test_images"])
    elif best:
        yield "best validation accuracy", _percent(best["accuracy"], _validation_images(run, run.config))
    elif run.supernet and run.supernet.records:
        yield "supernet training loss", _text(f"{run.supernet.records[-1]['loss']:.3f}")
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
    yield "time of all stages", _text(_duration(_total_seconds(run)))


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
    return _section(f"The {what}", _figure(draw_architecture(arch, run.space), _text(caption + ".")))


def _search(run: RunData, search: Search) -> str:
    if not search.ways:
        return ""
    said = [
        f"{name} scored {len(s.candidates):,} candidates, the best at {100 * s.best['accuracy']:.2f}%"
        for name, s in search.ways
        if s.best
    ]
    caption = f"{'; '.join(said)}. Dots are candidates, lines the best so far"
    caption += ", thin vertical lines separate generations." if search.evolution else "."
    images = _validation_images(run, search.config)
    best = search.best
    if images and best:
        error = 100 * charts.standard_error(best["accuracy"], images)
        caption += f" One standard error of an accuracy at {images:,} validation images is {error:.2f} points."
    title = "Evolution and random search" + (f": {search.label}" if search.label else "")
    return _section(title, _figure(charts.search_chart(search), _text(_sentence(caption))))


def _scatter(run: RunData, search: Search) -> str:
    best = search.best
    if best is None:
        return ""
    cost = run.axis(search)
    budget = getattr(search.config.search, f"max_{cost.key}") if search.config else 0
    costs = [cost.of(c) for c in search.candidates]
    mark = f"{cost.of(best):.4g} {cost.unit} and {100 * best['accuracy']:.2f}%"
    caption = (
        f"All {len(costs):,} candidates, scored with the supernet's weights; they span {min(costs):.3g} to "
        f"{max(costs):.3g} {cost.unit}. The one found has {mark}."
    )
    if search.constraints:
        caption += f" Constraints: {'; '.join(search.constraints)}."
    title = "Accuracy and cost of candidates" + (f": {search.label}" if search.label else "")
    return _section(title, _figure(charts.scatter_chart(search, cost, budget), _text(caption)))


def _retrained(run: RunData) -> str:
    if not run.retrained:
        return ""
    rows = [_retrained_row(run, one) for one in run.retrained]
    bits = ["#G bit operations"] if run.cost is BITOPS else []
    head = ["", "architecture", "#MFLOPs", *bits, "#M parameters", "#validation, inherited", "#test, retrained"]
    table = _table(head, rows)
    done = [r for r in run.retrained if r.training.result]
    chart = charts.retrained_chart(done) if len(done) > 1 else ""
    return _section("Retrained from fresh weights", table + (_figure(chart, _text(_comparison(run))) if chart else ""))


def _retrained_row(run: RunData, one: Retrained) -> Row:
    result = one.training.result
    known = {tuple(c["arch"]): c["accuracy"] for s in reversed(run.searches) for c in reversed(s.candidates)}
    inherited = known.get(one.arch) if one.arch else None
    bits = [f"{one.bitops:.4g}" if one.bitops is not None else _NONE] if run.cost is BITOPS else []
    return (
        _text(one.label),
        "<br>".join(f"<code>{_text(line)}</code>" for line in _arch_lines(run, one.arch or ())),
        f"{one.flops / 1e6:.2f}" if one.flops else _NONE,
        *bits,
        f"{one.params / 1e6:.3f}" if one.params else _NONE,
        f"{100 * inherited:.2f}%" if inherited is not None else _NONE,
        _percent(result["test_accuracy"], result["test_images"]) if result else "not finished",
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
            _text(one.label),
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
    return _section("Deployed", _figure(_table(head, rows), _text(caption)))


def _losses(run: RunData) -> str:
    trained = [t for t in (run.supernet, *(r.training for r in run.retrained)) if t and t.records]
    if not trained:
        return ""
    said = [f"{t.stage} ends at {t.records[-1]['loss']:.3f}" for t in trained[:4]]
    caption = f"Mean training loss between records, label smoothing included: {', '.join(said)}."
    return _section("Training", _figure(charts.loss_chart(run), _text(caption)))


def _costs(run: RunData) -> str:
    rows: list[Row] = []
    if run.supernet:
        rows.append(_training_row("supernet", run.supernet))
    for search in run.searches:
        of = f", {search.label}" if search.label else ""
        rows += [_search_row(name + of, searched) for name, searched in search.ways if searched.best]
    rows += [_training_row(f"retraining, {one.label}", one.training) for one in run.retrained]
    total = ("all stages", "", _text(_duration(_total_seconds(run))), "", "")
    return _section("Costs", _table(("stage", "work", "#wall time", "#time for each", "outcome"), rows, total))


def _training_row(name: str, training: Training) -> Row:
    if not training.records:
        return _text(name), "started", _NONE, _NONE, _NONE
    last, result = training.records[-1], training.result
    work = f"{last['step']:,} steps, {last['epoch']:.1f} epochs"
    outcome = f"training loss {last['loss']:.3f}"
    if result and "test_accuracy" in result:
        outcome = f"test accuracy {100 * result['test_accuracy']:.2f}%"
    return (
        _text(name),
        _text(work + ("" if result else ", not finished")),
        _text(_duration(training.seconds)),
        _text(f"{1000 * training.seconds / max(1, last['step']):.0f} ms/step"),
        _text(outcome),
    )


def _search_row(name: str, searched: Searched) -> Row:
    best, count = searched.best or {}, len(searched.candidates)
    return (
        _text(name),
        _text(f"{count:,} candidates" + ("" if searched.finished else ", not finished")),
        _text(_duration(searched.seconds)),
        _text(f"{searched.seconds / count:.2f} s/candidate"),
        _text(f"best validation accuracy {100 * best['accuracy']:.2f}%"),
    )


def _settings(run: RunData) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in run.versions.items())
    parts = [f"<p>{_text(versions)}</p>"]
    for stage, text in run.settings.items():
        parts.append(f"<details><summary>{_text(stage)}.toml</summary><pre>{_text(text)}</pre></details>")
    hashes = "\n".join(
        f"{stage} {name} {value}" for stage, parts_ in run.identity.items() for name, value in parts_.items()
    )
    parts.append(
        f"<details><summary>identity: hashes of settings, data, space</summary><pre>{_text(hashes)}</pre></details>"
    )
    return _section("Settings, versions, machine", "".join(parts))


def _validation_images(run: RunData, config: Config | None) -> int:
    """Images that scored each candidate, 0 if not known."""
    held_out = int(run.space["data"]["validation"]) if run.space and "data" in run.space else 0
    asked = config.search.validation_images if config else 0
    return min(asked, held_out) if asked else held_out


def _total_seconds(run: RunData) -> float:
    trained = [t.seconds for t in (run.supernet, *(r.training for r in run.retrained)) if t]
    return sum(trained) + sum(way.seconds for s in run.searches for _, way in s.ways)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{body}</section>"


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def _table(head: Sequence[str], rows: Iterable[Row], total: Row | None = None) -> str:
    """A table; columns whose heading starts with "#" hold numbers."""
    styles = [' class="number"' if name.startswith("#") else "" for name in head]

    def line(cells: Sequence[str], tag: str, style: str = "") -> str:
        return f"<tr{style}>{''.join(f'<{tag}{s}>{c}</{tag}>' for s, c in zip(styles, cells, strict=True))}</tr>"

    body = "".join(line(row, "td") for row in rows) + (line(total, "td", ' class="total"') if total else "")
    heading = line([_text(name.removeprefix("#")) for name in head], "th")
    return f'<div class="scroll"><table><thead>{heading}</thead><tbody>{body}</tbody></table></div>'


def _percent(value: float, images: int) -> str:
    error = 100 * charts.standard_error(value, images)
    return f"{100 * value:.2f}%" + (f" <small>± {error:.2f}</small>" if images else "")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
