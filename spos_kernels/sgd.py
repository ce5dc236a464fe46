"""Stochastic gradient descent that changes what was sampled and nothing else.

    g = gradient + weight_decay · w;   m = momentum · m + g;   w −= lr · (g + momentum · m if nesterov else m)

torch.optim.SGD (without dampening) restricted, for each parameter, to the elements that have a gradient: all of them
where `.grad` holds one, the touched extents where a `GradientSink` does. The weights and the momentum of everything
else stay as they are, to the bit, weight decay included. An element's momentum starts with its first gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from spos_kernels import _C
from spos_kernels.backends import ISA, current_backend, is_plain, is_plain_tensor, threads_for
from spos_kernels.cuda.modules import availability, is_interpreted
from spos_kernels.cuda.sgd import PreparedStep, Update
from spos_kernels.gradient_sink import Extent, GradientSink

__all__ = ["SGD", "StepCondition"]


class StepCondition(NamedTuple):
    """What decides on the GPU whether, and how much of, a parameter is updated when a prepared step runs.

    choice: torch.int32 of one element: nothing is updated unless it is `chosen`. rows, columns: torch.int32 of one
    element: how many of the parameter's first dimension, and of its second, are updated, from the beginning. Each on
    the parameter's device; None for no condition.
    """

    choice: Tensor | None = None
    chosen: int = 0
    rows: Tensor | None = None
    columns: Tensor | None = None


class SGD(torch.optim.Optimizer):
    """Update parameters by `.grad` and by what `sink` holds; see the module for the formula.

    params: parameters or parameter groups, each group with values of its own if it wants. lr: from 0. momentum,
    weight_decay: from 0. nesterov: needs momentum. sink: the `GradientSink` that sliced operations write to; `step`
    empties it, and so does `zero_grad`.

    All float32 and float64 CPU parameters of dense layout are updated by one call of the extension, all float32 CUDA
    parameters of dense layout by one launch of its kernel, others by plain PyTorch. `prepare` gives a step that a CUDA
    graph can capture. The state of a parameter is `momentum_buffer`, as in torch.optim.SGD: each loads the other's
    state_dict.

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
        on_cuda: dict[tuple[str, torch.device], list[Update]] = {}
        elements = 0
        direct, backends = is_plain(), _Backends()
        for index, group in enumerate(self.param_groups):
            options = group["momentum"], group["weight_decay"], group["nesterov"]
            rate = float(group["lr"])
            for parameter in group["params"]:
                if self._sink is None and parameter.grad is None:
                    continue  # most of a supernet's, in every step
                gradient, extents = self._gradient(parameter)
                if gradient is None:
                    continue
                buffer = self._buffer(parameter) if group["momentum"] else None
                native = direct and is_plain_tensor(parameter) and is_plain_tensor(gradient)
                native = native and gradient.stride() == parameter.stride()
                backend = backends.of(parameter) if native else None
                for extent in extents:
                    layout = None if backend is None else _runs(parameter, extent)
                    if layout is None:
                        _reference_update(parameter, gradient, buffer, extent, rate, *options)
                    elif backend == "cpu":
                        updates.append((parameter, gradient, buffer, *layout, rate, *options))
                        elements += layout[1] * layout[2]
                    else:
                        assert backend is not None
                        update = Update(parameter, gradient, buffer, *layout, *options, index)
                        on_cuda.setdefault((backend, parameter.device), []).append(update)
        if updates:
            # An element costs about as much as 16 multiply-adds of a convolution: it comes from memory.
            _C.sgd_step(updates, ISA, threads_for(16 * elements))
            # What autograd has saved of them is out of date now: it has to notice.
            torch.autograd.graph.increment_version([update[0] for update in updates])
        for (backend, device), some in on_cuda.items():
            PreparedStep(some, self._rates(), device, backend).run()
        if self._sink is not None:
            self._sink.zero_grad()
        return loss

    def prepare(
        self, conditions: Mapping[Tensor, StepCondition] | None = None, *, max_norm: float = 0.0
    ) -> PreparedStep:
        """Return a step whose `run()` is one launch that reads on the GPU whatever changes: for CUDA graphs.

        It updates the parameters that have a gradient now, each under its condition, with the gradients that are in
        these tensors when it runs: keep them (`zero_grad(set_to_none=False)`). A parameter that a condition excludes
        keeps weights and momentum, to the bit. The groups' lr is taken as it is now; hand later ones to
        `set_rates([lr of every group])`, outside of the graph. One captured graph so trains every path of a supernet.
        max_norm: the largest norm of the gradients of what a run updates, to which they are scaled down as
        `torch.nn.utils.clip_grad_norm_` does; 0 for no clipping. It takes a second launch.

        All of them on one device of which the kernels are available, float32, dense, of at most 4 dimensions; no sink.
        Raises ValueError or TypeError for what is not, and for a condition that is no int32 of one element there.
        """
        if not max_norm >= 0:
            raise ValueError(f"max_norm = {max_norm!r}: accepted are numbers from 0")
        if self._sink is not None:
            raise ValueError("sink: a prepared step reads gradients in .grad, where their address is known")
        conditions = {} if conditions is None else conditions
        updates: list[Update] = []
        devices: set[tuple[str, torch.device]] = set()
        backends = _Backends()
        for index, group in enumerate(self.param_groups):
            options = group["momentum"], group["weight_decay"], group["nesterov"]
            for parameter in group["params"]:
                gradient, _ = self._gradient(parameter)
                if gradient is None:
                    continue
                backend = backends.of(parameter)
                condition = conditions.get(parameter, StepCondition())
                layout = _conditional_runs(parameter, condition)
                same = gradient.stride() == parameter.stride()
                if backend is None or backend == "cpu" or layout is None or not same:
                    raise ValueError(
                        f"a parameter of shape {list(parameter.shape)}, {parameter.dtype}, on {parameter.device}: "
                        "accepted are dense float32 parameters of at most 4 dimensions on a device with the CUDA "
                        "kernels, with gradients of the same layout"
                    )
                devices.add((backend, parameter.device))
                buffer = self._buffer(parameter) if group["momentum"] else None
                (offset, rows, length, stride), widths = layout
                choice = condition.choice, condition.chosen
                updates.append(
                    Update(parameter, gradient, buffer, offset, rows, length, stride, *options, index, *choice, *widths)
                )
        if len(devices) != 1:
            raise ValueError(f"parameters with gradients are on {len(devices)} devices: accepted is one")
        _check_conditions(conditions)
        backend, device = devices.pop()
        return PreparedStep(updates, self._rates(), device, backend, max_norm)

    def _rates(self) -> list[float]:
        return [float(group["lr"]) for group in self.param_groups]

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


class _Backends:
    """Which backend's kernel steps a parameter, for one step."""

    def __init__(self) -> None:
        self._current = current_backend()
        names = ("cuda", "triton") if self._current in ("auto", "cpu", "cuda-emulated") else (self._current,)
        there = torch.cuda.is_available()
        self._gpu = next((n for n in names if there and n in ("cuda", "triton") and availability(n)[0]), None)

    def of(self, parameter: Tensor) -> str | None:
        """Return "cpu" or a backend of kernels for GPUs; None for plain PyTorch."""
        single = parameter.dtype == torch.float32
        if not parameter.is_cpu:
            return self._gpu if parameter.is_cuda and single else None
        emulated = self._current == "cuda-emulated" or (self._current == "triton" and is_interpreted())
        if emulated and single:
            return self._current
        return "cpu" if single or parameter.dtype == torch.float64 else None


def _runs(parameter: Tensor, extent: Extent) -> tuple[int, int, int, int] | None:
    """Return (offset, rows, length, stride) of the extent in memory, in elements; None where that is not enough."""
    if parameter.ndim > 4:
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


def _conditional_runs(
    parameter: Tensor, condition: StepCondition
) -> tuple[tuple[int, int, int, int], tuple[Tensor | None, int, Tensor | None, int]] | None:
    """Return `_runs` of the whole parameter, and (row_count, row_unit, column_count, column_unit) of `Update`.

    Where the second dimension may be cut off, the runs end with it.
    """
    if parameter.ndim > 4:
        return None
    rows = parameter.shape[0] if parameter.ndim else 1
    width = parameter.shape[1] if parameter.ndim > 1 else 1
    inner = parameter.numel() // max(rows * width, 1)
    channels_last = not parameter.is_contiguous()
    if channels_last and not (parameter.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last)):
        return None
    if condition.columns is None:
        return (0, 1, parameter.numel(), 0), (None, 1, condition.rows, max(width * inner, 1))
    if channels_last:
        return (0, rows * inner, width, width), (condition.rows, inner, condition.columns, 1)
    return (0, rows, width * inner, width * inner), (condition.rows, 1, condition.columns, max(inner, 1))


def _check_conditions(conditions: Mapping[Tensor, StepCondition]) -> None:
    for parameter, condition in conditions.items():
        for name in ("choice", "rows", "columns"):
            tensor = getattr(condition, name)
            if tensor is None:
                continue
            if tensor.dtype != torch.int32:
                raise TypeError(f"{name} of a condition has dtype {tensor.dtype}: accepted is torch.int32")
            if tensor.numel() != 1:
                raise ValueError(f"{name} of a condition has shape {list(tensor.shape)}: expected one element")
            if tensor.device != parameter.device:
                raise ValueError(f"{name} of a condition is on {tensor.device}: expected {parameter.device}")
        if condition.columns is not None and parameter.ndim < 2:
            raise ValueError("columns of a condition: the parameter has one dimension, accepted is None")


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
