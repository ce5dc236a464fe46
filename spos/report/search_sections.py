"""The parts of the page about one search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from spos.config import Config
from spos.report import analysis, charts, search_charts
from spos.report.collect import CostAxis, RunData, Search
from spos.report.markup import Row, figure, section, sentence, table, text

_METHODS = {"nsga2": "NSGA-II", "aging": "Aging evolution"}
_LONGEST_FRONT = 24  # rows of the table


def search_sections(run: RunData, search: Search) -> Iterator[str]:
    """Yield the sections of a search, each "" where there is nothing to say."""
    if not search.candidates:
        return
    cost = run.axis(search)
    yield _progress(run, search)
    yield _scatter(search, cost)
    yield _front(run, search, cost)
    sizes = _sizes(run, search)
    yield _spread(run, search, sizes)
    yield _effects(run, search, sizes)


def _progress(run: RunData, search: Search) -> str:
    said = [
        f"{name} scored {len(s.candidates):,} candidates, the best at {100 * s.best['accuracy']:.2f}%"
        for name, s in search.ways
        if s.best
    ]
    method = _METHODS.get(search.config.search.method, "") if search.config else ""
    if method and search.evolution:
        said[0] = said[0].replace("evolution", method, 1)
    caption = f"{'; '.join(said)}. Dots are candidates, lines the best so far"
    caption += ", thin vertical lines separate generations." if search.evolution else "."
    reused = sum(bool(c.get("reused")) for c in search.candidates)
    if reused:
        caption += f" Scores of {reused:,} were taken over from other searches of this supernet."
    dropped = len(search.candidates) - len(search.whole)
    if dropped:
        caption += f" {dropped:,} were dropped before they had seen all images, as they could not be among the best."
    images = validation_images(run, search.config)
    best = search.best
    if images and best:
        error = 100 * charts.standard_error(best["accuracy"], images)
        caption += f" One standard error of an accuracy at {images:,} validation images is {error:.2f} points."
    title = _titled("Evolution and random search", search)
    return section(title, figure(charts.search_chart(search), text(sentence(caption))))


def _scatter(search: Search, cost: CostAxis) -> str:
    best = search.best
    if best is None:
        return ""
    budget = getattr(search.config.search, f"max_{cost.key}") if search.config else 0
    costs = [cost.of(c) for c in search.candidates]
    mark = f"{cost.of(best):.4g} {cost.unit} and {100 * best['accuracy']:.2f}%"
    caption = (
        f"All {len(costs):,} candidates, scored with the supernet's weights; they span {min(costs):.3g} to "
        f"{max(costs):.3g} {cost.unit}. The one found has {mark}."
    )
    if search.constraints:
        caption += f" Constraints: {'; '.join(search.constraints)}."
    title = _titled("Accuracy and cost of candidates", search)
    return section(title, figure(charts.scatter_chart(search, cost, budget), text(caption)))


def _front(run: RunData, search: Search, cost: CostAxis) -> str:
    """The Pareto front of all candidates, and the hypervolume over evaluations of each way of searching."""
    members = analysis.pareto(search.whole, cost.key)
    curves = search_charts.hypervolumes(search, cost)
    ends = " and ".join(f"{100 * curve[-1]:.1f}% by {name}" for name, curve in curves)
    caption = (
        f"Left: the {len(members)} candidates, of either way of searching, that none beats in accuracy or {cost.name} "
        f"and matches in both. Right: the hypervolume of each one's front over evaluations, as a share of the "
        f"rectangle from the worst to the best of all candidates; in the end {ends}."
    )
    shown = members[:: -(-len(members) // _LONGEST_FRONT)]
    rows: list[Row] = [
        (f"{100 * c['accuracy']:.2f}%", f"{cost.of(c):.4g}", f"<code>{text(' '.join(map(str, c['arch'])))}</code>")
        for c in shown
    ]
    head = (f"#accuracy{'' if len(shown) == len(members) else f', {len(shown)} of {len(members)}'}", f"#{cost.unit}")
    listed = f"<details><summary>its architectures</summary>{table((*head, 'architecture'), rows)}</details>"
    chart = search_charts.front_chart(search, cost, members, curves)
    return section(_titled("Pareto front", search), figure(chart, text(caption)) + listed)


def _spread(run: RunData, search: Search, sizes: Sequence[int]) -> str:
    evolved = search.evolution.candidates if search.evolution else ()
    if len({c["generation"] for c in evolved}) < 2:
        return ""
    shares = analysis.spread(evolved, sizes)
    names = [name for name, _ in _decisions(run, sizes)]
    narrow = sorted(range(len(sizes)), key=lambda i: shares[-1, i] if sizes[i] > 1 else 2.0)[:3]
    caption = (
        "How many of a decision's options each generation uses: dark is all of them alike often, white is one for all. "
        f"Of the last generation, most agreed are {', '.join(names[i] for i in narrow)}; its mean is "
        f"{100 * shares[-1].mean():.0f}% of the range, that of the first {100 * shares[0].mean():.0f}%."
    )
    chart = search_charts.spread_chart(search, shares, names)
    return section(_titled("How choices spread over generations", search), figure(chart, text(caption)))


def _effects(run: RunData, search: Search, sizes: Sequence[int]) -> str:
    found = analysis.effects(search.candidates, sizes)
    count = sum(e.count for e in found[0]) if found else 0
    if count < 2:
        return ""
    decisions = _decisions(run, sizes)
    means = [[e.mean for e in row if e.count] for row in found]
    order = sorted(range(len(found)), key=lambda i: min(means[i]) - max(means[i]))
    most = ", ".join(f"{decisions[i][0]} ({100 * (max(means[i]) - min(means[i])):.2f} points)" for i in order[:3])
    errors = [e.error for row in found for e in row if e.count > 1]
    error = f", with a standard error of {100 * sum(errors) / len(errors):.2f} points on average" if errors else ""
    caption = (
        f"Mean accuracy of the candidates that take an option, less that of all, over the {count:,} architectures that "
        f"were drawn at random{error}. Most between best and worst option: {most}."
    )
    chart = search_charts.effects_chart(search, found, decisions)
    return section(_titled("What each choice matters", search), figure(chart, text(caption)))


def _titled(title: str, search: Search) -> str:
    return title + (f": {search.label}" if search.label else "")


def _sizes(run: RunData, search: Search) -> list[int]:
    """How many options of each decision are on offer; without a description of the space, as many as occur."""
    archs = [c["arch"] for c in search.candidates]
    used = [max(column) + 1 for column in zip(*archs, strict=True)]
    known: Sequence[Any] = run.space["decisions"] if run.space else ()
    if len(known) != len(used):
        return used
    offered = [int(d.get("offered", len(d["options"]))) for d in known]
    return [max(a, b) for a, b in zip(used, offered, strict=True)]


def _decisions(run: RunData, sizes: Sequence[int]) -> list[tuple[str, list[str]]]:
    """Names of decisions and of their options, numbers where the space is not described."""
    known: Sequence[Any] = run.space["decisions"] if run.space else ()
    if len(known) != len(sizes):
        return [(f"decision {i}", [str(o) for o in range(n)]) for i, n in enumerate(sizes)]
    return [(str(d["name"]), [str(o) for o in d["options"][:n]]) for d, n in zip(known, sizes, strict=True)]


def validation_images(run: RunData, config: Config | None) -> int:
    """Images that scored each candidate, 0 if not known."""
    held_out = int(run.space["data"]["validation"]) if run.space and "data" in run.space else 0
    asked = config.search.validation_images if config else 0
    return min(asked, held_out) if asked else held_out
