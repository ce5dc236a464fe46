"""Choice blocks, and the supernet that runs one path through them.

`Supernet(module)` turns any module with `ChoiceBlock`s inside into a supernet: the space is read off the module tree,
and `net(x, arch)` runs the one path that `arch` names. The path travels in a context variable for the duration of the
call, so the user's own `forward` needs no extra argument.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spos.modules import initialize, map_layers, unfuse
from spos.space import Arch, Decision, SearchSpace

_path: ContextVar[Arch | None] = ContextVar("spos_path", default=None)


class ChoiceBlock(nn.Module):
    """Alternatives of which a path takes one: operators, activations, `nn.Identity()`, whole branches.

    `options` maps a label to a module; the branches' parameters get the keys "0", "1", … in that order. `kind` groups
    decisions for `space.uniform(kind=label)`. Blocks given the same `decision` name share one decision; the default is
    the block's place in the module tree. Calling a block outside of a supernet's call raises RuntimeError.
    """

    def __init__(
        self, options: Mapping[str, nn.Module], *, kind: str = "operator", decision: str | None = None
    ) -> None:
        super().__init__()
        if not options:
            raise ValueError("options is empty: expected at least one label and module")
        for index, (label, branch) in enumerate(options.items()):
            if not isinstance(label, str):
                raise TypeError(f"options has the label {label!r}: expected a string")
            if not isinstance(branch, nn.Module):
                raise TypeError(f"options[{label!r}] is a {type(branch).__name__}: expected an nn.Module")
            self.add_module(str(index), branch)
        self.labels = tuple(options)
        self.kind = kind
        self.decision = decision
        self.position: int | None = None  # of its decision in the arch; set by the supernet that holds the block

    def branch(self, index: int) -> nn.Module:
        """Return the module of option `index`."""
        return self.get_submodule(str(index))

    def chosen(self, arch: Sequence[int]) -> nn.Module:
        """Return the module that `arch`, of the block's supernet, takes here."""
        if self.position is None or self.position >= len(arch):
            raise RuntimeError("this ChoiceBlock was added after its Supernet was built: wrap the finished module")
        return self.branch(arch[self.position])

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        path = _path.get()
        if path is None:
            raise RuntimeError("a ChoiceBlock was called outside of a path: call the Supernet, net(x, arch)")
        return self.chosen(path)(*inputs, **kwargs)

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, labels={self.labels}"


class Supernet(nn.Module):
    """A module with choice blocks inside, run one path at a time: `net(x, arch)`.

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
        token = _path.set(checked)
        try:
            yield checked
        finally:
            _path.reset(token)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_cost_tables"}  # measured again at need

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
    """Copy a module along a path. `memo`, deepcopy's own, puts a copy of each chosen branch in its block's place."""
    for block in _walk(module, arch, set()):
        if isinstance(block, ChoiceBlock) and id(block) not in memo:
            memo[id(block)] = _copy_path(block.chosen(arch), arch, memo)
    return copy.deepcopy(module, memo)


def _choice_blocks(module: nn.Module) -> dict[str, ChoiceBlock]:
    return {name: m for name, m in module.named_modules() if isinstance(m, ChoiceBlock)}


def _read_space(module: nn.Module) -> SearchSpace:
    decisions: dict[str, Decision] = {}
    blocks = _choice_blocks(module)
    if not blocks:
        raise ValueError("module contains no ChoiceBlock: expected at least one")
    for name, block in blocks.items():
        decision = Decision(block.decision or name, block.kind, block.labels)
        if decisions.setdefault(decision.name, decision) != decision:
            raise ValueError(f"blocks that share the decision {decision.name!r} differ in kind or labels")
    order = {name: position for position, name in enumerate(decisions)}
    for name, block in blocks.items():
        position = order[block.decision or name]
        if block.position not in (None, position):
            raise ValueError(f"ChoiceBlock {name!r} has another place in another Supernet: wrap a copy")
        block.position = position
    return SearchSpace(decisions.values())


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
