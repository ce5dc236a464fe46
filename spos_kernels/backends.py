"""Which implementation runs an operation: "cpu", "cuda" and "triton" (kernels), "reference" (plain PyTorch) or "auto".

"cuda-emulated" runs the kernels of "cuda" on CPU tensors and checks each of their accesses: slow, it is for tests. So
is "triton" on CPU tensors, in Triton's interpreter, where TRITON_INTERPRET=1 is set.

The choice is made at forward and travels with the autograd graph, so a backward pass outside the `with` block runs on
the backend that its forward pass ran on. An explicit backend never falls back to another one. "auto", the default,
takes the compiled kernels for CPU tensors; for CUDA tensors those of the CUDA module, and of Triton where that module
was not compiled; the reference for tensors elsewhere, in forward-mode AD and under torch.func transforms (grad, vmap,
jvp), which the kernels do not support.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from spos_kernels import _C
from spos_kernels.cuda.modules import availability, is_interpreted

__all__ = ["BackendStatus", "backends", "isa", "use_backend"]

NAMES = ("auto", "cpu", "cuda", "cuda-emulated", "triton", "reference")
GPU = ("cuda", "cuda-emulated", "triton")  # those whose kernels are written for GPUs


class BackendStatus(NamedTuple):
    """Whether a backend can be used here, and what it is, or why it cannot be used."""

    available: bool
    reason: str


class _Current(threading.local):
    # Set on the instance, for each thread: torch.compile guards instance attributes, so a compiled function is traced
    # again under another backend. A context variable would break its graph.
    def __init__(self) -> None:
        self.backend = "auto"


_current = _Current()


class use_backend:
    """Context manager: run the operations of this thread on backend `name`.

    name: "auto", "cpu", "cuda", "cuda-emulated", "triton" or "reference". Raises ValueError for any other,
    RuntimeError for one that is not available here (see `backends`).
    """

    def __init__(self, name: str) -> None:
        if name not in NAMES:
            raise ValueError(f"name = {name!r}: accepted are {', '.join(map(repr, NAMES))}")
        if name in GPU and not (status := backends()[name]).available:
            raise RuntimeError(f"backend {name!r} is not available: {status.reason}")
        self._name = name
        self._previous: list[str] = []  # one object may be entered again inside of itself

    def __enter__(self) -> None:
        self._previous.append(_current.backend)
        _current.backend = self._name

    def __exit__(self, *exception: object) -> None:
        _current.backend = self._previous.pop()


def backends() -> dict[str, BackendStatus]:
    """Every backend by name: whether it is available on this machine, and what it is or why it is not."""
    return {
        "cpu": BackendStatus(True, f"compiled kernels for CPU tensors, {isa()} instructions"),
        **{name: BackendStatus(*availability(name)) for name in GPU},
        "reference": BackendStatus(True, "plain PyTorch, on every device"),
    }


def isa() -> str:
    """Return the instruction set of the compiled kernels: "amx", "avx512", "avx2" or "portable".

    It is the best one that the processor has, or the one named by the environment variable SPOS_ISA when this package
    was imported.
    """
    return ISA.name


def resolve_backend(x: Tensor, compiled: Collection[str] = ("cpu",)) -> str:
    """Return the backend that an operation on `x` runs on now.

    compiled: those of the backends with compiled kernels that have this operation. NotImplementedError for an explicit
    one that has not; TypeError, ValueError or RuntimeError if the explicit backend cannot run this call.
    """
    name = _current.backend
    if name == "auto":
        native = "cpu" if x.is_cpu else _native_gpu() if runs_gpu(x) and x.dtype is not torch.float64 else "reference"
        return native if native in compiled and not is_transformed() else "reference"
    if name == "reference":
        return name
    if name not in compiled:
        raise NotImplementedError(f"backend {name!r} does not have this operation: use 'reference' or 'auto'")
    on_gpu = name == "cuda" or (name == "triton" and not is_interpreted())
    if not (x.is_cuda if on_gpu else x.is_cpu):
        raise ValueError(f"x is on {x.device}: backend {name!r} accepts {'CUDA' if on_gpu else 'CPU'} tensors")
    if name in GPU and x.dtype is torch.float64:
        raise TypeError(f"x has dtype {x.dtype}: backend {name!r} accepts {names_of(float_dtypes(name))}")
    if is_transformed():
        raise RuntimeError(
            f"backend {name!r} does not support forward-mode AD and torch.func transforms: use backend 'reference' or "
            "'auto'"
        )
    return name


def float_dtypes(backend: str) -> tuple[torch.dtype, ...]:
    """Return the dtypes of floats that the operations compute with on this backend."""
    return (torch.float32, torch.float16, torch.bfloat16) if backend in GPU else (torch.float32, torch.float64)


def names_of(dtypes: Sequence[torch.dtype]) -> str:
    """Return "a, b and c"."""
    return ", ".join(map(str, dtypes[:-1])) + f" and {dtypes[-1]}"


def runs_gpu(x: Tensor) -> bool:
    """Whether the backend in force runs kernels for GPUs on `x`, which may be float16 or bfloat16 then."""
    return gpu_backend(x) != ""


def gpu_backend(x: Tensor) -> str:
    """Return the backend whose kernels for GPUs run on `x` now, "" where it is none."""
    if _current.backend in GPU:
        return _current.backend
    native = _native_gpu() if _current.backend == "auto" and x.is_cuda else "reference"
    return "" if native == "reference" else native


@lru_cache(maxsize=1)
def _native_gpu() -> str:
    """What runs CUDA tensors without being asked for."""
    return next((name for name in ("cuda", "triton") if availability(name)[0]), "reference")


def current_backend() -> str:
    """Return the name that the innermost `use_backend` around this call was given, or "auto"."""
    return _current.backend


def takes_kernels() -> bool:
    """Whether the backend in force runs a plain CPU tensor on the compiled kernels for CPUs."""
    return _current.backend in ("auto", "cpu") and not is_transformed()


def is_plain(*tensors: Tensor) -> bool:
    """Whether these tensors can go straight to the extension, past torch's dispatcher.

    They cannot where something would have to see the call (torch.compile, torch.jit.trace, a torch dispatch or
    function mode, a subclass), nor with the negative bit (a lazy minus sign that is not in memory).
    """
    return (
        not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
        and torch._C._get_tracing_state() is None
        and all(map(is_plain_tensor, tensors))
    )


def is_plain_tensor(tensor: Tensor) -> bool:
    """Whether this is no subclass and has no negative bit, which is what `is_plain` asks of each tensor."""
    return type(tensor) in _PLAIN_TYPES and not tensor.is_neg()


def is_transformed() -> bool:
    """Whether the call is under a torch.func transform, where tensors are wrappers, or in forward-mode AD."""
    return not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    )


def threads_for(multiply_adds: int) -> int:
    """Return how many threads to run a kernel of that many multiply-adds on: at most torch.get_num_threads().

    Waking and joining a thread takes microseconds, and milliseconds where other programs hold the cores, so each gets
    at least as much work as pays for that.
    """
    return min(torch.get_num_threads(), 1 + multiply_adds // 2**17)


def is_autocast(x: Tensor) -> bool:
    """Whether autocast is on for the device of `x`."""
    return (x.is_cpu and torch.is_autocast_enabled("cpu")) or (x.is_cuda and torch.is_autocast_enabled("cuda"))


def _isa_from(environment: Mapping[str, str]) -> _C.Isa:
    name = environment.get("SPOS_ISA", "")
    if not name:
        return _C.best_isa()
    known = _C.Isa.__members__
    if name in known and _C.isa_supported(known[name]):  # others are not asked for: that for AMX changes the process
        return known[name]
    supported = ", ".join(repr(n) for n in reversed(known) if _C.isa_supported(known[n]))
    if name not in known:
        raise ValueError(f"SPOS_ISA = {name!r}: accepted are {supported} on this processor")
    raise ValueError(f"SPOS_ISA = {name!r}: this processor does not have these instructions, it accepts {supported}")


_PLAIN_TYPES = (Tensor, torch.nn.Parameter)
ISA = _isa_from(os.environ)
_C.set_tensor_types(Tensor, torch.nn.Parameter, getattr(Tensor, "__dlpack_c_exchange_api__", None))
