"""Scores of many candidates at once: what architectures have in common is computed once.

In a chain of stages, the activations at a stage and the statistics of its batch normalisations depend on the choices up
to it alone, whether batches are normalised by themselves, as calibration does, or by what it has found. So candidates
form a trie: a node is a stage on one choice of its decisions and of all before. Each batch of calibration walks it
depth first, every node keeping statistics of its own; each batch of validation walks it with these. What is computed
is, to the bit, what scoring one candidate after another computes, only less often.

Activations are kept where paths part, a batch for each such stage above the one that runs; beyond `memory` bytes they
are computed again instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spos.choices import Choice, ChoiceBlock
from spos.modules import is_observed
from spos.space import Arch
from spos.supernet import Supernet

MEMORY = 2 << 30  # bytes of activations that are kept


@dataclass(frozen=True)
class Stage:
    """Modules that run one after another, and the positions in the arch of the decisions inside of them."""

    modules: tuple[nn.Module, ...]
    decisions: tuple[int, ...]


Buffers = list[tuple[nn.Module, str, Tensor]]


class NotAChain(ValueError):
    """What a supernet's module does is not to hand one tensor from stage to stage: prefixes cannot be shared."""


@dataclass
class Node:
    """A stage on one path: `arch` is any candidate's that takes it. `buffers` are those of its modules, its own.

    `before` are buffers as they were before the batch that ran last, of layers other than batch normalisation: what
    such layers compute may depend on them.
    """

    stage: int
    arch: Arch
    buffers: Buffers
    before: Buffers = field(default_factory=list)
    children: list[Node] = field(default_factory=list)
    candidates: list[int] = field(default_factory=list)  # at the last stage
    spares_input: bool = False  # has run, and left what it was given as it was


def stages_of(net: Supernet) -> list[Stage]:
    """Cut a supernet whose module is a chain into stages, each beginning with what makes a decision.

    A chain is an `nn.Sequential`, or a module with a method `stages()` that returns the modules which its `forward`
    calls one after another, each with the result of the one before. NotAChain says why a module is none.
    """
    flat = list(_flat(net.module))
    if len(flat) == 1:
        raise NotAChain(f"{type(net.module).__name__} is no torch.nn.Sequential and has no method stages()")
    owners: dict[int, int] = {}
    for number, module in enumerate(flat):
        for part in module.modules():
            if owners.setdefault(id(part), number) != number and any(True for _ in part.buffers(recurse=False)):
                raise NotAChain(f"a {type(part).__name__} is called in two stages, and would mix their statistics")
    stages: list[Stage] = []
    for module in flat:
        decisions = tuple(sorted({m.position or 0 for m in module.modules() if isinstance(m, Choice)}))
        if decisions or not stages:
            stages.append(Stage((module,), decisions))
        else:
            last = stages[-1]
            stages[-1] = Stage((*last.modules, module), last.decisions)
    return stages


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    own: Any = getattr(type(module), "stages", None)  # a method: a submodule may have the name, too
    if not is_observed(module) and (callable(own) or type(module) is nn.Sequential):
        parts = own(module) if callable(own) else module._modules.values()  # children() leaves out repetitions
        for part in parts:
            yield from _flat(part) if part is not None else ()
    else:
        yield module


class Trie:
    """The candidates of a generation as paths through common nodes.

    `passes` counts the runs of a stage so far, `repeated` those of them that memory made necessary.
    """

    def __init__(self, net: Supernet, archs: Sequence[Arch], *, memory: int = MEMORY) -> None:
        self.net, self.memory = net, memory
        self.stages = stages_of(net)
        self.passes = self.repeated = 0
        self._held = 0
        self._roots: list[Node] = []
        nodes: dict[tuple[object, ...], Node] = {}
        for candidate, arch in enumerate(archs):
            siblings = self._roots
            key: tuple[object, ...] = ()
            for number, stage in enumerate(self.stages):
                key = (*key, *(arch[p] for p in stage.decisions), None)
                if key not in nodes:
                    nodes[key] = Node(number, arch, self._own_buffers(stage, arch))
                    siblings.append(nodes[key])
                siblings = nodes[key].children
            nodes[key].candidates.append(candidate)
        self.nodes = list(nodes.values())

    def _own_buffers(self, stage: Stage, arch: Arch) -> Buffers:
        found: Buffers = []
        for module in _on_path(stage.modules, arch):
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    found.append((module, name, buffer.clone()))
        return found

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put back, on leaving, the supernet's own buffers."""
        own = [(module, dict(module._buffers)) for module in self.net.modules()]
        try:
            yield
        finally:
            for module, buffers in own:
                module._buffers.update(buffers)

    def reset_statistics(self) -> bool:
        """Start every node's statistics anew; return whether there are any."""
        norms = False
        for node in self.nodes:
            _put(node.buffers)
            for module in {id(m): m for m, _, _ in node.buffers}.values():
                if isinstance(module, _BatchNorm) and module.track_running_stats:
                    module.reset_running_stats()
                    norms = True
        return norms

    def forget_inputs(self) -> None:
        """Take no node's word for leaving its input alone: in another mode its modules may do otherwise."""
        for node in self.nodes:
            node.spares_input = False

    def drop(self, candidates: Set[int]) -> None:
        """Leave these candidates, and what leads to no other, out of what follows."""

        def alive(nodes: list[Node]) -> list[Node]:
            for node in nodes:
                node.candidates = [c for c in node.candidates if c not in candidates]
                node.children = alive(node.children)
            return [node for node in nodes if node.candidates or node.children]

        self._roots = alive(self._roots)

    def walk(self, x: Tensor, visit: Callable[[list[int], Tensor], None]) -> None:
        """Run a batch along all paths; `visit` is given the candidates that end in each result."""
        for root in self._roots:
            self._walk(root, _given(root, x), [], x, visit)

    def _walk(
        self, node: Node, x: Tensor, trail: list[Node], held: Tensor, visit: Callable[[list[int], Tensor], None]
    ) -> None:
        """Run a node and what follows it. `x` is what the nodes of `trail` make of `held`, which stays as it is."""
        while True:  # and not by recursion, which would keep every x
            x = self._run(node, x, node.buffers)
            if node.candidates:
                return visit(node.candidates, x)
            if len(node.children) > 1:
                break
            trail, node = [*trail, node], node.children[0]
        if self._held + x.nbytes <= self.memory:
            self._held += x.nbytes
            for child in node.children:
                self._walk(child, _given(child, x), [], x, visit)
            self._held -= x.nbytes
            return
        trail = [*trail, node]
        for child in node.children[:-1]:
            self._walk(child, x, trail, held, visit)
            x = self._again(trail, held)
        self._walk(node.children[-1], x, trail, held, visit)

    def _again(self, trail: list[Node], x: Tensor) -> Tensor:
        """Repeat nodes that have had this batch: their buffers are not to count it twice."""
        x = _given(trail[0], x)
        for node in trail:
            own = [(module, name, b.clone()) for module, name, b in node.buffers if isinstance(module, _BatchNorm)]
            x = self._run(node, x, own + _copies(node.before), again=True)
            self.repeated += 1
        return x

    def _run(self, node: Node, x: Tensor, buffers: Buffers, again: bool = False) -> Tensor:
        if not again:
            node.before = _copies(b for b in buffers if not isinstance(b[0], _BatchNorm))
        _put(buffers)
        self.passes += 1
        given, version = x, 0 if x.is_inference() else x._version
        with self.net.path(node.arch), torch.no_grad():
            for module in self.stages[node.stage].modules:
                x = module(x)
        if not isinstance(x, Tensor):
            of = type(self.stages[node.stage].modules[-1]).__name__
            raise NotAChain(f"a {of} returns a {type(x).__name__}: expected one tensor")
        apart = given.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()  # the next cannot change it either
        node.spares_input = apart and not given.is_inference() and given._version == version
        for i, (layer, name, _) in enumerate(buffers):  # some layers put new ones in their place
            if (buffer := layer._buffers[name]) is not None:
                buffers[i] = (layer, name, buffer)
        return x


def _given(node: Node, x: Tensor) -> Tensor:
    """Return what to run a node on where `x` is still needed: a copy, unless the node is known to leave it alone."""
    return x if node.spares_input else as_it_lies(x)


def as_it_lies(x: Tensor) -> Tensor:
    """Copy a tensor with its strides, where `clone` would close gaps: the order of additions depends on them."""
    span = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    if x.numel() in (0, span):
        return x.clone(memory_format=torch.preserve_format)
    return x.as_strided((span,), (1,)).clone().as_strided(x.shape, x.stride(), 0)


def _copies(buffers: Iterable[tuple[nn.Module, str, Tensor]]) -> Buffers:
    return [(module, name, buffer.clone()) for module, name, buffer in buffers]


def _on_path(modules: Sequence[nn.Module], arch: Arch) -> Iterator[nn.Module]:
    for module in modules:
        yield module
        children = [module.chosen(arch)] if isinstance(module, ChoiceBlock) else module.children()
        yield from _on_path(list(children), arch)


def _put(buffers: Buffers) -> None:
    for module, name, buffer in buffers:
        module._buffers[name] = buffer
