"""Argument checks shared by the data package; every error names the argument, its value and what is accepted."""

from __future__ import annotations

import operator


def checked_int(name: str, value: object, low: int, high: int | None = None) -> int:
    """`value` as an int, if it is one (numpy's count, bool does not) of at least `low` and at most `high`.

    Raises TypeError for what is no integer, ValueError for one out of range.
    """
    accepted = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} = {value!r}: expected {accepted}") from None
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name} = {number}: expected {accepted}")
    return number


def checked_seed(seed: object) -> int:
    """`seed` as an int in [0, 2**63)."""
    return checked_int("seed", seed, 0, 2**63 - 1)
