"""The supernet, which runs one path through the choices of a module.

`Supernet(module)` turns any module with choices inside into a supernet: the space is read off the module tree, and
`net(x, arch)` runs the one path that `arch` names. The path travels in a context variable for the duration of the call,
so the user's own `forward` needs no extra argument.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spos.choices import BitsChoice, Choice, ChoiceBlock, FixedBits, FixedWidth, WidthChoice, held_path
from spos.modules import initialize, map_layers, unfuse
from spos.sliced import SlicedModule
from spos.space import Arch, Decision, SearchSpace


class Supernet(nn.Module):
    """A module with choices inside, run one path at a time: `net(x, arch)`.

    `input_shape` is one image's (channels, height, width), needed to count costs. The state dict has the wrapped
    module's own keys. `space` is the SearchSpace in the order of the module tree.
    """

    def __init__(self, module: nn.Module, *, input_shape: Sequence[int] | None = None, name: str = "custom") -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"module is a {type(module).__name__}: expected an nn.Module")
        self.module = module
        self.name = name
        self.input_shape = None if input_shape is None else tuple(int(n) for n in input_shape)
        self.space = _read_space(module)
        self.register_state_dict_post_hook(_strip_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)

    def forward(self, *inputs: Any, arch: Sequence[int] | None = None, **kwargs: Any) -> Any:
        """Run the wrapped module on `inputs` along `arch`, given last or by name."""
        if arch is None:
            if not inputs:
                raise TypeError("arch is missing: call net(x, arch)")
            *inputs, arch = inputs  # type: ignore[assignment]
        if isinstance(arch, torch.Tensor) and arch.dim() > 1:
            raise TypeError("arch is an image-like tensor: call net(x, arch)")
        with self.path(arch):
            return self.module(*inputs, **kwargs)

    @contextmanager
    def path(self, arch: Sequence[int]) -> Iterator[Arch]:
        """Hold the path for a block of code, for instance around a backward pass that recomputes activations."""
        checked = self.space.arch(arch)
        with held_path(checked):
            yield checked

    def __getstate__(self) -> dict[str, Any]:
        found_again = ("_cost_tables", "_counted")  # at need
        return {key: value for key, value in self.__dict__.items() if key not in found_again}

    def path_modules(self, arch: Sequence[int]) -> Iterator[nn.Module]:
        """Yield the modules that lie on the path, parents first, each once."""
        yield from _walk(self.module, self.space.arch(arch), set())

    def path_parameters(self, arch: Sequence[int]) -> Iterator[nn.Parameter]:
        """Yield the parameters of the modules that lie on the path, each once."""
        seen: set[int] = set()
        for module in self.path_modules(arch):
            for parameter in module.parameters(recurse=False):
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield parameter

    def extract(
        self,
        arch: Sequence[int],
        *,
        weights: Literal["inherit", "fresh"] = "inherit",
        affine: bool = True,
        seed: int = 0,
    ) -> nn.Module:
        """Return the path as a module of its own, of plain torch layers, that shares no memory with the supernet.

        `weights="inherit"` copies them, with whatever running statistics the supernet holds (see `spos.recalibrate`);
        "fresh" initialises them from `seed`. `affine=True` gives every batch normalisation a scale and a shift, as
        retraining wants (starting at 1 and 0, so outputs do not change); False leaves them as they are in the supernet.
        `torch.export` and ONNX export accept the result where they accept the user's own modules.
        """
        if weights not in ("inherit", "fresh"):
            raise ValueError(f"weights = {weights!r}: expected 'inherit' or 'fresh'")
        reference = next(self.parameters(), None)
        child = unfuse(_copy_path(self.module, self.space.arch(arch), {}))
        if affine:
            child = map_layers(child, lambda layer: _with_affine(layer, reference))
        if weights == "fresh":
            initialize(child, seed)
        return child


def _copy_path(module: nn.Module, arch: Arch, memo: dict[int, Any]) -> nn.Module:
    """Copy a module along a path. `memo`, deepcopy's own, puts in the place of each choice what it comes to on it."""
    for part in _walk(module, arch, set()):
        if id(part) in memo:
            continue
        if isinstance(part, ChoiceBlock):
            memo[id(part)] = _copy_path(part.chosen(arch), arch, memo)
        elif isinstance(part, WidthChoice):
            memo[id(part)] = FixedWidth(part.width(arch))
        elif isinstance(part, BitsChoice):
            memo[id(part)] = FixedBits(part.bits(arch))
        elif isinstance(part, SlicedModule):
            memo[id(part)] = part.extract(arch)
    return copy.deepcopy(module, memo)


def _read_space(module: nn.Module) -> SearchSpace:
    decisions: dict[str, Decision] = {}
    choices = {name: m for name, m in module.named_modules() if isinstance(m, Choice)}
    if not choices:
        raise ValueError("module contains no ChoiceBlock, WidthChoice or BitsChoice: expected at least one")
    for name, choice in choices.items():
        decision = Decision(choice.decision or name, choice.kind, choice.labels, choice.offered, choice.default)
        shared = decisions.setdefault(decision.name, decision)
        if (shared.kind, shared.options, shared.offered) != (decision.kind, decision.options, decision.offered):
            raise ValueError(f"choices that share the decision {decision.name!r} differ in kind or labels")
    order = {name: position for position, name in enumerate(decisions)}
    for name, choice in choices.items():
        position = order[choice.decision or name]
        if choice.position not in (None, position):
            raise ValueError(f"{type(choice).__name__} {name!r} has another place in another Supernet: wrap a copy")
        choice.position = position
    _refuse_tied_slices(module)
    return SearchSpace(decisions.values())


def _refuse_tied_slices(module: nn.Module) -> None:
    """A weight that two layers slice has no one slice to count, to extract or to train."""
    owners: dict[int, str] = {}
    sliced: set[int] = set()
    for name, layer in module.named_modules():
        for parameter in layer.parameters(recurse=False):
            first = owners.setdefault(id(parameter), name)
            sliced |= {id(parameter)} if isinstance(layer, SlicedModule) else set()
            if first != name and id(parameter) in sliced:
                raise ValueError(f"{first!r} and {name!r} share a weight that is sliced: expected each its own")


def _walk(module: nn.Module, arch: Arch, seen: set[int]) -> Iterator[nn.Module]:
    if id(module) in seen:
        return
    seen.add(id(module))
    yield module
    children = [module.chosen(arch)] if isinstance(module, ChoiceBlock) else module.children()
    for child in children:
        yield from _walk(child, arch, seen)


def _with_affine(layer: nn.Module, reference: Tensor | None) -> nn.Module:
    if not isinstance(layer, _BatchNorm) or layer.affine:
        return layer
    new = type(layer)(layer.num_features, layer.eps, layer.momentum, True, layer.track_running_stats)
    new.load_state_dict(layer.state_dict(), strict=False)
    if reference is not None:
        new.to(reference)
    return new.train(layer.training)


def _strip_prefix(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    _rename(state, f"{prefix}module.", prefix)


def _add_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    _rename(state, prefix, f"{prefix}module.")


def _rename(state: dict[str, Any], old: str, new: str) -> None:
    items = [(new + key[len(old) :] if key.startswith(old) else key, value) for key, value in state.items()]
    state.clear()
    state.update(items)
