"""Run directories of tests do not depend on what is installed."""

from __future__ import annotations

import pytest

from spos import run_directory


@pytest.fixture(autouse=True)
def _fixed_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory, "versions", lambda: {"torch": "0"})
