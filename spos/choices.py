"""Choices inside a module tree: `ChoiceBlock` takes one of several modules, `WidthChoice` one of several numbers of
channels, `BitsChoice` one of several bit widths.

All read the path of the call they are in, which the supernet holds in a context variable for the duration of the call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import Any

from torch import nn

from spos.bits import EVERY, SEARCHED, Bits, read_offered
from spos.space import Arch

_path: ContextVar[Arch | None] = ContextVar("spos_path", default=None)


@contextmanager
def held_path(arch: Arch) -> Iterator[None]:
    """Hold the path that choices read for a block of code."""
    token = _path.set(arch)
    try:
        yield
    finally:
        _path.reset(token)


def current_path(reader: nn.Module) -> Arch:
    """Return the path of the call that runs. RuntimeError, naming the reader, outside of a supernet's call."""
    path = _path.get()
    if path is None:
        raise RuntimeError(f"a {type(reader).__name__} was called outside of a path: call the Supernet, net(x, arch)")
    return path


class Choice(nn.Module):
    """A module that reads one decision of the path. `position` is the decision's place in an architecture.

    `offered` and `default` are those of the `spos.Decision`.
    """

    def __init__(
        self,
        labels: tuple[str, ...],
        kind: str,
        decision: str | None,
        offered: int | None = None,
        default: str | None = None,
    ) -> None:
        super().__init__()
        self.labels = labels
        self.kind = kind
        self.decision = decision
        self.offered = offered
        self.default = default
        self.position: int | None = None  # set by the supernet that holds the module

    def option(self, arch: Sequence[int]) -> int:
        """Return the index of the option that `arch`, of the supernet that holds the module, takes here."""
        if self.position is None or self.position >= len(arch):
            raise RuntimeError(
                f"this {type(self).__name__} was added after its Supernet was built: wrap the finished module"
            )
        return arch[self.position]


class ChoiceBlock(Choice):
    """Alternatives of which a path takes one: operators, activations, `nn.Identity()`, whole branches.

    `options` maps a label to a module; the branches' parameters get the keys "0", "1", … in that order. `kind` groups
    decisions for `space.uniform(kind=label)`. Blocks given the same `decision` name share one decision; the default is
    the block's place in the module tree. Calling a block outside of a supernet's call raises RuntimeError.
    """

    def __init__(
        self, options: Mapping[str, nn.Module], *, kind: str = "operator", decision: str | None = None
    ) -> None:
        super().__init__(tuple(options), kind, decision)
        if not options:
            raise ValueError("options is empty: expected at least one label and module")
        for index, (label, branch) in enumerate(options.items()):
            if not isinstance(label, str):
                raise TypeError(f"options has the label {label!r}: expected a string")
            if not isinstance(branch, nn.Module):
                raise TypeError(f"options[{label!r}] is a {type(branch).__name__}: expected an nn.Module")
            self.add_module(str(index), branch)

    def branch(self, index: int) -> nn.Module:
        """Return the module of option `index`."""
        return self.get_submodule(str(index))

    def chosen(self, arch: Sequence[int]) -> nn.Module:
        """Return the module that `arch`, of the block's supernet, takes here."""
        return self.branch(self.option(arch))

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        return self.chosen(current_path(self))(*inputs, **kwargs)

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, labels={self.labels}"


class WidthChoice(Choice):
    """Numbers of channels, or of features, of which a path takes one: a decision of the kind "width".

    It stands where `spos.SlicedConv2d`, `spos.SlicedLinear` and `spos.SlicedBatchNorm2d` take a number of channels,
    and calling it in the `forward` of a module of your own gives the width in force, an int. Layers that are given the
    same WidthChoice agree by construction.

    `widths` ascend; `labels` are what the decision's options are called, by default the widths themselves. `default` is
    the label that `space.uniform` takes where it is told no width. WidthChoices given the same `decision` name share
    one decision; the default is the place in the module tree.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        labels: Sequence[str] | None = None,
        decision: str | None = None,
        default: str | None = None,
    ) -> None:
        if not widths or any(isinstance(w, bool) or not isinstance(w, int) or w < 1 for w in widths):
            raise ValueError(f"widths = {list(widths)}: expected positive integers")
        if any(narrow >= wide for narrow, wide in pairwise(widths)):
            raise ValueError(f"widths = {list(widths)}: expected ascending ones, none of them twice")
        if labels is not None and len(labels) != len(widths):
            raise ValueError(f"labels = {list(labels)}: expected one for each of the widths {list(widths)}")
        names = tuple(map(str, widths if labels is None else labels))
        super().__init__(names, "width", decision, default=default)
        self.widths = tuple(widths)

    @classmethod
    def scaled(cls, base: int, ratios: Sequence[float], *, decision: str | None = None) -> WidthChoice:
        """Return the choice of `int(base * ratio)` channels, labelled by the ratios: "0.2", "1.0".

        The default is the ratio 1.0, where it is among them.
        """
        labels = [str(float(r)) for r in ratios]
        default = "1.0" if "1.0" in labels else None
        return cls([int(base * r) for r in ratios], labels=labels, decision=decision, default=default)

    @property
    def largest(self) -> int:
        """The largest width, by which weights are allocated."""
        return self.widths[-1]

    def width(self, arch: Sequence[int]) -> int:
        """Return the width that `arch`, of the supernet that holds this, takes here."""
        return self.widths[self.option(arch)]

    def forward(self) -> int:
        return self.width(current_path(self))

    def extra_repr(self) -> str:
        return f"widths={self.widths}, labels={self.labels}"


class FixedWidth(nn.Module):
    """What stands in an extracted child where a WidthChoice stood in the supernet: calling it gives the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self) -> int:
        return self.width

    def extra_repr(self) -> str:
        return str(self.width)


class BitsChoice(Choice):
    """Bit widths (w_bits, a_bits) of which a path takes one pair: a decision of the kind "bits", labels as "w2a4".

    It stands where `spos.SlicedQuantizedConv2d` takes its bits, and calling it in a `forward` of your own gives the
    pair in force, a `Bits`. Every pair of 1 to 8 may be in an architecture. Searches draw from those `offered`, which
    are the decision's first options: labels or pairs, by default those of arXiv 1904.00420, "any" for all 64.

    BitsChoices given the same `decision` name share one decision; the default is the place in the module tree.
    """

    def __init__(self, offered: str | Sequence[str | Sequence[int]] = SEARCHED, *, decision: str | None = None) -> None:
        first = read_offered(offered)
        self.pairs = (*first, *(pair for pair in EVERY if pair not in first))
        super().__init__(tuple(pair.label for pair in self.pairs), "bits", decision, offered=len(first))

    def bits(self, arch: Sequence[int]) -> Bits:
        """Return the pair that `arch`, of the supernet that holds this, takes here."""
        return self.pairs[self.option(arch)]

    def forward(self) -> Bits:
        return self.bits(current_path(self))

    def extra_repr(self) -> str:
        return f"offered={self.labels[: self.offered]}"


class FixedBits(nn.Module):
    """What stands in an extracted child where a BitsChoice stood in the supernet: calling it gives the pair."""

    def __init__(self, bits: Bits) -> None:
        super().__init__()
        self.bits = bits

    def forward(self) -> Bits:
        return self.bits

    def extra_repr(self) -> str:
        return self.bits.label
