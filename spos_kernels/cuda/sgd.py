"""SGD on the CUDA kernels: a table of what a step updates, in the memory of the GPU, and one launch over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spos_kernels.cuda.modules import module_of, stream_of

__all__ = ["PreparedStep", "Update"]


class Update(NamedTuple):
    """Runs of elements of a parameter, of its gradient and of its momentum, which lie alike: what SgdTable takes.

    rate: the index of the learning rate. choice: an int32 that has to be `chosen` for anything to change. row_count,
    column_count: int32, how many of the rows and columns are updated, in units of row_unit and column_unit of them.
    """

    parameter: Tensor
    gradient: Tensor
    buffer: Tensor | None
    offset: int
    rows: int
    length: int
    stride: int
    momentum: float
    weight_decay: float
    nesterov: bool
    rate: int
    choice: Tensor | None = None
    chosen: int = 0
    row_count: Tensor | None = None
    row_unit: int = 1
    column_count: Tensor | None = None
    column_unit: int = 1


class PreparedStep:
    """One step over these tensors, in place, as often as it is `run`: a single launch, which a CUDA graph can capture.

    max_norm: if not 0, gradients count as scaled down to a norm, over all that is updated, of at most that, as by
    `torch.nn.utils.clip_grad_norm_`. It is one more launch.

    Everything that may change from run to run is read on the GPU: gradients, the choices and widths that the updates
    name, and the learning rates, which `set_rates` writes. The tensors have to stay where they are.
    """

    def __init__(
        self,
        updates: Sequence[Update],
        rates: Sequence[float],
        device: torch.device,
        backend: str,
        max_norm: float = 0.0,
    ) -> None:
        if device.type == "cuda" and _is_capturing(device):
            raise RuntimeError("SGD in a CUDA graph: prepare() the step before the capture, and capture its run()")
        self._updates = list(updates)  # keeps their memory
        self._native = module_of(backend).SgdTable(self._updates, len(rates))
        data = bytearray(self._native.data())
        table = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        self._table = _pinned(table, device).to(device, non_blocking=True)
        self._rates = torch.empty(len(rates), dtype=torch.float32, device=device)
        self.set_rates(rates)
        self._max_norm = max_norm
        self._scale: Tensor | None = None
        if max_norm:
            self._scale = torch.ones(1, dtype=torch.float32, device=device)
            self._parts = torch.empty(self._native.size(), dtype=torch.float64, device=device)
            self._counter = torch.zeros(1, dtype=torch.int32, device=device)

    def set_rates(self, rates: Sequence[float]) -> None:
        """Write the learning rates for the runs to come. Not for the inside of a CUDA graph."""
        self._rates.copy_(_pinned(torch.tensor(rates, dtype=torch.float32), self._rates.device), non_blocking=True)

    def run(self) -> None:
        """Update everything once."""
        stream = stream_of(self._rates)
        if self._scale is not None:
            self._native.clip(self._table, self._max_norm, self._parts, self._counter, self._scale, stream)
        self._native.run(self._table, self._rates, self._scale, stream)
        # What autograd has saved of them is out of date now: it has to notice. (It cannot where a graph is replayed.)
        torch.autograd.graph.increment_version([update.parameter for update in self._updates])


def _is_capturing(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` where a copy to the device need not be waited for."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
