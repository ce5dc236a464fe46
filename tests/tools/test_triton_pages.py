"""docs/triton-kernels.md is what its script writes, and has every kernel."""

import importlib
from pathlib import Path

import pytest

TRITON = Path(__file__).parents[2] / "tools" / "triton"


def test_page_is_up_to_date_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TRITON))
    pages = importlib.import_module("pages")
    assert pages.PAGE.read_text() == pages.page(), "run python tools/triton/pages.py"
    works = [work for work in pages.works() if work.kernel != "lowbit.lowbit_kernel"]
    monkeypatch.setattr(pages, "works", lambda: works)
    with pytest.raises(SystemExit, match=r"has nothing of lowbit\.lowbit_kernel"):
        pages.page()
