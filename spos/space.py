"""The search space: ordered named decisions, and architectures that take one option of each.

An architecture is a tuple of option indices, one for each decision (arXiv 1904.00420, section 3.2: one choice per
choice block). It is hashable and JSON-able, and a plain tuple or list of integers is accepted wherever one is expected.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spos.bits import Bits, check_bits


@dataclass(frozen=True)
class Decision:
    """One choice to make: a unique `name`, a `kind` (such as "operator") and the labels of its `options`.

    A search draws from the first `offered` options, None for all: an architecture may take the others too, such as the
    uniform bit widths that a found network is compared with. `default` is the label that `SearchSpace.uniform` takes
    where it is told nothing about the kind.
    """

    name: str
    kind: str
    options: tuple[str, ...]
    offered: int | None = None
    default: str | None = None

    def __post_init__(self) -> None:
        if not self.options:
            raise ValueError(f"decision {self.name!r} has no options: expected at least one")
        if len(set(self.options)) != len(self.options):
            raise ValueError(f"decision {self.name!r} has options {self.options}: expected different labels")
        if self.offered is not None and not 1 <= self.offered <= len(self.options):
            raise ValueError(f"offered = {self.offered!r} in {self.name!r}: expected 1 to {len(self.options)}, or None")
        if self.default is not None and self.default not in self.options:
            raise ValueError(f"default = {self.default!r} in {self.name!r}: expected one of {self.listed()}")

    @property
    def drawn(self) -> int:
        """The number of options that a search draws from, the first ones."""
        return len(self.options) if self.offered is None else self.offered

    def listed(self) -> str:
        """Return the labels for a message: those that are drawn, and a word on the others."""
        others = len(self.options) - self.drawn
        return ", ".join(self.options[: self.drawn]) + (f" and {others} that are not offered" if others else "")


class Arch(tuple[int, ...]):
    """An architecture: the index of the option each decision takes, in the space's order. Equal to the plain tuple."""

    __slots__ = ()

    def to_json(self) -> list[int]:
        """Return the indices as a list."""
        return list(self)

    def __repr__(self) -> str:
        return f"Arch({','.join(map(str, self))})"


class SearchSpace:
    """Decisions in a fixed order. `len(space)` is their number, `space.size()` the number of architectures.

    `size`, `sample` and `enumerate` are about what is offered; `arch` accepts every option of every decision.
    """

    def __init__(self, decisions: Iterable[Decision]) -> None:
        self.decisions = tuple(decisions)
        names = [d.name for d in self.decisions]
        duplicates = {n for n in names if names.count(n) > 1}
        if duplicates:
            raise ValueError(f"decisions named {sorted(duplicates)} occur more than once: expected unique names")
        self._sizes = np.array([d.drawn for d in self.decisions], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.decisions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SearchSpace) and self.decisions == other.decisions

    def __hash__(self) -> int:
        return hash(self.decisions)

    def __repr__(self) -> str:
        return f"SearchSpace({len(self)} decisions, {self.size():.3g} architectures)"

    def size(self) -> int:
        """Return the exact number of architectures."""
        return math.prod(d.drawn for d in self.decisions)

    def arch(self, choices: Sequence[int]) -> Arch:
        """Check `choices` (one option index for each decision) and return them as an `Arch`.

        Raises TypeError where an entry is no integer, ValueError where the length or an index is out of range.
        """
        if isinstance(choices, (str, bytes)) or not isinstance(choices, Iterable):
            raise TypeError(f"arch = {choices!r}: expected a sequence of {len(self)} option indices")
        entries = list(choices)
        if len(entries) != len(self):
            raise ValueError(f"arch has {len(entries)} entries: expected {len(self)}, one for each decision")
        checked = []
        for entry, decision in zip(entries, self.decisions, strict=True):
            try:
                if isinstance(entry, bool):
                    raise TypeError
                index = operator.index(entry)
            except TypeError:
                raise TypeError(f"arch entry {entry!r} for {decision.name!r}: expected an integer") from None
            if not 0 <= index < len(decision.options):
                raise ValueError(
                    f"arch entry {index} for {decision.name!r}: expected 0 to {len(decision.options) - 1} "
                    f"({decision.listed()})"
                )
            checked.append(index)
        return Arch(checked)

    def sample(self, rng: np.random.Generator) -> Arch:
        """Draw an architecture uniformly: every decision independently, every option that is offered alike."""
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng is a {type(rng).__name__}: expected a numpy.random.Generator (see spos.generator)")
        return Arch(rng.integers(0, self._sizes).tolist())

    def uniform(self, *, w_bits: int | None = None, a_bits: int | None = None, **options: str | float) -> Arch:
        """Return the architecture that takes the same option in every decision of a kind.

        `space.uniform(operator="choice_3", width=1.0)`; a number stands for the label that reads as the same number.
        `space.uniform(w_bits=4, a_bits=4)` is the option "w4a4" of the kind "bits". Options that are not offered are
        taken too. A kind that is left out takes the default of its decisions, such as the width 1.0; where they have
        none it must be given.
        """
        if w_bits is not None or a_bits is not None:
            if "bits" in options:
                raise ValueError(f"bits = {options['bits']!r} is given beside w_bits or a_bits: expected one of them")
            options["bits"] = Bits(check_bits("w_bits", w_bits), check_bits("a_bits", a_bits)).label
        self._kinds(options, {d.kind for d in self.decisions if d.default is None})
        choices = []
        for decision in self.decisions:
            option = options.get(decision.kind, decision.default)
            index = next((i for i, label in enumerate(decision.options) if _is_option(option, label)), None)
            if index is None:
                accepted = f"expected one of {decision.listed()}"
                raise ValueError(f"{decision.kind} = {option!r} in {decision.name!r}: {accepted}")
            choices.append(index)
        return Arch(choices)

    def join(self, **indices: Sequence[int]) -> Arch:
        """Return the architecture of one list of option indices for each kind, in the order of its decisions.

        `space.join(operator=(0, 0, 3, …), width=(6, 5, 3, …))` reads what other code keeps as separate lists.
        """
        self._kinds(indices, {d.kind for d in self.decisions})
        rest = {kind: list(given) for kind, given in indices.items()}
        for kind, given in rest.items():
            count = sum(d.kind == kind for d in self.decisions)
            if len(given) != count:
                raise ValueError(f"{kind} has {len(given)} entries: expected {count}, one for each decision")
        return self.arch([rest[d.kind].pop(0) for d in self.decisions])

    def labels(self, arch: Sequence[int]) -> dict[str, list[str]]:
        """Return the option labels of the decisions of each kind, in their order."""
        found: dict[str, list[str]] = {}
        for decision, index in zip(self.decisions, self.arch(arch), strict=True):
            found.setdefault(decision.kind, []).append(decision.options[index])
        return found

    def _kinds(self, given: Mapping[str, object], needed: set[str]) -> None:
        kinds = {d.kind for d in self.decisions}
        if not needed <= set(given) <= kinds:
            free = f", of which {', '.join(sorted(kinds - needed))} may be left out" if kinds - needed else ""
            raise ValueError(f"kinds given are {sorted(given)}: expected exactly {sorted(kinds)}{free}")

    def describe(self, arch: Sequence[int]) -> dict[str, str]:
        """Return the option label of each decision by name."""
        return {d.name: d.options[i] for d, i in zip(self.decisions, self.arch(arch), strict=True)}

    def enumerate(self) -> Iterator[Arch]:
        """Yield every architecture that can be drawn, in lexicographic order. Meant for spaces small enough to walk."""
        for flat in range(self.size()):
            choices = []
            for decision in reversed(self.decisions):
                flat, index = divmod(flat, decision.drawn)
                choices.append(index)
            yield Arch(reversed(choices))

    def fingerprint(self) -> str:
        """Return the SHA-256 of the decisions, by which a checkpoint of another space is recognised."""
        content = [
            [d.name, d.kind, list(d.options), *([d.drawn] if d.drawn < len(d.options) else [])] for d in self.decisions
        ]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def _is_option(option: str | float | None, label: str) -> bool:
    if str(option) == label:
        return True
    try:
        return option is not None and not isinstance(option, str) and float(label) == option
    except ValueError:
        return False
