"""The blocks of a supernet in which its choices are made, and architectures that show all of their options.

What a block does depends on the decisions inside of it alone where none changes the shapes that the next one is given.
Then a few architectures are enough to see every block at every combination of its options, for one architecture shows
one of each. Latencies and the memory of activations are measured that way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from spos.choices import Choice, ChoiceBlock
from spos.draws import generator
from spos.quantized import has_bits
from spos.sliced import SlicedModule
from spos.space import Arch, SearchSpace
from spos.supernet import Supernet

MOST_NETWORKS = 1000
Labels = tuple[str, ...]
Block = tuple[str, tuple[int, ...]]  # a module's name, and the positions of the decisions inside of it


def blocks_of(net: Supernet) -> list[Block]:
    """Return the outermost modules that choices are made in. They do not overlap; see `uncovered` for what is missing.

    These are ChoiceBlocks, modules of which a BitsChoice or a WidthChoice is a part, modules whose children are given
    the same WidthChoice and nothing outside of them is, and sliced layers. A batch normalisation that stands alone
    counts as one too, but not in a space with bit widths, where most go into the layer before them.
    """
    found: list[Block] = []
    seen: set[int] = set()
    readers = _readers(net.module)
    packed = has_bits(net)

    def visit(module: nn.Module, name: str) -> None:
        if id(module) in seen or (isinstance(module, Choice) and not isinstance(module, ChoiceBlock)):
            return
        seen.add(id(module))
        own = [m for m in module.children() if isinstance(m, Choice) and not isinstance(m, ChoiceBlock)]
        scope = decisions_in(module)
        if scope and name:
            whole = own or isinstance(module, ChoiceBlock | SlicedModule)
            if whole or _is_closed(module, scope, readers, net.space):
                if not (packed and isinstance(module, _BatchNorm)):
                    found.append((name, scope))
                return
        for label, child in module.named_children():
            visit(child, f"{name}.{label}" if name else label)

    visit(net.module, "")
    return found


def decisions_in(module: nn.Module) -> tuple[int, ...]:
    """Return the positions of the decisions that are made inside of a module, ascending."""
    return tuple(sorted({m.position or 0 for m in module.modules() if isinstance(m, Choice)}))


def uncovered(space: SearchSpace, blocks: Sequence[Block]) -> list[str]:
    """Return the names of the decisions that are made in none of the blocks."""
    covered = {position for _, scope in blocks for position in scope}
    return [decision.name for position, decision in enumerate(space.decisions) if position not in covered]


def covering(space: SearchSpace, blocks: Sequence[Block]) -> list[Arch]:
    """Return architectures that together show every combination of options in every block, mixed.

    ValueError for more than 1,000 combinations in a block, or architectures.
    """
    rng = generator(0, "latency")
    missing = []
    for name, scope in blocks:
        count = _combinations(space, scope)
        if count > MOST_NETWORKS:
            raise ValueError(f"{name} has {count:,} combinations of options: expected at most {MOST_NETWORKS:,}")
        keys = list(options_of(space, scope))
        missing.append([keys[i] for i in rng.permutation(len(keys))])
    archs: list[Arch] = []
    while any(missing):
        taken: dict[int, int] = {}
        for (_, scope), keys in zip(blocks, missing, strict=True):
            fits = (k for k in keys if all(taken.get(p, i) == i for p, i in zip(scope, k, strict=True)))
            taken |= dict(zip(scope, next(fits, ()), strict=False))
        archs.append(Arch(taken.get(p, 0) for p in range(len(space))))
        if len(archs) > MOST_NETWORKS:
            raise ValueError(
                f"options meet in more than {MOST_NETWORKS:,} networks: expected fewer decisions in blocks"
            )
        for (_, scope), keys in zip(blocks, missing, strict=True):
            shown = tuple(archs[-1][p] for p in scope)
            if shown in keys:
                keys.remove(shown)
    return archs


def options_of(space: SearchSpace, scope: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield every combination of the options that a search draws of the decisions at `scope`."""
    return product(*(range(space.decisions[p].drawn) for p in scope))


def labels_of(space: SearchSpace, scope: Sequence[int], key: Sequence[int]) -> Labels:
    """Return the labels of a combination of options."""
    return tuple(space.decisions[p].options[i] for p, i in zip(scope, key, strict=True))


def check_measured(space: SearchSpace, blocks: Sequence[Block], arch: Arch) -> None:
    """ValueError, naming the block, for an architecture with options that no search draws, and none was measured of."""
    for name, scope in blocks:
        if any(arch[p] >= space.decisions[p].drawn for p in scope):
            taken = " ".join(labels_of(space, scope, [arch[p] for p in scope]))
            raise ValueError(f"{name} was not measured at {taken}: expected options that a search draws from")


def _combinations(space: SearchSpace, scope: Sequence[int]) -> int:
    return math.prod(space.decisions[p].drawn for p in scope)


def _readers(root: nn.Module) -> dict[int, set[int]]:
    """Return by decision the ids of the modules that read it."""
    found: dict[int, set[int]] = {}
    for module in root.modules():
        if isinstance(module, ChoiceBlock):
            found.setdefault(module.position or 0, set()).add(id(module))
        for part in module.children():
            if isinstance(part, Choice) and not isinstance(part, ChoiceBlock):
                found.setdefault(part.position or 0, set()).add(id(module))
    return found


def _is_closed(module: nn.Module, scope: Sequence[int], readers: dict[int, set[int]], space: SearchSpace) -> bool:
    """Whether children of a module share a decision, all of its decisions are its own, and they are few enough."""
    of_children = [p for child in module.children() for p in decisions_in(child)]
    inside = {id(part) for part in module.modules()}
    return (
        len(of_children) > len(set(of_children))
        and all(readers[p] <= inside for p in scope)
        and _combinations(space, scope) <= MOST_NETWORKS
    )
