"""Blocks one after another as one operation: the whole path through a network of choice blocks.

A network of twenty small blocks spends a tenth of its time between them, in Python and in autograd. Here it crosses
into the extension once for each pass, and the gradients between the blocks never become tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from spos_kernels.backends import is_autocast, is_plain, takes_kernels
from spos_kernels.choice_block import choice_block, run_links
from spos_kernels.choice_block_reference import (
    Branch,
    ConvBN,
    Link,
    check_options,
    check_tensor,
    choice_block_reference,
    describe,
)
from spos_kernels.conv_norm_relu import as_pointwise, check_arguments, conv_norm_relu, conv_norm_relu_reference

__all__ = ["choice_block_chain", "choice_block_chain_reference"]


def choice_block_chain(
    x: Tensor,
    links: Sequence[Link],
    *,
    training: bool = True,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Run `choice_block`, or `conv_norm_relu` for a link that is `whole`, of each link on the result of the one before.

    x: [N, C, H, W] as in `choice_block`. links: at least one, each with the tensors of the option that the path takes.
    training, momentum, eps: those of all blocks.

    Returns the last block's output, to the bit what the blocks return one by one, as are all gradients and running
    statistics. The gradients arrive together, when backward is through with the first block. For backward it keeps
    what the blocks keep, but frees none of it before backward is through with all: the peak is some 10 % higher.

    Raises TypeError or ValueError, naming link and argument, before anything has run.
    """
    if type(links) in (list, tuple) and links:
        y = _run(x, tuple(links), training, momentum, eps)
        if y is not None:
            return y
    return _one_by_one(x, links, training, momentum, eps, choice_block, conv_norm_relu)


def choice_block_chain_reference(
    x: Tensor,
    links: Sequence[Link],
    *,
    training: bool = True,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`choice_block_chain` in plain PyTorch: same arguments, result and errors, on every device."""
    return _one_by_one(x, links, training, momentum, eps, choice_block_reference, conv_norm_relu_reference)


def _run(x: Tensor, links: tuple[Link, ...], training: bool, momentum: float | None, eps: float) -> Tensor | None:
    """Run a chain that is plain and right as one operation, else return None."""
    first = links[0]
    if type(first) is Link and first.whole is True and _is_stem(x, first):
        x, layer = as_pointwise(x, first.branch.main[0], first.stride, _padding(first))
        links = (Link(Branch((layer,)), whole=True), *links[1:])
    return run_links(x, links, training, momentum, eps)


def _is_stem(x: Tensor, link: Link) -> bool:
    """Whether the first link is a k×k convolution of images that need no gradient."""
    try:
        layer = link.branch.main[0]
        check_arguments(x, layer, link.stride, _padding(link), False, 0.0, 1.0)
    except (AttributeError, IndexError, TypeError, ValueError):
        return False
    wide = layer.weight.shape[-1] > 1 and is_plain(x, layer.weight) and takes_kernels() and not is_autocast(x)
    return wide and x.shape[0] > 0 and x.is_cpu and not (x.requires_grad and torch.is_grad_enabled())


def _padding(link: Link) -> int:
    return link.branch.main[0].weight.shape[-1] // 2


def _one_by_one(
    x: Tensor,
    links: Sequence[Link],
    training: bool,
    momentum: float | None,
    eps: float,
    block: Callable[..., Tensor],
    whole: Callable[..., Tensor],
) -> Tensor:
    _check(x, links, training, momentum, eps)
    options: dict[str, Any] = {"training": training, "momentum": momentum, "eps": eps}
    for link in links:
        if link.whole:
            x = whole(x, link.branch.main[0], stride=link.stride, padding=_padding(link), **options)
        else:
            x = block(x, (link.branch,), 0, stride=link.stride, **options)
    return x


def _check(x: Tensor, links: Sequence[Link], training: bool, momentum: float | None, eps: float) -> None:
    """Check all blocks before one runs: a chain that is refused half way would have moved statistics."""
    check_options(1, training, momentum, eps)
    check_tensor(x, "x")
    if isinstance(links, Link) or not isinstance(links, Sequence):
        raise TypeError(f"links is a {type(links).__name__}: expected a sequence of Link")
    if not links:
        raise ValueError("links is empty: expected at least one Link")
    for index, link in enumerate(links):
        name = f"links[{index}]"
        if not isinstance(link, Link):
            raise TypeError(f"{name} is a {type(link).__name__}: expected a Link")
        if not isinstance(link.branch, Branch):
            raise TypeError(f"{name}.branch is a {type(link.branch).__name__}: expected a Branch")
        if not isinstance(link.whole, bool):
            raise TypeError(f"{name}.whole = {link.whole!r}: expected a bool")
        if link.whole:
            _check_whole(link.branch, name)
        try:
            if link.whole:
                (layer,) = link.branch.main
                stride, padding = link.stride, _padding(link)
                x, layer = check_arguments(x, layer, stride, padding, training, momentum, eps)
                outputs, _, kernel, _ = layer.weight.shape
                shape: Sequence[int] = (
                    x.shape[0],
                    outputs,
                    *((n + 2 * padding - kernel) // stride + 1 for n in x.shape[2:]),
                )
            else:
                block = describe(x, (link.branch,), 0, link.stride, training, momentum, eps)
                x, shape = block.x, block.shape
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
        x = x.new_empty(()).expand(shape)  # a tensor of the right shape that takes no memory


def _check_whole(branch: Branch, name: str) -> None:
    if not isinstance(branch.main, tuple) or len(branch.main) != 1 or branch.proj:
        raise ValueError(f"{name} is whole: expected a tuple of one convolution in main and none in proj")
    layer = branch.main[0]
    if not isinstance(layer, ConvBN) or len(layer) != len(ConvBN._fields):
        raise TypeError(f"{name}.branch.main[0] is a {type(layer).__name__}: expected a ConvBN")
    check_tensor(layer.weight, f"{name}.branch.main[0].weight")
    if layer.weight.ndim != 4:
        raise ValueError(f"{name}.branch.main[0].weight has shape {list(layer.weight.shape)}: expected [O, I, k, k]")
