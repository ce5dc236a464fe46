"""Gradients of sliced weights, kept where they were touched instead of in full-size tensors of mostly zeros.

By default the sliced operations have the gradient that autograd asks for: as large as the parameter, zero outside the
slice. A sink is the cheaper way for training: the kernels write the slice's gradient into a buffer of their own and
note which extent of it they touched; `.grad` stays None. What a step costs then goes with the slice, not with the
parameter.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Extent", "GradientSink", "sliced_parameter"]


class Extent(NamedTuple):
    """A rectangle of a parameter: half-open ranges of its first dimension (rows) and of its second (columns).

    The columns of a parameter of one dimension are 0 to 1.
    """

    row_begin: int
    row_end: int
    column_begin: int
    column_end: int

    def of(self, tensor: Tensor) -> Tensor:
        """Return the view of `tensor` that this extent covers."""
        rows = tensor.narrow(0, self.row_begin, self.row_end - self.row_begin)
        if tensor.ndim == 1:
            return rows
        return rows.narrow(1, self.column_begin, self.column_end - self.column_begin)


class _Current(threading.local):
    # An attribute of an instance, as in backends.py: torch.compile guards it.
    def __init__(self) -> None:
        self.sink: GradientSink | None = None


_current = _Current()


class _Slot:
    """A parameter's buffer, and the disjoint extents of it that hold a gradient."""

    def __init__(self) -> None:
        self.buffer: Tensor | None = None
        self.touched: list[Extent] = []


class GradientSink:
    """Context manager: sliced operations on `parameters` called inside send those parameters' gradients here.

        sink = sk.GradientSink(net.parameters())
        optimizer = sk.SGD(net.parameters(), lr=0.1, momentum=0.9, sink=sink)
        with sink:
            loss = criterion(net(images), labels)
        loss.backward()     # inside or outside: the forward pass decides
        sink.clip_grad_norm_(5.0)
        optimizer.step()    # reads the sink and empties it

    parameters: leaf tensors that require gradients, float32 or float64, at least one dimension. Those that no sliced
    operation meets keep their gradients in `.grad`. In a step, the first gradient of an element is stored and later
    ones are added to it. Buffers are as large as the parameters, allocated at first use and never zero-filled. Tensor
    hooks of a parameter do not see a gradient that goes here, and other optimizers do not either. Every backward pass
    through such a call writes, also one that torch.autograd.grad was asked for with other tensors in mind.

    Raises TypeError (not a tensor, dtype) or ValueError (not a leaf, no gradient required, no dimension).
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._slots: dict[Tensor, _Slot] = {}
        for index, parameter in enumerate(parameters):
            _check(parameter, f"parameters[{index}]")
            self._slots[parameter] = _Slot()
        self._previous: list[GradientSink | None] = []  # one sink may be entered again inside of itself

    def __enter__(self) -> GradientSink:
        self._previous.append(_current.sink)
        _current.sink = self
        return self

    def __exit__(self, *exception: object) -> None:
        _current.sink = self._previous.pop()

    def __contains__(self, parameter: Tensor) -> bool:
        return parameter in self._slots

    def extents(self, parameter: Tensor) -> tuple[Extent, ...]:
        """Return the disjoint extents of `parameter` that hold a gradient now; none for a parameter of no sink."""
        slot = self._slots.get(parameter)
        return tuple(slot.touched) if slot else ()

    def buffer(self, parameter: Tensor) -> Tensor:
        """Return the buffer of `parameter`, in its shape and layout: meaningful in `extents(parameter)` only."""
        slot = self._slots[parameter]
        buffer = slot.buffer
        # A module that moved to another layout or dtype keeps its Parameter objects: the buffer has to follow.
        if (
            buffer is None
            or buffer.shape != parameter.shape
            or buffer.stride() != parameter.stride()
            or buffer.dtype != parameter.dtype
            or buffer.device != parameter.device
        ):
            slot.touched.clear()
            buffer = slot.buffer = torch.empty_like(parameter, requires_grad=False)
        return buffer

    def gradient(self, parameter: Tensor) -> Tensor | None:
        """Return what the sink holds for `parameter` as a new tensor with zeros elsewhere; None if that is nothing."""
        extents = self.extents(parameter)
        if not extents:
            return None
        buffer, result = self.buffer(parameter), torch.zeros_like(parameter, requires_grad=False)
        for extent in extents:
            extent.of(result).copy_(extent.of(buffer))
        return result

    def reserve(self, parameter: Tensor, extent: Extent) -> tuple[Tensor, bool]:
        """Note that a gradient of `extent` is about to be written; return the buffer, and whether to add to it.

        Where nothing of the extent was touched before, the writer stores. Otherwise it adds: what was not yet touched
        is set to zero here first.
        """
        buffer, touched = self.buffer(parameter), self._slots[parameter].touched
        if not touched:
            touched.append(extent)
            return buffer, False
        fresh = _without(extent, touched)
        add = fresh != [extent]
        if add:
            for piece in fresh:
                piece.of(buffer).zero_()
        touched.extend(fresh)
        return buffer, add

    def accumulate(self, parameter: Tensor, extent: Extent, gradient: Tensor) -> None:
        """Take over a gradient that has the shape of `extent`."""
        buffer, add = self.reserve(parameter, extent)
        view = extent.of(buffer)
        _ = view.add_(gradient) if add else view.copy_(gradient)

    def zero_grad(self) -> None:
        """Forget all gradients. The buffers stay as they are."""
        for slot in self._slots.values():
            slot.touched.clear()

    def merge(self, parameter: Tensor) -> None:
        """Where `parameter` has a gradient in `.grad` as well, add what the sink holds to it, and forget it here."""
        if parameter.grad is None or not self.extents(parameter):
            return
        buffer = self.buffer(parameter)
        for extent in self.extents(parameter):
            extent.of(parameter.grad).add_(extent.of(buffer))
        self._slots[parameter].touched.clear()

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """`torch.nn.utils.clip_grad_norm_` over the sink's parameters: their gradients here and in `.grad` together.

        Returns the norm before clipping. Raises ValueError for a negative or nonsensical max_norm.
        """
        if not max_norm >= 0:
            raise ValueError(f"max_norm = {max_norm!r}: accepted are numbers from 0")
        gradients: list[Tensor] = []
        for parameter in self._slots:
            self.merge(parameter)
            if parameter.grad is not None:
                gradients.append(parameter.grad)
            extents = self.extents(parameter)
            if extents:
                buffer = self.buffer(parameter)
                gradients.extend(extent.of(buffer) for extent in extents)
        norm = torch.nn.utils.get_total_norm(gradients, norm_type)
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale)
        return norm


def active_sink(parameter: Tensor) -> GradientSink | None:
    """Return the sink that a gradient of `parameter` computed by this call belongs to, if there is one.

    RuntimeError under torch.compile, whose backward passes know nothing of sinks.
    """
    sink = _current.sink
    if sink is None:
        return None
    if torch.compiler.is_compiling():
        raise RuntimeError("a GradientSink does not work under torch.compile: call the compiled function outside of it")
    return sink if parameter in sink and parameter.requires_grad and torch.is_grad_enabled() else None


def sliced_parameter(parameter: Tensor, length: int, offset: int = 0) -> Tensor:
    """Return parameter[offset:offset + length], for operations that do not slice themselves (batch normalisation, say).

    Inside a sink that has `parameter`, its gradient goes there; elsewhere this is the plain slice. At least one
    dimension. Raises ValueError where the range leaves the parameter.
    """
    if length < 0 or offset < 0 or offset + length > parameter.shape[0]:
        raise ValueError(
            f"offset = {offset!r}, length = {length!r}: accepted are ranges within the {parameter.shape[0]} rows of "
            "parameter"
        )
    columns = parameter.shape[1] if parameter.ndim > 1 else 1
    return slice_of(parameter, Extent(offset, offset + length, 0, columns))


def slice_of(parameter: Tensor, extent: Extent) -> Tensor:
    """Return the view of `extent`, whose gradient goes to the active sink if that has `parameter`."""
    sink = active_sink(parameter)
    return extent.of(parameter) if sink is None else _Slice.apply(parameter, extent, sink)


class _Slice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Tensor, extent: Extent, sink: GradientSink) -> Tensor:
        ctx.parameter, ctx.extent, ctx.sink = parameter, extent, sink
        return extent.of(parameter)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        ctx.sink.accumulate(ctx.parameter, ctx.extent, gradient)
        return None, None, None


def _check(parameter: Tensor, name: str) -> None:
    if not isinstance(parameter, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(parameter).__name__}")
    if parameter.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} has dtype {parameter.dtype}: accepted are torch.float32 and torch.float64")
    if not parameter.is_leaf or not parameter.requires_grad:
        raise ValueError(
            f"{name} is no leaf that requires a gradient: accepted are parameters, not results of operations"
        )
    if parameter.ndim < 1:
        raise ValueError(f"{name} has no dimension: accepted are tensors of at least one")


def _without(extent: Extent, others: Iterable[Extent]) -> list[Extent]:
    """Return what of `extent` none of the `others` covers, as disjoint rectangles."""
    pieces = [extent]
    for other in others:
        pieces = [part for piece in pieces for part in _difference(piece, other)]
    return pieces


def _difference(a: Extent, b: Extent) -> list[Extent]:
    top, bottom = max(a.row_begin, b.row_begin), min(a.row_end, b.row_end)
    left, right = max(a.column_begin, b.column_begin), min(a.column_end, b.column_end)
    if top >= bottom or left >= right:
        return [a]
    parts = [
        Extent(a.row_begin, top, a.column_begin, a.column_end),
        Extent(bottom, a.row_end, a.column_begin, a.column_end),
        Extent(top, bottom, a.column_begin, left),
        Extent(top, bottom, right, a.column_end),
    ]
    return [part for part in parts if part.row_begin < part.row_end and part.column_begin < part.column_end]
