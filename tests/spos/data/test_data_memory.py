from __future__ import annotations

import pytest

from spos.data import memory
from spos.data.memory import available_memory, require_memory


def test_available_memory_is_known_here():
    available = available_memory()
    assert available is not None and 2**20 < available < 2**50


def test_too_much_is_refused_with_both_sizes(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 3 * 10**9)
    require_memory(3 * 10**9, "this")
    with pytest.raises(ValueError, match=r"this needs 4\.50 GB of memory, but only 3\.00 GB is available"):
        require_memory(4_500_000_000, "this")


def test_unknown_memory_refuses_nothing(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    require_memory(2**60, "this")


def test_a_containers_limit_counts(monkeypatch):
    monkeypatch.setattr(memory, "_machine_available", lambda: 500)
    monkeypatch.setattr(memory, "_group_available", lambda: 200)
    assert available_memory() == 200
    monkeypatch.setattr(memory, "_group_available", lambda: None)
    assert available_memory() == 500
