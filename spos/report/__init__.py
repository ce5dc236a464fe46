"""The report of a run: one self-contained HTML page, whatever of the run there is."""

from __future__ import annotations

import os
from pathlib import Path

from spos import atomic_files
from spos.report.collect import collect
from spos.report.page import render
from spos.run_folder import RunFolder


def write_report(folder: RunFolder | str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Writes the page about `folder` to `out` (default report.html in it), atomically, and returns its path.

    Works on finished and unfinished runs, also while one goes on. RunDirectoryError if there is no run.
    """
    folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    path = Path(out) if out is not None else folder.path / "report.html"
    atomic_files.write_bytes(path, render(collect(folder)).encode(errors="replace"))
    return path
