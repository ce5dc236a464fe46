"""Stochastic gradient descent that changes what was sampled and nothing else.

    g = gradient + weight_decay · w;   m = momentum · m + g;   w −= lr · (g + momentum · m if nesterov else m)

torch.optim.SGD (without dampening) restricted, for each parameter, to the elements that have a gradient: all of them
where `.grad` holds one, the touched extents where a `GradientSink` does. The weights and the momentum of everything
else stay as they are, to the bit, weight decay included. An element's momentum starts with its first gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

from spos_kernels import _C
from spos_kernels.backends import ISA, is_plain, is_plain_tensor, threads_for
from spos_kernels.gradient_sink import Extent, GradientSink

__all__ = ["SGD"]


class SGD(torch.optim.Optimizer):
    """Update parameters by `.grad` and by what `sink` holds; see the module for the formula.

    params: parameters or parameter groups, each group with values of its own if it wants. lr: from 0. momentum,
    weight_decay: from 0. nesterov: needs momentum. sink: the `GradientSink` that sliced operations write to; `step`
    empties it, and so does `zero_grad`.

    All float32 and float64 CPU parameters of dense layout are updated by one call of the extension, others by plain
    PyTorch. The state of a parameter is `momentum_buffer`, as in torch.optim.SGD: each loads the other's state_dict.

    Raises ValueError for a value out of range, TypeError for a sparse gradient.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        sink: GradientSink | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov})
        self._sink = sink

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        group = {**self.defaults, **param_group}
        for name in ("lr", "momentum", "weight_decay"):
            if not group[name] >= 0:
                raise ValueError(f"{name} = {group[name]!r}: accepted are numbers from 0")
        if group["nesterov"] and not group["momentum"]:
            raise ValueError(f"nesterov = {group['nesterov']!r}: needs a momentum above 0")
        super().add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, those of the sink too."""
        super().zero_grad(set_to_none)
        if self._sink is not None:
            self._sink.zero_grad()

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every element that has a gradient, then empty the sink; return the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        updates: list[tuple[Any, ...]] = []
        elements = 0
        direct = is_plain()
        for group in self.param_groups:
            factors = (float(group["lr"]), group["momentum"], group["weight_decay"], group["nesterov"])
            for parameter in group["params"]:
                if self._sink is None and parameter.grad is None:
                    continue  # most of a supernet's, in every step
                gradient, extents = self._gradient(parameter)
                if gradient is None:
                    continue
                buffer = self._buffer(parameter) if group["momentum"] else None
                native = direct and is_plain_tensor(parameter) and is_plain_tensor(gradient)
                native = native and gradient.stride() == parameter.stride()
                for extent in extents:
                    layout = _runs(parameter, extent) if native else None
                    if layout is None:
                        _reference_update(parameter, gradient, buffer, extent, *factors)
                    else:
                        updates.append((parameter, gradient, buffer, *layout, *factors))
                        elements += layout[1] * layout[2]
        if updates:
            # An element costs about as much as 16 multiply-adds of a convolution: it comes from memory.
            _C.sgd_step(updates, ISA, threads_for(16 * elements))
            # What autograd has saved of them is out of date now: it has to notice.
            torch.autograd.graph.increment_version([update[0] for update in updates])
        if self._sink is not None:
            self._sink.zero_grad()
        return loss

    def _gradient(self, parameter: Tensor) -> tuple[Tensor | None, tuple[Extent, ...]]:
        """Return a tensor like `parameter` that holds its gradient, and where."""
        if self._sink is not None:
            self._sink.merge(parameter)
            extents = self._sink.extents(parameter)
            if extents:
                return self._sink.buffer(parameter), extents
        gradient = parameter.grad
        if gradient is None:
            return None, ()
        if gradient.layout is not torch.strided:
            raise TypeError(f"a gradient has layout {gradient.layout}: accepted is torch.strided")
        rows = parameter.shape[0] if parameter.ndim else 1
        return gradient, (Extent(0, rows, 0, parameter.shape[1] if parameter.ndim > 1 else 1),)

    def _buffer(self, parameter: Tensor) -> Tensor:
        buffer: Tensor | None = self.state[parameter].get("momentum_buffer")
        if buffer is not None and buffer.stride() == parameter.stride():
            return buffer
        if buffer is None:
            buffer = torch.zeros_like(parameter)
        else:  # of a module that moved to another layout, or from a state_dict
            buffer = torch.empty_like(parameter).copy_(buffer)
        self.state[parameter]["momentum_buffer"] = buffer
        return buffer


def _runs(parameter: Tensor, extent: Extent) -> tuple[int, int, int, int] | None:
    """Return (offset, rows, length, stride) of the extent in memory, in elements; None where that is not enough."""
    if not parameter.is_cpu or parameter.dtype not in (torch.float32, torch.float64) or parameter.ndim > 4:
        return None
    if parameter.ndim < 2:
        return extent.row_begin, 1, extent.row_end - extent.row_begin, 0
    rows, columns = extent.row_end - extent.row_begin, extent.column_end - extent.column_begin
    width = parameter.shape[1]
    inner = parameter.numel() // max(parameter.shape[0] * width, 1)  # positions of the kernel
    if parameter.is_contiguous():
        stride, length, outer = width * inner, columns * inner, rows
        offset = extent.row_begin * stride + extent.column_begin * inner
    elif parameter.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
        stride, length, outer = width, columns, rows * inner
        offset = extent.row_begin * inner * width + extent.column_begin
    else:
        return None
    return (offset, 1, outer * length, 0) if length == stride else (offset, outer, length, stride)


def _reference_update(
    parameter: Tensor,
    gradient: Tensor,
    buffer: Tensor | None,
    extent: Extent,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """One extent in plain PyTorch, on every device and of every layout."""
    views = (t if t is None or t.ndim == 0 else extent.of(t) for t in (parameter, gradient, buffer))
    w, g, m = views
    assert w is not None and g is not None
    if weight_decay:
        g = g.add(w, alpha=weight_decay)
    if m is not None:
        m.mul_(momentum).add_(g)
        g = g.add(m, alpha=momentum) if nesterov else m
    w.add_(g, alpha=-lr)
