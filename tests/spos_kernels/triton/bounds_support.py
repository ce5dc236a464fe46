"""In Triton's interpreter, every address that a kernel reads or writes: is it one of an element it was given?

A launch may touch the spans of its tensor arguments, a slice's from its first to its last element, and those of
tensors whose addresses somebody asked for: they are in tables in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from triton.runtime import interpreter

from spos_kernels.triton.launch import Kernel


class OutOfBounds(AssertionError):
    """An access that no tensor of the launch has."""


class Bounds:
    """The spans that accesses are compared with, and the interpreter's memory operations with that comparison."""

    def __init__(self, operations: Any) -> None:
        self._operations: Any = operations._operations if isinstance(operations, Bounds) else operations
        self._asked: dict[int, int] = {}  # begin -> end
        self._launch: dict[int, int] = {}
        self.kernel = ""
        self.checked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operations, name)

    def ask(self, tensor: Tensor, begin: int) -> None:
        if not self.kernel:
            self._asked[begin] = max(self._asked.get(begin, 0), begin + span(tensor))

    def start(self, kernel: str, arguments: tuple[Any, ...]) -> None:
        self.kernel = kernel
        self._launch = dict(self._asked)
        for argument in arguments:
            if isinstance(argument, Tensor):
                begin = address(argument)
                self._launch[begin] = max(self._launch.get(begin, 0), begin + span(argument))
        begins = sorted(self._launch)
        self._begins = np.array(begins, dtype=np.uint64)
        # Of spans that begin before an address, the one that ends last.
        self._ends = np.maximum.accumulate(np.array([self._launch[begin] for begin in begins], dtype=np.uint64))

    def check(self, addresses: NDArray[np.uint64], mask: NDArray[np.bool_], size: int, what: str) -> None:
        at = np.asarray(addresses)[np.asarray(mask, dtype=bool)].astype(np.uint64)
        if not at.size:
            return
        self.checked += at.size
        place = np.searchsorted(self._begins, at, side="right")
        bad = (place == 0) | (at + np.uint64(size) > self._ends[np.maximum(place, 1) - 1])
        if bad.any():
            raise OutOfBounds(f"{self.kernel} {what} outside of its tensors: {int(bad.sum())} of {at.size} addresses")

    def load(self, addresses: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self.check(addresses, mask, np.dtype(dtype).itemsize, "reads")
        return self._operations.load(addresses, mask, other, dtype)

    def store(self, addresses: Any, value: Any, mask: Any) -> Any:
        self.check(addresses, mask, value.dtype.itemsize, "writes")
        return self._operations.store(addresses, value, mask)

    def atomic_rmw(self, operation: Any, addresses: Any, value: Any, mask: Any, order: Any) -> Any:
        self.check(addresses, mask, value.dtype.itemsize, "changes")
        return self._operations.atomic_rmw(operation, addresses, value, mask, order)


def address(tensor: Tensor) -> int:
    return torch._C.TensorBase.data_ptr(tensor)


def span(tensor: Tensor) -> int:
    """Return the bytes from the first element to the end of the last."""
    if not tensor.numel():
        return 0
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


@contextmanager
def checked_bounds(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bounds]:
    """Compare every access of the launches in this context."""
    bounds = Bounds(interpreter._interpreter)
    launch = Kernel.launch

    def data_ptr(tensor: Tensor) -> int:
        begin = address(tensor)
        bounds.ask(tensor, begin)
        return begin

    def checked_launch(kernel: Kernel, grid: Any, *arguments: Any, **constants: Any) -> None:
        bounds.start(kernel.name, arguments)
        try:
            launch(kernel, grid, *arguments, **constants)
        finally:
            bounds.kernel = ""

    with monkeypatch.context() as patch:
        patch.setattr(interpreter, "_interpreter", bounds)
        patch.setattr(Tensor, "data_ptr", data_ptr, raising=False)
        patch.setattr(Kernel, "launch", checked_launch)
        yield bounds
