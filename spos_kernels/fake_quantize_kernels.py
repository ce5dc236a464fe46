"""The kernels of fake quantization as functions of plain tensors, and the same for tensors without data.

To a kernel a tensor is its memory: channels of `inner` adjacent elements, over and over, whatever the order of the
dimensions. `scale` is the learned tensor, or what dorefa divides by: max|tanh x|, which `maximum` computes. `backend`
is "cpu", "cuda" or "cuda-emulated": the argument is what makes a backward pass run where its forward pass ran.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spos_kernels import _C
from spos_kernels.backends import GPU, ISA, threads_for
from spos_kernels.cuda import fake_quantize as cuda
from spos_kernels.fake_quantize_reference import Quantizer


def forward(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bits: int,
    method: str,
    signed: bool,
    axis: int | None,
    backend: str,
) -> Tensor:
    y = torch.empty_like(x)
    if x.numel():
        x, quantizer = laid_out_like(x, y), Quantizer(bits, method, signed, axis)
        if backend in GPU:
            cuda.forward(_flat(x), scale, zero_point, _flat(y), quantizer, _runs(x, axis), backend)
        else:
            scale, zero_point = _read(scale, x), _read(zero_point, x)
            _C.fake_quantize_forward(_flat(x), scale, zero_point, _flat(y), *_options(x, quantizer))
    return y


def forward_fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def codes(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bits: int,
    method: str,
    signed: bool,
    axis: int | None,
    backend: str,
) -> Tensor:
    quantizer = Quantizer(bits, method, signed, axis)
    codes = torch.empty_like(x, dtype=quantizer.codes)
    if x.numel():
        x = laid_out_like(x, codes)
        if backend in GPU:
            cuda.codes(_flat(x), scale, zero_point, _flat(codes), quantizer, _runs(x, axis), backend)
        else:
            scale, zero_point = _read(scale, x), _read(zero_point, x)
            _C.fake_quantize_codes(_flat(x), scale, zero_point, _flat(codes), *_options(x, quantizer))
    return codes


def codes_fake(
    x: Tensor, scale: Tensor, zero_point: Tensor | None, bits: int, method: str, signed: bool, *_: Any
) -> Tensor:
    return torch.empty_like(x, dtype=Quantizer(bits, method, signed, None).codes)


def backward(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bits: int,
    method: str,
    signed: bool,
    axis: int | None,
    needs_dx: bool,
    needs_dscale: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Return (dx, dscale), each without elements where it is not needed."""
    dx, dscale = backward_fake(dy, x, scale, zero_point, bits, method, signed, axis, needs_dx, needs_dscale, backend)
    if not x.numel():
        return dx, dscale.zero_()
    x = laid_out_like(x, dx) if needs_dx else _dense(x)
    dy = laid_out_like(dy, x)
    outputs = _flat(dx) if needs_dx else None, dscale if needs_dscale else None
    quantizer = Quantizer(bits, method, signed, axis)
    if backend in GPU:
        cuda.backward(_flat(dy), _flat(x), scale, zero_point, *outputs, quantizer, _runs(x, axis), backend)
    else:
        scale, zero_point = _read(scale, x), _read(zero_point, x)
        _C.fake_quantize_backward(_flat(dy), _flat(x), scale, zero_point, *outputs, *_options(x, quantizer))
    return dx, dscale


def backward_fake(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    bits: int,
    method: str,
    signed: bool,
    axis: int | None,
    needs_dx: bool,
    needs_dscale: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    dx = torch.empty_like(x) if needs_dx else x.new_empty(0)
    return dx, scale.new_empty(scale.shape if needs_dscale else 0)


def maximum(x: Tensor, axis: int | None, backend: str) -> Tensor:
    """max|tanh x|, [1] or [C] along `axis`, float32 on the backends of CUDA. Of no elements: 0."""
    result = maximum_fake(x, axis, backend)
    if not x.numel():
        return result.zero_()
    x = _dense(x)
    if backend in GPU:
        cuda.maximum(_flat(x), result, _runs(x, axis), backend)
    else:
        _C.fake_quantize_maximum(_flat(x), result, *_options(x, Quantizer(8, "dorefa", False, axis)))
    return result


def maximum_fake(x: Tensor, axis: int | None, backend: str) -> Tensor:
    return x.new_empty(1 if axis is None else x.shape[axis], dtype=torch.float32 if backend in GPU else x.dtype)


def laid_out_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return `tensor` itself if its elements lie in memory as those of the dense tensor `like` do, else such a copy."""
    strides = zip(tensor.shape, tensor.stride(), like.stride(), strict=True)
    # The stride of a single element means nothing: torch may hold any value there.
    if tensor.stride() == like.stride() or all(a == b or size == 1 for size, a, b in strides):
        return tensor
    return torch.empty_strided(like.shape, like.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _dense(x: Tensor) -> Tensor:
    return x if x.is_contiguous() else laid_out_like(x, torch.empty_like(x, device="meta"))


def _flat(dense: Tensor) -> Tensor:
    """`dense` with no more dimensions than the extension reads."""
    return dense if dense.ndim <= 4 else dense.as_strided((dense.numel(),), (1,))


def _read(values: Any, x: Tensor) -> Any:
    """One value a channel as the extension reads it."""
    return None if values is None else values.to(x.dtype).contiguous()


_METHODS = {name: getattr(_C.QuantizeMethod, name) for name in ("dorefa", "pact", "lsq")}


def _runs(x: Tensor, axis: int | None) -> tuple[int, int]:
    """Return the channels and how many adjacent elements each has at a time, for a dense `x`."""
    return (x.shape[axis], x.stride(axis)) if axis is not None and x.shape[axis] > 1 else (1, x.numel())


def _options(x: Tensor, quantizer: Quantizer) -> tuple[Any, ...]:
    """What the extension takes behind the tensors, for a dense `x`."""
    bits, method, signed, axis = quantizer
    # An element costs about as much as 16 multiply-adds of a convolution: it comes from memory.
    return _METHODS[method], bits, signed, *_runs(x, axis), ISA, threads_for(16 * x.numel())
