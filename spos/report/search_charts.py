"""Charts of what a search's candidates say: the front and its growth, how choices spread, what each one matters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from spos.report import analysis
from spos.report.analysis import Effect
from spos.report.charts import COLOURS, SEARCHED, TEXT, figure_of, legend, named, svg
from spos.report.collect import CostAxis, Record, Search

_ROW = 0.21  # inches
Curves = Sequence[tuple[str, list[float]]]


def hypervolumes(search: Search, cost: CostAxis) -> list[tuple[str, list[float]]]:
    """Return each way's share of the hypervolume over evaluations, in one box for all."""
    accuracy = [c["accuracy"] for c in search.whole]
    costs = [float(c[cost.key]) for c in search.whole]
    box = (min(accuracy), max(accuracy), min(costs), max(costs))
    most = search.most_images
    return [(name, analysis.hypervolume_curve(s.candidates, cost.key, box, most)) for name, s in search.ways]


def front_chart(search: Search, cost: CostAxis, members: Sequence[Record], curves: Curves) -> str:
    """The Pareto front as a staircase among all candidates, and the hypervolume over evaluations beside it."""
    figure, (left, right) = figure_of(2, 3.1)
    for name, searched in reversed(search.ways):
        x, y = [cost.of(c) for c in searched.candidates], [100 * c["accuracy"] for c in searched.candidates]
        left.plot(x, y, ".", ms=4, mew=0, alpha=0.35, color=COLOURS[SEARCHED[name]])
    x, y = [cost.of(c) for c in members], [100 * c["accuracy"] for c in members]
    left.step(x, y, where="post", lw=1.6, color=COLOURS["c2"])
    left.plot(x, y, "o", ms=4.5, mew=0, color=COLOURS["c2"], label="Pareto front")
    left.set_xlabel(cost.label if len(cost.label) < 40 else f"{cost.name}, {cost.unit}")
    left.set_ylabel("validation accuracy, %")
    legend(left, "lower right")
    for name, curve in curves:
        number = np.arange(1, len(curve) + 1)
        right.step(number, 100 * np.array(curve), where="post", lw=1.8, color=COLOURS[SEARCHED[name]], label=name)
    right.set_xlabel("candidates evaluated")
    right.set_ylabel("hypervolume, %")
    legend(right, "lower right")
    return svg(figure, named("front", search), f"The Pareto front of accuracy and {cost.name}, and its hypervolume")


def spread_chart(search: Search, shares: NDArray[np.float64], names: Sequence[str]) -> str:
    """A cell for each generation and decision, the darker the more options are in use."""
    generations, decisions = shares.shape
    figure, (axes,) = figure_of(1, 0.8 + _ROW * decisions)
    for row in range(decisions):
        for column in range(generations):
            cell = (column - 0.47, row - 0.44)
            alpha = float(0.05 + 0.9 * shares[column, row])
            axes.add_patch(Rectangle(cell, 0.94, 0.88, facecolor=COLOURS["c0"], edgecolor="none", alpha=alpha))
    axes.set_xlim(-0.6, generations - 0.4)
    axes.set_ylim(decisions - 0.4, -0.6)
    axes.set_yticks(range(decisions), names, **TEXT)
    axes.grid(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("generation")
    return svg(figure, named("spread", search), "Options in use of each decision over generations")


def effects_chart(
    search: Search, effects: Sequence[Sequence[Effect]], decisions: Sequence[tuple[str, Sequence[str]]]
) -> str:
    """A row for each decision, with every option at its effect, written with its label."""
    figure, (axes,) = figure_of(1, 0.8 + 1.7 * _ROW * len(effects))
    axes.axvline(0, lw=0.9, color=COLOURS["muted"], zorder=0)
    for row, (options, (_, labels)) in enumerate(zip(effects, decisions, strict=True)):
        for number, (effect, label) in enumerate(zip(options, labels, strict=True)):
            if not effect.count:
                continue
            at: dict[str, Any] = {"color": COLOURS[f"c{number % 4}"]}
            error = 100 * effect.error if effect.count > 1 else None
            axes.errorbar(100 * effect.mean, row, xerr=error, fmt="o", ms=4, lw=1, alpha=0.8, **at)
            place = (3, "bottom") if number % 2 else (-3, "top")  # neighbours may lie close together
            axes.annotate(
                label,
                (100 * effect.mean, row),
                (0, place[0]),
                textcoords="offset points",
                ha="center",
                va=place[1],
                fontsize=6.5,
                **at,
                **TEXT,
            )
    axes.set_yticks(range(len(effects)), [name for name, _ in decisions], **TEXT)
    axes.set_ylim(len(effects) - 0.4, -0.8)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("effect on validation accuracy, points; bars: ± one standard error")
    return svg(figure, named("effects", search), "Marginal effect of each option on the accuracy")
