"""The one way long-running functions tell their caller how far they are."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int, dict[str, float]], None]
"""`progress(stage, done, total, info)`: units of a named stage done and to do, and numbers worth showing, as a loss."""
