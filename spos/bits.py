"""Bit widths of a layer: those of its weights and those of the activations that go into it.

The pairs that a search draws from by default are those of Single Path One-Shot NAS (arXiv 1904.00420, section 4.3).
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

LARGEST = 8
_LABEL = re.compile(r"w([1-8])a([1-8])")


class Bits(NamedTuple):
    """Bits of weights and of activations, each 1 to 8. `label` writes them as "w2a4"."""

    w_bits: int
    a_bits: int

    @property
    def label(self) -> str:
        """The pair as text, which `read_bits` reads."""
        return f"w{self.w_bits}a{self.a_bits}"


SEARCHED = tuple(Bits(*pair) for pair in ((1, 2), (2, 2), (1, 4), (2, 4), (3, 4), (4, 4)))
EVERY = tuple(Bits(w, a) for w in range(1, LARGEST + 1) for a in range(1, LARGEST + 1))


def check_bits(name: str, bits: object) -> int:
    """Return a number of bits; TypeError or ValueError, naming the argument, where it is none from 1 to 8."""
    try:
        if isinstance(bits, bool):
            raise TypeError
        number = operator.index(bits)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} = {bits!r}: expected an integer from 1 to {LARGEST}") from None
    if not 1 <= number <= LARGEST:
        raise ValueError(f"{name} = {bits!r}: expected an integer from 1 to {LARGEST}")
    return number


def read_bits(pair: str | Sequence[int]) -> Bits:
    """Return the pair that a label such as "w2a4" names, or that two numbers (w_bits, a_bits) are."""
    if isinstance(pair, str):
        match = _LABEL.fullmatch(pair)
        if match is None:
            raise ValueError(f"bits = {pair!r}: expected a label such as 'w2a4', bits from 1 to {LARGEST}")
        return Bits(int(match[1]), int(match[2]))
    if not isinstance(pair, Sequence) or len(pair) != 2:
        raise TypeError(f"bits = {pair!r}: expected a pair (w_bits, a_bits), or a label such as 'w2a4'")
    return Bits(check_bits("w_bits", pair[0]), check_bits("a_bits", pair[1]))


def read_offered(pairs: str | Iterable[str | Sequence[int]]) -> tuple[Bits, ...]:
    """Return the pairs of a list, or all there are for "any". ValueError where it is empty or has one twice."""
    if isinstance(pairs, str):
        if pairs != "any":
            raise ValueError(f"bits = {pairs!r}: expected a list such as ['w2a4'], or 'any' for all pairs")
        return EVERY
    found = tuple(read_bits(pair) for pair in pairs)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"bits = {[pair.label for pair in found]}: expected different pairs, at least one")
    return found
