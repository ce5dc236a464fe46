"""A drawing of an architecture: its blocks in order, a colour for each option, widths as channels, strides as steps."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_COLUMN, _GAP, _ROW = 30, 6, 150  # in the drawing's own units; the page scales it to its column
_PER_ROW = 24
_TALLEST = 96
_LINE = 13
COLOURS = 8

_Size = tuple[int, ...] | None


@dataclass(frozen=True)
class _Box:
    """One block: its decision and option, and, where known, [channels, height, width] before and after it.

    `widths` are the decisions and options of the widths inside of it.
    """

    decision: str
    option: str
    index: int
    before: _Size
    after: _Size
    widths: tuple[tuple[str, str], ...]

    @property
    def shrinks(self) -> bool:
        return self.before is not None and self.after is not None and self.after[1:] != self.before[1:]

    @property
    def title(self) -> str:
        return "; ".join(f"{decision}: {option}" for decision, option in ((self.decision, self.option), *self.widths))


def draw_architecture(arch: Sequence[int], space: Mapping[str, Any] | None) -> str:
    """The <svg> of an architecture with its legend; without a description of the space, its bare option numbers."""
    boxes = _boxes(arch, space)
    largest = max((box.after[0] for box in boxes if box.after), default=0)
    rows = [boxes[i : i + _PER_ROW] for i in range(0, len(boxes), _PER_ROW)]
    width = max(len(row) for row in rows) * (_COLUMN + _GAP) + 2 * _GAP
    parts = [
        _draw_box(box, _GAP + column * (_COLUMN + _GAP), row * _ROW, largest, first=row + column == 0)
        for row, line in enumerate(rows)
        for column, box in enumerate(line)
    ]
    text = html.escape("Architecture: " + ", ".join(box.title.replace(":", "") for box in boxes), quote=True)
    drawing = (
        f'<svg class="architecture" role="img" aria-label="{text}" viewBox="0 0 {width} {_ROW * len(rows)}" '
        f'style="max-width: {width * 1.4:.0f}px">{"".join(parts)}</svg>'
    )
    return drawing + _legend(boxes)


def _boxes(arch: Sequence[int], space: Mapping[str, Any] | None) -> list[_Box]:
    decisions = space["decisions"] if space and len(space["decisions"]) == len(arch) else None
    labels = [d["options"] for d in decisions] if decisions else [[str(i) for i in range(max(arch) + 1)]] * len(arch)
    names = [str(d["name"]) for d in decisions] if decisions else [str(i) for i in range(len(arch))]
    places = space["blocks"] if space and decisions else []
    chosen = [(name, str(options[index])) for name, options, index in zip(names, labels, arch, strict=True)]

    def box(position: int, before: _Size, after: _Size, widths: Sequence[int] = ()) -> _Box:
        decision, option = chosen[position]
        return _Box(decision, option, arch[position], before, after, tuple(chosen[i] for i in widths))

    boxes = [box(b["decision"], tuple(b["input"]), tuple(b["output"]), b.get("widths", ())) for b in places]
    drawn = {i for b in places for i in (b["decision"], *b.get("widths", ()))}
    # decisions that are no image-to-image block (an activation function, say) come after those that are
    return boxes + [box(i, None, None) for i in range(len(arch)) if i not in drawn]


def _draw_box(box: _Box, x: float, y: float, largest: int, *, first: bool) -> str:
    height = _TALLEST * math.sqrt(box.after[0] / largest) if box.after and largest else _TALLEST / 3
    middle = y + 14 + _TALLEST / 2
    title = box.title
    if box.before and box.after:
        title += f", {_shape(box.before)} to {_shape(box.after)}"
    parts = [
        f"<g><title>{html.escape(title)}</title>",
        f'<rect x="{x}" y="{middle - height / 2:.1f}" width="{_COLUMN}" height="{height:.1f}" rx="3" '
        f'class="k{box.index % COLOURS}"/>',
    ]
    lines = [_short(option) for _, option in ((box.decision, box.option), *box.widths)]
    for number, line in enumerate(lines):
        y_line = middle + 4 + _LINE * (number - (len(lines) - 1) / 2)
        parts.append(f'<text x="{x + _COLUMN / 2}" y="{y_line:.1f}" class="option">{html.escape(line)}</text>')
    if box.after and (first or box.shrinks or (box.before and box.before[0] != box.after[0])):
        bottom = y + 14 + _TALLEST
        parts.append(f'<text x="{x}" y="{bottom + 16}" class="note">{box.after[0]} ch</text>')
        parts.append(f'<text x="{x}" y="{bottom + 28}" class="note">{box.after[1]}&times;{box.after[2]}</text>')
    if box.shrinks and box.before and box.after:
        factor = round(box.before[1] / box.after[1]) if box.after[1] else 0
        parts.append(f'<text x="{x + _COLUMN / 2}" y="{middle - height / 2 - 5:.1f}" class="stride">↓{factor}</text>')
    return "".join(parts) + "</g>"


def _legend(boxes: Sequence[_Box]) -> str:
    counts: dict[tuple[int, str], int] = {}
    for box in boxes:
        counts[box.index, box.option] = counts.get((box.index, box.option), 0) + 1
    items = [
        f'<li><span class="swatch k{index % COLOURS}"></span>{html.escape(option)} '
        f'<span class="muted">&times; {n}</span></li>'
        for (index, option), n in sorted(counts.items())
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _shape(shape: Sequence[int]) -> str:
    return f"{shape[0]} channels of {' by '.join(map(str, shape[1:]))}"


def _short(option: str) -> str:
    """The part of a label that fits into a box: what follows its last underscore, at most four letters."""
    return (option.rpartition("_")[2] or option)[:4]
