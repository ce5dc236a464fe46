"""Calls of low-bit operations like earlier ones: past the checks, which take longer than a product of one row.

What follows from the shapes, dtypes and options of a call is kept with its weight, under these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spos_kernels import _C, lowbit_products
from spos_kernels.backends import is_plain, is_plain_tensor, takes_kernels
from spos_kernels.lowbit_methods import chosen
from spos_kernels.lowbit_products import Call, Quantizer, launch_of, prepared
from spos_kernels.packing import PackedWeight

MOST_SHORTCUTS = 64  # of a weight
Sizes = tuple[int, ...]
_SIMPLE = (type(None), bool, int, tuple, Quantizer)
_NUMBERS = {bool, int, float}


class View(NamedTuple):
    """Sizes and strides under which the memory of a tensor is what is wanted of it."""

    size: Sizes
    stride: Sizes

    def of(self, tensor: Tensor) -> Tensor:
        return tensor if tensor.shape == self.size and tensor.stride() == self.stride else tensor.as_strided(*self)


class Shortcut(NamedTuple):
    """What a call like an earlier one needs no more checks for: all that follows from shapes, dtypes and options."""

    x: View
    residual: View | None
    result: View
    rows: tuple[int, int]  # of the results as the kernel writes them
    wanted: tuple[bool, bool, bool]  # sums, floats, codes
    weight: tuple[Tensor, Tensor, Tensor, Tensor | None]  # the kernel's arguments behind x
    options: tuple[Sizes, Sizes, tuple[float | None, ...], bool, int, _C.Isa, int]  # and the last ones


def shortcut_key(
    x: Tensor, weight: PackedWeight, bias: Tensor | None, residual: Tensor | None, *options: object
) -> tuple[object, ...] | None:
    """Return what a call is remembered by in `weight.shortcuts`; None for one that is not plain tensors on the kernels.

    Two calls with the same key pass the same checks, and what they need of their tensors is the same.
    """
    if torch.compiler.is_compiling() or not isinstance(weight, PackedWeight):
        return None
    key: list[object] = []
    for option in options:  # with types, for True is 1, and a tuple equals a quantizer
        if type(option) not in _SIMPLE or (isinstance(option, tuple) and not _NUMBERS.issuperset(map(type, option))):
            return None
        key += (option, type(option))
        if isinstance(option, tuple):
            key += map(type, option)
    key += (torch.get_num_threads(), lowbit_products.ISA, lowbit_products.methods_of)  # what the plan depends on
    for tensor in (x, bias, residual):
        if tensor is None:
            key.append(None)
        elif is_plain_tensor(tensor) and tensor.is_cpu and tensor.layout is torch.strided:
            key += (tensor.shape, tensor.stride(), tensor.dtype)
        else:
            return None
    if not takes_kernels() or not is_plain():
        return None
    return tuple(key)


def remember(
    key: tuple[object, ...] | None,
    call: Call,
    given: Sequence[Tensor | None],
    results: Tensor | tuple[Tensor, Tensor],
) -> None:
    """Keep what a call that has run came to, if it read the tensors given where they lie: others will be read alike.

    given: x, bias and residual as the caller has them. results: what the caller is given.
    """
    if key is None or not all(map(_shares, given, (call.x, call.bias, call.residual))):
        return
    shortcuts = call.weight.shortcuts
    if key not in shortcuts:  # the second of its kind makes one, for where a scale changes at every call it never pays
        if len(shortcuts) >= MOST_SHORTCUTS:
            shortcuts.clear()
        shortcuts[key] = None
        return
    result = results if isinstance(results, Tensor) else results[0]
    weight, launch = call.weight, launch_of(call)
    multiplier = weight.multiplier(call.quantizer.scale)
    how = prepared(launch, weight.sums.shape[0])
    method = chosen(how.key, how.methods)
    if method is None:  # another thread has dropped the plans
        return
    shortcuts[key] = Shortcut(
        View(tuple(call.x.shape), call.x.stride()),
        None if call.residual is None else View(tuple(call.residual.shape), call.residual.stride()),
        View(tuple(result.shape), result.stride()),
        (how.rows, how.columns),
        (multiplier is None, multiplier is not None and (call.keep or call.out is None), call.out is not None),
        (weight.packed, weight.sums, weight.twice_zero, multiplier),
        (launch.sizes, launch.numbers, launch.scales, call.relu, method, lowbit_products.ISA, how.threads),
    )


def _shares(given: Tensor | None, used: Tensor | None) -> bool:
    return given is used is None or (
        given is not None and used is not None and given.numel() > 0 and given.data_ptr() == used.data_ptr()
    )


def run_shortcut(
    found: Shortcut, x: Tensor, weight: PackedWeight, bias: Tensor | None, residual: Tensor | None
) -> Tensor | tuple[Tensor, Tensor]:
    """Run a call that is like a remembered one."""
    beside = None if residual is None or found.residual is None else found.residual.of(residual)
    sums, floats, codes = found.wanted
    results = (
        torch.empty(found.rows, dtype=torch.int64) if sums else None,
        torch.empty(found.rows, dtype=weight.dtype) if floats else None,
        torch.empty(found.rows, dtype=torch.uint8) if codes else None,
    )
    packed, code_sums, twice_zero, multiplier = found.weight
    tensors = (found.x.of(x), packed, code_sums, twice_zero, multiplier, bias, beside, *results)
    _C.lowbit_conv2d(*tensors, *found.options)
    shaped = [found.result.of(rows) for rows in results if rows is not None]
    return shaped[0] if len(shaped) == 1 else (shaped[0], shaped[1])
