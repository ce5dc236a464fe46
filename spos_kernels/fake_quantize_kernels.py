"""The kernels of fake quantization as functions of plain tensors, and the same for tensors without data.

To a kernel a tensor is its memory: channels of `inner` adjacent elements, over and over, whatever the order of the
dimensions. `scale` is the learned tensor, or what dorefa divides by: max|tanh x|, which `maximum` computes. `backend`
has one value so far: the argument is what makes a backward pass run where its forward pass ran.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spos_kernels import _C
from spos_kernels.backends import ISA, threads_for
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
        x = laid_out_like(x, y)
        scale, zero_point = _read(scale, x), _read(zero_point, x)
        options = _options(x, Quantizer(bits, method, signed, axis))
        _C.fake_quantize_forward(_flat(x), scale, zero_point, _flat(y), *options)
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
    scale, zero_point = _read(scale, x), _read(zero_point, x)
    options = _options(x, Quantizer(bits, method, signed, axis))
    _C.fake_quantize_backward(_flat(dy), _flat(x), scale, zero_point, *outputs, *options)
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
    return dx, x.new_empty(scale.shape if needs_dscale else 0)


def maximum(x: Tensor, axis: int | None) -> Tensor:
    """max|tanh x|, [1] or [C] along `axis`. Of no elements: 0."""
    result = maximum_fake(x, axis)
    if not x.numel():
        return result.zero_()
    x = _dense(x)
    _C.fake_quantize_maximum(_flat(x), result, *_options(x, Quantizer(8, "dorefa", False, axis)))
    return result


def maximum_fake(x: Tensor, axis: int | None) -> Tensor:
    return x.new_empty(1 if axis is None else x.shape[axis])


def laid_out_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return `tensor` itself if its elements lie in memory as those of the dense tensor `like` do, else such a copy."""
    strides = zip(tensor.shape, tensor.stride(), like.stride(), strict=True)
    # The stride of a single element means nothing: torch may hold any value there.
    if tensor.stride() == like.stride() or all(a == b or size == 1 for size, a, b in strides):
        return tensor
    return torch.empty_strided(like.shape, like.stride(), dtype=tensor.dtype).copy_(tensor)


def _dense(x: Tensor) -> Tensor:
    return x if x.is_contiguous() else laid_out_like(x, torch.empty_like(x, device="meta"))


def _flat(dense: Tensor) -> Tensor:
    """`dense` with no more dimensions than the extension reads."""
    return dense if dense.ndim <= 4 else dense.as_strided((dense.numel(),), (1,))


def _read(values: Any, x: Tensor) -> Any:
    """One value a channel as the extension reads it."""
    return None if values is None else values.to(x.dtype).contiguous()


_METHODS = {name: getattr(_C.QuantizeMethod, name) for name in ("dorefa", "pact", "lsq")}


def _options(x: Tensor, quantizer: Quantizer) -> tuple[Any, ...]:
    """What the extension takes behind the tensors, for a dense `x`."""
    bits, method, signed, axis = quantizer
    channels, inner = 1, x.numel()
    if axis is not None and x.shape[axis] > 1:
        channels, inner = x.shape[axis], x.stride(axis)
    # An element costs about as much as 16 multiply-adds of a convolution: it comes from memory.
    return _METHODS[method], bits, signed, channels, inner, ISA, threads_for(16 * x.numel())
