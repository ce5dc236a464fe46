"""What one path costs, by the options that each part of the cost depends on.

Costs are attributed to the innermost branch that causes them, and within it to sliced layers one by one: what a sliced
layer costs is a constant (the places at which each weight is used) times the elements of its slice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from spos.choices import Choice, ChoiceBlock
from spos.quantized import QuantizedConv2d, SlicedQuantizedConv2d, bits_of, has_bits
from spos.sliced import SlicedModule, sliced_size
from spos.space import Arch
from spos.supernet import Supernet
from spos_kernels import use_backend

Place = tuple[tuple[int, int], ...]  # options taken from the outside in, each (position in the arch, option index)
Shapes = tuple[tuple[int, ...], ...]

# The published figures of bit operations, "6.32 G" for ResNet-18 at 2 bits, are in this unit and not in 10⁹.
BITOPS_UNIT = 1 << 30


@dataclass(frozen=True)
class SlicedCost:
    """`uses` for each element in the slices of the named parameters, times the bits of both factors if `by_bits`."""

    names: tuple[str, ...]
    uses: Fraction
    by_bits: bool = False

    def choices(self, module: SlicedModule) -> list[Choice]:
        """Return the choices that the cost of `module` depends on."""
        bits = [module.bits] if self.by_bits and isinstance(module, SlicedQuantizedConv2d) else []
        return [*module.width_choices(), *bits]

    def total(self, module: SlicedModule, arch: Sequence[int]) -> int:
        """Return what `module` costs on `arch`."""
        bits = bits_of(module, arch) if self.by_bits else None
        return int(self.uses * elements(module, self.names, arch)) * (bits.w_bits * bits.a_bits if bits else 1)


def elements(module: SlicedModule, names: Sequence[str], arch: Sequence[int]) -> int:
    """Return the number of elements in the slices of a module's named parameters."""
    sizes = module.slices(arch)
    return sum(sliced_size(getattr(module, name), sizes.get(name, ())) for name in names)


@dataclass
class Measurement:
    """One path's cost by place, () for what every path shares, and the shapes that each choice block took and gave."""

    costs: dict[Place, int] = field(default_factory=lambda: {(): 0})
    sliced: dict[tuple[Place, SlicedModule], SlicedCost] = field(default_factory=dict)
    shapes: dict[tuple[Place, int], list[Shapes]] = field(default_factory=dict)
    owners: dict[int, Place] = field(default_factory=dict)  # where the weight with this id was counted
    quantized: dict[tuple[Place, QuantizedConv2d], int] = field(default_factory=dict)  # layers of fixed bits, in costs
    additive: bool = True

    def add(self, place: Place, cost: int) -> None:
        self.costs[place] = self.costs.get(place, 0) + cost

    def total(self, arch: Sequence[int]) -> int:
        """Return the cost of the whole path, `arch`."""
        return sum(self.costs.values()) + sum(c.total(module, arch) for (_, module), c in self.sliced.items())


def measure_flops(net: Supernet, arch: Arch) -> Measurement:
    """Run one image along `arch` and attribute each multiply-accumulate to what did it."""
    if net.input_shape is None:
        raise ValueError("input_shape is unknown: pass Supernet(module, input_shape=(channels, height, width))")
    found = Measurement()
    within: dict[tuple[Place, SlicedModule], int] = {}
    stack: list[tuple[Place, int]] = []  # where the run is, and the count when it came there, less what it left again
    counter = FlopCounterMode(display=False)

    def enter(option: Place) -> Callable[..., None]:
        def hook(*_: object) -> None:
            stack.append(((*(stack[-1][0] if stack else ()), *option), counter.get_total_flops()))

        return hook

    def leave(module: nn.Module, inputs: object, keywords: object, output: object) -> None:
        place, started = stack.pop()
        cost = counter.get_total_flops() - started
        if stack:
            stack[-1] = (stack[-1][0], stack[-1][1] + cost)
        if isinstance(module, SlicedModule):
            within[place, module] = within.get((place, module), 0) + cost // 2
            return
        found.add(place, cost // 2)  # a multiply-accumulate is two of the counter's operations
        if isinstance(module, QuantizedConv2d):
            found.quantized[place, module] = found.quantized.get((place, module), 0) + cost // 2
            return
        leaves = tree_leaves((inputs, keywords, output))
        shapes = tuple(tuple(t.shape) for t in leaves if isinstance(t, torch.Tensor))
        found.shapes.setdefault((place[:-1], place[-1][0]), []).append(shapes)

    handles = []
    for module in net.path_modules(arch):
        if isinstance(module, ChoiceBlock | SlicedModule | QuantizedConv2d):
            option: Place = ((module.position or 0, module.option(arch)),) if isinstance(module, ChoiceBlock) else ()
            handles.append(module.register_forward_pre_hook(enter(option)))
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
    try:
        with net.path(arch):
            _run_once(net.module, net.input_shape, counter)
    finally:
        for handle in handles:
            handle.remove()
    found.add((), counter.get_total_flops() // 2 - sum(found.costs.values()) - sum(within.values()))
    for (place, layer), cost in within.items():
        names = tuple(name for name, weight in layer.named_parameters(recurse=False) if weight.dim() > 1)
        count = elements(layer, names, arch)
        if count:
            found.sliced[place, layer] = SlicedCost(names, Fraction(cost, count))
        else:
            found.add(place, cost)
    return found


def _run_once(module: nn.Module, input_shape: Sequence[int], counter: FlopCounterMode) -> None:
    """Run one image of zeros through a module in eval mode, under `counter`, and restore its modes."""
    weight = next(module.parameters(), torch.empty(0))
    image = torch.zeros(1, *input_shape, device=weight.device, dtype=weight.dtype)
    modes = [(m, m.training) for m in module.modules()]
    fused_attention = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know fused attention
        module.eval()
        with torch.no_grad(), use_backend("reference"), sdpa_kernel(SDPBackend.MATH), counter:
            module(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused_attention)
        for layer, training in modes:
            layer.training = training


def count_flops(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Return the multiply-accumulates of a plain module, such as an extracted child, for one image (C, H, W)."""
    counter = FlopCounterMode(display=False)
    _run_once(module, input_shape, counter)
    return int(counter.get_total_flops()) // 2


def measure_bitops(net: Supernet, arch: Arch) -> Measurement:
    """Run one image along `arch` and attribute each quantized multiply-accumulate, times the bits of its two factors.

    What has no number of bits counts nothing. ValueError for a network without quantized layers.
    """
    if not has_bits(net):
        raise ValueError(f"{net.name} has no quantized layer: bitops are known of spaces with bit widths")
    macs = measure_flops(net, arch)
    found = Measurement(dict.fromkeys(macs.costs, 0), {}, macs.shapes)
    for (place, layer), count in macs.quantized.items():
        found.add(place, count * layer.w_bits * layer.a_bits)
    for (place, module), cost in macs.sliced.items():
        if isinstance(module, SlicedQuantizedConv2d):
            found.sliced[place, module] = replace(cost, by_bits=True)
    return found


def count_bitops(module: nn.Module, input_shape: Sequence[int]) -> float:
    """Return the bit operations of a plain module, such as an extracted child, for one image, in the unit of
    `spos.bitops`.
    """
    counter, started, total = FlopCounterMode(display=False), 0, 0

    def enter(*_: object) -> None:
        nonlocal started
        started = counter.get_total_flops()

    def leave(layer: nn.Module, *_: object) -> None:
        nonlocal total
        assert isinstance(layer, QuantizedConv2d)
        total += (counter.get_total_flops() - started) // 2 * layer.w_bits * layer.a_bits

    layers = [layer for layer in module.modules() if isinstance(layer, QuantizedConv2d)]
    handles = [h for m in layers for h in (m.register_forward_pre_hook(enter), m.register_forward_hook(leave))]
    try:
        _run_once(module, input_shape, counter)
    finally:
        for handle in handles:
            handle.remove()
    return total / BITOPS_UNIT


def measure_params(net: Supernet, arch: Arch) -> Measurement:
    """Count trainable weights on the path, each under the innermost branch that holds it."""
    found = Measurement()

    def visit(module: nn.Module, place: Place) -> None:
        if isinstance(module, ChoiceBlock):
            visit(module.chosen(arch), (*place, (module.position or 0, module.option(arch))))
            return
        found.add(place, 0)  # a branch without weights is an option too
        new = []
        for name, weight in module.named_parameters(recurse=False):
            if not weight.requires_grad:
                continue
            if id(weight) not in found.owners:
                found.owners[id(weight)] = place
                new.append(name)
            # A weight that several branches share costs once on a path, so their costs do not add up.
            found.additive &= found.owners[id(weight)] == place
        if isinstance(module, SlicedModule) and new:
            found.sliced[place, module] = SlicedCost(tuple(new), Fraction(1))
        else:
            found.add(place, sum(module.get_parameter(name).numel() for name in new))
        for child in module.children():
            visit(child, place)

    visit(net.module, ())
    return found
