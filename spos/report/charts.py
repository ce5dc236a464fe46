"""The charts of a report, drawn by matplotlib as SVG for one page.

Colours are written as CSS variables, so that the page's light and dark themes apply to charts too; text stays text.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from spos.report.collect import CostAxis, Retrained, RunData, Search, Training

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Stand-ins that matplotlib draws with, each replaced by the page's variable of that name.
COLOURS = {name: f"#0101{i:02x}" for i, name in enumerate(("ink", "muted", "grid", "paper", "c0", "c1", "c2", "c3"))}
_WIDTH = 8.6  # inches; the page scales a chart to its column
_FEW_POINTS = 400
TEXT: dict[str, Any] = {"parse_math": False}  # names come from files: a dollar sign is a dollar sign


SEARCHED = {"evolution": "c0", "random search": "c1"}


def search_chart(search: Search) -> str:
    """Accuracy of every candidate over evaluations, and the best so far: evolution, and random search beside it."""
    figure, (axes,) = figure_of(1, 3.5)
    for name, searched in reversed(search.ways):
        colour = SEARCHED[name]
        accuracy = 100 * np.array([c["accuracy"] for c in searched.candidates])
        number = np.arange(1, len(accuracy) + 1)
        axes.plot(number, accuracy, ".", ms=4.5, mew=0, alpha=0.5, color=COLOURS[colour])
        axes.step(
            number,
            np.maximum.accumulate(accuracy),
            where="post",
            lw=1.8,
            color=COLOURS[colour],
            label=f"{name}, best so far",
        )
    if search.evolution:
        generations = [c["generation"] for c in search.evolution.candidates]
        for start in np.flatnonzero(np.diff(generations)) + 1.5:
            axes.axvline(start, lw=0.6, color=COLOURS["grid"], zorder=0)
    axes.set_xlabel("candidates evaluated")
    axes.set_ylabel("validation accuracy, %")
    legend(axes, "lower right")
    return svg(figure, named("search", search), "Validation accuracy of candidates over the number evaluated")


def scatter_chart(search: Search, cost: CostAxis, budget: float | None) -> str:
    """Accuracy against cost of every candidate, with the architecture found marked and the budget as a line."""
    figure, (axes,) = figure_of(1, 3.5)
    for name, searched in reversed(search.ways):
        costs = [cost.of(c) for c in searched.candidates]
        accuracy = [100 * c["accuracy"] for c in searched.candidates]
        axes.plot(costs, accuracy, ".", ms=5, mew=0, alpha=0.55, color=COLOURS[SEARCHED[name]], label=name)
    best = search.best
    if best is not None:
        axes.plot(
            cost.of(best),
            100 * best["accuracy"],
            "o",
            ms=8,
            mfc="none",
            mew=1.8,
            color=COLOURS["ink"],
            label="architecture found",
        )
    if budget:
        axes.axvline(budget / cost.scale, lw=1, ls=(0, (4, 3)), color=COLOURS["muted"], label="budget")
    axes.set_xlabel(cost.label)
    axes.set_ylabel("validation accuracy, %")
    legend(axes, "lower right")
    return svg(figure, named("scatter", search), f"Validation accuracy against {cost.name} of every candidate")


def named(chart: str, search: Search) -> str:
    """Return the name of a search's chart, unlike that of other searches'."""
    return f"{chart}-{search.label}" if search.label else chart


def retrained_chart(retrained: Sequence[Retrained]) -> str:
    """Test accuracy of every finished retraining, with its standard error."""
    done = [(r, r.training.result) for r in retrained if r.training.result]
    figure, (axes,) = figure_of(1, 0.75 + 0.3 * len(done))
    for row, (one, result) in enumerate(reversed(done)):
        accuracy, error = result["test_accuracy"], standard_error(result["test_accuracy"], result["test_images"])
        colour = COLOURS["c0" if one.origin == "search" else "c1" if one.origin == "random" else "c2"]
        axes.errorbar(100 * accuracy, row, xerr=100 * error, fmt="o", ms=6, lw=1.4, capsize=3, color=colour)
    axes.set_yticks(range(len(done)), [one.label for one, _ in reversed(done)], **TEXT)
    axes.set_ylim(-0.6, len(done) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("test accuracy after retraining, %; bars: ± one standard error of the test sample")
    return svg(figure, "retrained", "Test accuracy of the retrained architectures")


def loss_chart(run: RunData) -> str:
    """Training loss over epochs: the supernet's, and that of each retrained architecture."""
    supernet, children = run.supernet, [r for r in run.retrained if r.training.records]
    panels = [bool(supernet and supernet.records), bool(children)]
    figure, axes = figure_of(sum(panels), 3.1)
    if supernet and panels[0]:
        epoch, loss = _curve(supernet)
        axes[0].plot(epoch, loss, lw=1.4, color=COLOURS["c0"])
        axes[0].set_title("supernet (random paths)", loc="left", fontsize=9.5, color=COLOURS["ink"])
    if children:
        origins = {"search": "c0", "random": "c1"}
        for one in reversed(children):
            epoch, loss = _curve(one.training)
            colour = COLOURS[origins.get(one.origin, "c2")]
            first = one.origin != "random" or one is next(r for r in children if r.origin == "random")
            name = f"random of the same {run.cost.name}" if one.origin == "random" else one.label
            axes[-1].plot(
                epoch,
                loss,
                lw=1.4,
                alpha=0.75 if one.origin == "random" else 1,
                color=colour,
                label=name if first else None,
            )
        axes[-1].set_title("retraining", loc="left", fontsize=9.5, color=COLOURS["ink"])
        legend(axes[-1], "upper right")
    for ax in axes:
        ax.set_xlabel("epoch")
    axes[0].set_ylabel("training loss, nats")
    return svg(figure, "loss", "Training loss over epochs")


def standard_error(accuracy: float, images: int) -> float:
    """Of an accuracy measured on `images` images drawn independently."""
    return float(np.sqrt(accuracy * (1 - accuracy) / images)) if images else 0.0


def _curve(training: Training) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Epochs and losses, averaged over neighbours where there are more than a chart can show."""
    values = np.array([[r["epoch"], r["loss"]] for r in training.records], dtype=float)
    groups = np.array_split(values, min(len(values), _FEW_POINTS))
    means = np.array([group.mean(0) for group in groups])
    return means[:, 0], means[:, 1]


def figure_of(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    """Return an empty figure of panels beside each other, `height` inches high, in the page's style."""
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = [figure.add_subplot(1, panels, i + 1) for i in range(panels)]
    for ax in axes:
        ax.set_facecolor("none")
        ax.grid(True, lw=0.6, color=COLOURS["grid"])
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(COLOURS["muted"])
        ax.tick_params(colors=COLOURS["muted"], labelcolor=COLOURS["ink"], labelsize=8.5, length=3)
        for text in (ax.xaxis.label, ax.yaxis.label):
            text.set(color=COLOURS["ink"], fontsize=9)
    figure.patch.set_visible(False)
    return figure, axes


def legend(axes: Axes, place: Literal["upper right", "lower right"]) -> None:
    """Show the labels of what was drawn, if any."""
    if axes.get_legend_handles_labels()[0]:
        legend = axes.legend(
            markerscale=1.25,
            loc=place,
            fontsize=8.5,
            frameon=True,
            framealpha=0.8,
            edgecolor="none",
            facecolor=COLOURS["paper"],
        )
        for text in legend.get_texts():
            text.set(color=COLOURS["ink"], **TEXT)


def svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an <svg> element for a page: scalable, described, its ids different from other charts'."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]*)"', text)
    head = f'<svg class="chart" role="img" aria-label="{html.escape(description)}" viewBox="{view[1] if view else ""}">'
    text = head + text[text.index(">") + 1 :]
    text = re.sub(r'((?: id="|href="#|url\(#))', rf"\g<1>{name}-", text).replace("xlink:href", "href")
    for variable, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{variable})")
    return text
