"""Pieces of the page's HTML."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from spos.report import charts

Row = Sequence[str]  # cells, already HTML
NONE = "&ndash;"


def section(title: str, body: str) -> str:
    """A heading and what follows it."""
    return f"<section><h2>{text(title)}</h2>{body}</section>"


def figure(content: str, caption: str) -> str:
    """A figure with its caption."""
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def table(head: Sequence[str], rows: Iterable[Row], total: Row | None = None) -> str:
    """A table; columns whose heading starts with "#" hold numbers."""
    styles = [' class="number"' if name.startswith("#") else "" for name in head]

    def line(cells: Sequence[str], tag: str, style: str = "") -> str:
        return f"<tr{style}>{''.join(f'<{tag}{s}>{c}</{tag}>' for s, c in zip(styles, cells, strict=True))}</tr>"

    body = "".join(line(row, "td") for row in rows) + (line(total, "td", ' class="total"') if total else "")
    heading = line([text(name.removeprefix("#")) for name in head], "th")
    return f'<div class="scroll"><table><thead>{heading}</thead><tbody>{body}</tbody></table></div>'


def percent(value: float, images: int) -> str:
    """A share as a percentage, with its standard error where the number of images is known."""
    error = 100 * charts.standard_error(value, images)
    return f"{100 * value:.2f}%" + (f" <small>± {error:.2f}</small>" if images else "")


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def sentence(text: str) -> str:
    """Text with its first letter as a capital."""
    return text[:1].upper() + text[1:]


def text(value: object) -> str:
    """Anything as escaped text."""
    return html.escape(str(value), quote=True)
