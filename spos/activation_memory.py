"""The peak memory of a network's activations at inference, from a trace of its operations.

The trace is that of the plain child, `net.extract(arch)`, operation by operation as torch dispatches them. Counted are
the bytes of storages, with these rules:

- The images and whatever an operation creates are activations; weights, and what is computed of weights without the
  images, are not.
- An activation is there from the operation that creates it, the images from the start, to the last one that reads it,
  through whatever views; the outputs of the network to the end. While an operation runs, what it reads and what it
  creates are there, and everything that is still to be read: a residual, the results of other branches.
- An operation that treats every element by itself, batch normalisation in eval mode among them, writes over an operand
  of the same size that nothing reads afterwards. So convolution, normalisation and ReLU need one input and one output,
  as they do where they run as one.
- A layer of few bits counts as a plain one, and activations in the dtype of the weights: an upper bound for a packed
  network, which passes some of them on as codes of one byte.
- Memory that an operation takes for itself while it runs is not counted: it differs from one implementation to another.

That is what a runtime needs that frees each tensor after its last use and packs them without gaps (the peak that
MCUNet, arXiv 2007.10319, searches under). PyTorch keeps some longer, those that a caller's variables name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spos.blocks import Block, blocks_of, covering, uncovered
from spos.choices import Choice
from spos.cost_table import CostTable
from spos.quantized import QuantizedConv2d
from spos.space import Arch
from spos.supernet import Supernet
from spos_kernels import use_backend


def count_peak_memory(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Return the peak bytes of a plain module's activations, such as an extracted child's, for one image (C, H, W).

    N images take N times as many. The module `spos.activation_memory` says what counts.
    """
    return trace(module, input_shape, {}).peak


# Operations in eval mode on every element by itself that torch does not tag so.
_BY_ELEMENT = ("batch_norm", "hardswish", "prelu")


@dataclass
class Trace:
    """What was there while each operation ran, in bytes, and in which block it ran, None for none.

    edges: what was there where each block was entered and where it was left.
    """

    live: list[int]
    places: list[str | None]
    edges: list[int]
    image: int

    @property
    def peak(self) -> int:
        return max(self.live, default=self.image)

    def peak_in(self, name: str | None) -> int:
        """Return the peak over the operations of a block, or of those in no block; 0 for none."""
        return max((n for n, place in zip(self.live, self.places, strict=True) if place == name), default=0)

    def outside(self) -> list[int]:
        """Return what must be the same for all architectures for the peaks of blocks to depend on them alone."""
        return [n for n, place in zip(self.live, self.places, strict=True) if place is None] + self.edges


def trace(module: nn.Module, input_shape: Sequence[int], blocks: Mapping[str, nn.Module]) -> Trace:
    """Run one image of zeros through a plain module in eval mode, and restore its modes; tell `blocks` apart."""
    weight = next(module.parameters(), torch.empty(0))
    image = torch.zeros(1, *input_shape, device=weight.device, dtype=weight.dtype)
    recorder = _Recorder(module, image)
    fast = torch.backends.mha.get_fastpath_enabled()
    with recorder.telling_apart(blocks), _evaluating(module):
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # a whole encoder layer would be one operation
            with torch.no_grad(), use_backend("reference"), recorder:
                outputs = module(image)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
    return recorder.result(outputs)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Have a module in eval mode, its layers of few bits as plain ones, and put back what was."""
    modes = [(m, m.training) for m in module.modules()]
    quantized = [m for m in module.modules() if isinstance(m, QuantizedConv2d)]
    try:
        module.eval()
        for layer in quantized:
            layer.forward = partial(nn.Conv2d.forward, layer)  # type: ignore[method-assign]
        yield
    finally:
        for layer in quantized:
            del layer.forward
        for m, training in modes:
            m.training = training


@dataclass
class _Activation:
    """A storage: its bytes, the operations that create it and that read it last, and the last that it is counted at."""

    size: int
    created: int
    read: int
    counted: int = field(init=False)

    def __post_init__(self) -> None:
        self.counted = self.read


class _Recorder(TorchDispatchMode):
    """Notes for each operation which storages it reads and creates."""

    def __init__(self, module: nn.Module, image: Tensor) -> None:
        super().__init__()
        self._held: list[Tensor] = [image]  # all of them, so that no storage gets the address of another
        self._weights = {_storage(t) for t in (*module.parameters(), *module.buffers())}
        self._of_images = {_storage(image)}
        self._image = image.untyped_storage().nbytes()
        self._activations = {_storage(image): _Activation(self._image, -1, -1)}
        self._overwrites: list[tuple[int, list[_Activation]]] = []  # an operation, and operands as large as its result
        self._places: list[str | None] = []
        self._marks: list[int] = []
        self._place: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        self._held += made
        known = {_storage(t) for t in given}
        new = {_storage(t): t for t in made if _storage(t) not in known and _storage(t) not in self._activations}
        if known & self._weights and not known & self._of_images:
            self._weights |= set(new)
        elif new or func._schema.is_mutable:  # a view reads nothing
            if known & self._of_images:
                self._of_images |= set(new)
            self._note(func, given, new)
        return result

    def _note(self, func: Any, given: Sequence[Tensor], new: Mapping[int, Tensor]) -> None:
        number = len(self._places)
        self._places.append(self._place)
        operands = []
        for tensor in given:
            if (activation := self._activations.get(_storage(tensor))) is not None:
                activation.read = number
                operands.append((activation, tensor))
        for key, tensor in new.items():
            size = tensor.untyped_storage().nbytes()
            self._activations[key] = _Activation(size, number, number)
            if torch.Tag.pointwise in func.tags or any(name in func.__name__ for name in _BY_ELEMENT):
                same = [a for a, t in operands if t.shape == tensor.shape and a.size == size]
                self._overwrites.append((number, same))

    @contextmanager
    def telling_apart(self, blocks: Mapping[str, nn.Module]) -> Iterator[None]:
        def enter(name: str) -> Callable[..., None]:
            def hook(*_: object) -> None:
                self._place = name
                self._marks.append(len(self._places))

            return hook

        def leave(*_: object) -> None:
            self._place = None
            self._marks.append(len(self._places))

        handles = [m.register_forward_pre_hook(enter(name)) for name, m in blocks.items()]
        handles += [m.register_forward_hook(leave) for m in blocks.values()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def result(self, outputs: Any) -> Trace:
        """Return what there was, once the network has run and returned `outputs`."""
        count = len(self._places)
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor) and (activation := self._activations.get(_storage(tensor))) is not None:
                activation.read = count
        activations = list(self._activations.values())
        for activation in activations:
            activation.counted = activation.read
        for number, operands in self._overwrites:
            for operand in operands:
                if operand.counted == number:
                    operand.counted -= 1
                    break
        edges = [sum(a.size for a in activations if a.created < mark <= a.read) for mark in self._marks]
        return Trace(_live(activations, count), self._places, edges, self._image)


def _live(activations: Sequence[_Activation], count: int) -> list[int]:
    changes = [0] * (count + 2)
    for a in activations:
        if a.counted >= a.created:
            changes[max(a.created, 0)] += a.size
            changes[a.counted + 1] -= a.size
    return list(accumulate(changes))[:count]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _largest(numbers: Iterable[int]) -> int:
    return max(numbers)


class PeakTable(CostTable):
    """Peaks as a cost: the largest of the terms instead of their sum.

    While a block runs, what is there depends on the decisions inside of it alone, unless choices change the shapes
    or the use of what is outside. A few architectures show all blocks at all options; where what they show
    differs outside of the blocks, each architecture is traced by itself.
    """

    total = staticmethod(_largest)
    combine = np.maximum

    def __init__(self, net: Supernet) -> None:
        super().__init__(net.space)
        if net.input_shape is None:
            raise ValueError("input_shape is unknown: pass Supernet(module, input_shape=(channels, height, width))")
        self._net = net
        self._traced: dict[Arch, int] = {}
        self._blocks = blocks_of(net)
        if not self._fill_blocks():
            self._terms.clear()
            self._single = self._trace_one

    def __call__(self, arch: Sequence[int]) -> int:
        checked = self._space.arch(arch)
        drawn = all(i < d.drawn for i, d in zip(checked, self._space.decisions, strict=True))
        return super().__call__(checked) if drawn else self._trace_one(checked)

    def counting(self, low: int | None, high: int | None) -> tuple[CostTable, int | None, int | None]:
        """Count the terms that reach `low`; one above `high` counts more than all of these together."""
        marks, most = CostTable(self._space), len(self._terms)
        for scope, term in self._terms.items():
            for key, peak in term.items():
                above = high is not None and peak > high
                mark = most + 1 if above else int(low is not None and peak >= low)
                marks.add(dict(zip(scope, key, strict=True)), mark)
        marks._single = self._single
        return marks, None if low is None else 1, most

    def _trace_one(self, arch: Arch) -> int:
        if arch not in self._traced:
            self._traced[arch] = self._trace(arch, ()).peak
        return self._traced[arch]

    def _fill_blocks(self) -> bool:
        if uncovered(self._space, self._blocks) or self._share_branches():
            return False
        try:
            archs = covering(self._space, self._blocks)
        except ValueError:  # too many
            return False
        outside = None
        known: dict[tuple[str, tuple[int, ...]], int] = {}
        for arch in archs:
            found = self._trace(arch, self._blocks)
            outside = outside or found.outside()
            if outside != found.outside():
                return False
            for name, scope in self._blocks:
                peak, key = found.peak_in(name), tuple(arch[p] for p in scope)
                if known.setdefault((name, key), peak) != peak:
                    return False
                self.add(dict(zip(scope, key, strict=True)), peak)
            self.add({}, max(found.peak_in(None), found.image))
        return True

    def _trace(self, arch: Arch, blocks: Sequence[Block]) -> Trace:
        child = self._net.extract(arch)
        return trace(child, self._net.input_shape or (), {name: child.get_submodule(name) for name, _ in blocks})

    def _share_branches(self) -> bool:
        """Whether a module that does something is a part of two blocks, and its call could be either's."""
        inside = [set(self._net.module.get_submodule(name).modules()) for name, _ in self._blocks]
        shared = {m for i, one in enumerate(inside) for other in inside[:i] for m in one & other}
        return any(not isinstance(m, Choice | nn.Identity) for m in shared)
