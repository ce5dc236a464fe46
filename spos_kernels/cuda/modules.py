"""The modules that hold the kernels for GPUs, loaded when they are first asked for.

"cuda" is the compiled module for GPUs, "cuda-emulated" the same kernels for CPU tensors, checked access by access and
slow: it is there so that their tests run on any machine. "triton" is `spos_kernels.triton`, functions of the same names
and arguments, compiled on the GPU when they are first called, or in Triton's interpreter for CPU tensors.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

MODULES = {
    "cuda": "spos_kernels._cuda",
    "cuda-emulated": "spos_kernels._cuda_emulated",
    "triton": "spos_kernels.triton",
}
_MISSING = {
    "cuda": "not compiled: install with nvcc on the path, on a machine with a GPU or with SPOS_CUDA=1",
    "cuda-emulated": "not compiled: it is for tests, `make emulated` builds it",
    "triton": "triton is not installed",
}


def module_of(backend: str) -> ModuleType:
    """Return the module of backend "cuda", "cuda-emulated" or "triton"; RuntimeError where it cannot be used."""
    module = _load(backend)
    if isinstance(module, str):
        raise RuntimeError(f"backend {backend!r} is not available: {module}")
    return module


@torch.compiler.assume_constant_result
def availability(backend: str) -> tuple[bool, str]:
    """Whether the backend can be used here, and what it is, or why it cannot be used."""
    return _availability(backend)


@lru_cache(maxsize=3)  # every operation on a CUDA tensor asks
def _availability(backend: str) -> tuple[bool, str]:
    module = _load(backend)
    if isinstance(module, str):
        return False, module
    if backend == "cuda-emulated":
        return True, "the CUDA kernels on the CPU, every access checked: for tests, slow"
    if backend == "triton" and is_interpreted():
        return True, "the Triton kernels in Triton's interpreter, for CPU tensors: for tests, slow"
    if not torch.cuda.is_available():
        other = "; TRITON_INTERPRET=1 runs them on CPU tensors, slowly" if backend == "triton" else ""
        return False, f"torch sees no GPU to run the kernels on{other}"
    major, minor = torch.cuda.get_device_capability()
    kind = "Triton" if backend == "triton" else "compiled"
    return True, f"{kind} kernels for CUDA tensors, on {torch.cuda.get_device_name()} (sm_{major}{minor})"


@torch.compiler.assume_constant_result  # torch.compile need not see how it is found
def is_interpreted() -> bool:
    """Whether the Triton kernels run in Triton's interpreter, on CPU tensors: TRITON_INTERPRET=1 at the first use."""
    module = _load("triton")
    return not isinstance(module, str) and bool(module.INTERPRETED)


@lru_cache(maxsize=3)
def _load(backend: str) -> ModuleType | str:
    """The module, or why there is none."""
    try:
        module = importlib.import_module(MODULES[backend])
    except ModuleNotFoundError as error:
        if backend == "triton" and error.name != "triton":
            raise
        return _MISSING[backend]
    except ImportError as error:
        return f"its module does not load: {error}"
    if backend != "triton":
        module.set_tensor_types(Tensor, torch.nn.Parameter, getattr(Tensor, "__dlpack_c_exchange_api__", None))
    return module


def stream_of(x: Tensor) -> int:
    """Return the address of the current stream of x's device; 0 for CPU tensors."""
    return torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0


def takes_tf32(x: Tensor) -> bool:
    """Whether torch lets products of x's dtype run in tf32.

    That is for float32 where torch.backends.cuda.matmul.fp32_precision says so, which inherits that of torch.backends
    and is what allow_tf32 sets. Off by default.
    """
    return x.dtype is torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"


def counters(x: Tensor, count: int) -> Tensor:
    """Zeros on x's device that kernels leave as zeros: for one stream, whose calls follow each other.

    A CUDA graph gets its own, zeroed in it: it may be replayed on any stream, and with none before it.
    """
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=x.device)
    return _kept_counters(count, x.device, stream_of(x))


@lru_cache(maxsize=64)
def _kept_counters(count: int, device: torch.device, stream: int) -> Tensor:
    return torch.zeros(count, dtype=torch.int32, device=device)
