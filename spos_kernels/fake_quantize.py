"""Fake quantization: rounding to a few levels in the forward pass, straight through it in the backward pass.

    dorefa  r = tanh(x) / (2 max|tanh x|) + 1/2,  c = round(n r),  y = (2 c − n) / n
    pact    s = α / n,  c = clamp(round(x / s), 0, n),  y = c s
    lsq     c = clamp(round(x / s) + z, low, high),  y = (c − z) s

with n = 2^bits − 1: DoReFa-Net, arXiv 1606.06160; PACT, arXiv 1805.06085; learned step size quantization, arXiv
1902.08153.

An eager call on plain tensors goes through an autograd.Function straight to the extension, everything else through
operators of torch.library, as in `depthwise_conv2d`. Both find dorefa's maximum by an operation of its own, since it is
a constant to the gradient; it takes the place of the learned tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spos_kernels import fake_quantize_kernels as kernels
from spos_kernels.backends import GPU, is_plain, resolve_backend
from spos_kernels.fake_quantize_reference import Call, check_arguments, check_dtypes, codes_reference, reference
from spos_kernels.library import register

__all__ = ["fake_quantize", "fake_quantize_reference", "quantize", "quantize_reference"]


def fake_quantize(
    x: Tensor,
    bits: int,
    method: str,
    learned: Tensor | None = None,
    *,
    signed: bool = False,
    zero_point: int | Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """Round `x` to the values that `bits` bits can name. Differentiable once, in `x` and `learned`.

    x: float32 or float64, any shape; float32, float16 or bfloat16 on the CUDA kernels. Dense tensors (contiguous,
        channels_last, any other order of dimensions) are read in place, others are copied.
    bits: 1 to 8. signed: codes from −2^(bits−1) to 2^(bits−1) − 1 instead of 0 to 2^bits − 1, "lsq" only.
    method, and what is `learned` there, in the dtype of x (or float32, on the CUDA kernels):
        "dorefa", for weights: None. dx = dy (1 − tanh² x) / max|tanh x|, the maximum taken as a constant. Where all
            of x is zero (or below the normal numbers), r is 1/2 and dx 0.
        "pact", for activations: the clip α > 0. dx = dy where 0 < x < α, else 0; dα = Σ dy where x ≥ α.
        "lsq": the step s > 0. With v = x / s, and low and high less z: dx = dy where low ≤ v ≤ high, else 0;
            ds = g Σ dy · (low where v ≤ low, high where v ≥ high, else round(v) − v), g = 1 / √(N · high of the codes),
            N the elements that one step governs (1 / √N where high is 0, as signed 1-bit codes have it).
    zero_point: the code of 0, an integer or a torch.int32 tensor shaped like `learned`, "lsq" only.
    axis: None for one quantizer of the whole tensor, `learned` of shape [] or [1]; else the axis of the C channels that
        have one each, `learned` of shape [C] (and the maximum of "dorefa" is each channel's own).

    Returns a tensor like x. Rounding is half to even, and x / s a division. NaN stays NaN (with "dorefa" it makes its
    whole channel NaN); a step's gradient is NaN then. Under CPU autocast, bfloat16 and float16 arguments are cast to
    float32, and the result is float32. The same bits come out for every number of threads. float64 runs in the portable
    kernels. For double backward use the backend "reference".

    Raises TypeError or ValueError, naming the argument; ValueError also for a learned value that is not a finite number
    above 0 and for a zero point that is no code, except on the CUDA kernels: to look at values there would be to wait
    for the GPU. They compute with what they find.
    """
    call = check_arguments(x, bits, method, learned, signed, zero_point, axis)
    backend = resolve_backend(call.x, ("cpu", *GPU))
    if backend == "reference":
        return reference(call)
    check_dtypes(call, backend)
    plain, scale = _is_plain(call), _scale(call, backend)
    apply: Any
    if not plain:
        apply = torch.ops.spos_kernels.fake_quantize
    elif torch.is_grad_enabled() and (call.x.requires_grad or scale.requires_grad):
        apply = _Eager.apply
    else:
        apply = kernels.forward  # what autograd.Function costs is as much as the kernel on a small map
    return apply(call.x, scale, call.zero_point, *call.quantizer, backend)


def quantize(
    x: Tensor,
    bits: int,
    method: str,
    learned: Tensor | None = None,
    *,
    signed: bool = False,
    zero_point: int | Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """Return the codes c of `fake_quantize`: same arguments and errors, not differentiable.

    uint8, or int8 where signed, in the shape and memory layout of x. NaN gets the lowest code.
    """
    call = check_arguments(x, bits, method, learned, signed, zero_point, axis)
    backend = resolve_backend(call.x, ("cpu", *GPU))
    if backend == "reference":
        return codes_reference(call)
    check_dtypes(call, backend)
    plain, scale = _is_plain(call), _scale(call, backend)
    apply = kernels.codes if plain else torch.ops.spos_kernels.quantize
    return apply(call.x.detach(), scale.detach(), call.zero_point, *call.quantizer, backend)


def fake_quantize_reference(
    x: Tensor,
    bits: int,
    method: str,
    learned: Tensor | None = None,
    *,
    signed: bool = False,
    zero_point: int | Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """`fake_quantize` in plain PyTorch: same arguments, result and errors, on every device, differentiable twice."""
    return reference(check_arguments(x, bits, method, learned, signed, zero_point, axis))


def quantize_reference(
    x: Tensor,
    bits: int,
    method: str,
    learned: Tensor | None = None,
    *,
    signed: bool = False,
    zero_point: int | Tensor | None = None,
    axis: int | None = None,
) -> Tensor:
    """`quantize` in plain PyTorch: same arguments, result and errors, on every device."""
    return codes_reference(check_arguments(x, bits, method, learned, signed, zero_point, axis))


def _is_plain(call: Call) -> bool:
    return is_plain(*(t for t in (call.x, call.learned, call.zero_point) if t is not None))


def _scale(call: Call, backend: str) -> Tensor:
    """What the kernels call scale: the learned tensor, or dorefa's maximum."""
    if call.learned is not None:
        return call.learned
    maximum = kernels.maximum if is_plain(call.x) else torch.ops.spos_kernels.fake_quantize_maximum
    return maximum(call.x.detach(), call.quantizer.axis, backend)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, zero_point, *ctx.options = inputs
    ctx.save_for_backward(x, scale, zero_point)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    *quantizer, backend = ctx.options
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"fake_quantize: backend {backend!r} has no double backward (create_graph=True): use backend 'reference'"
        )
    x, scale, zero_point = ctx.saved_tensors
    needs_dx, needs_dscale = ctx.needs_input_grad[:2]
    plain = is_plain(*(t for t in (dy, x, scale, zero_point) if t is not None))
    backward: Any = kernels.backward if plain else torch.ops.spos_kernels.fake_quantize_backward
    dx, dscale = backward(dy, x, scale, zero_point, *quantizer, needs_dx, needs_dscale, backend)
    return dx if needs_dx else None, dscale if needs_dscale else None, *6 * (None,)


class _Eager(torch.autograd.Function):
    # forward takes ctx: with a separate setup_context, apply() binds the signature anew at every call.
    @staticmethod
    def forward(ctx: Any, x: Tensor, *options: Any) -> Tensor:
        y = kernels.forward(x, *options)
        _save(ctx, (x, *options), y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, dy)


_QUANTIZER = "Tensor x, Tensor scale, Tensor? zero_point, int bits, str method, bool signed, int? axis"
register("fake_quantize", f"({_QUANTIZER}, str backend)", kernels.forward, kernels.forward_fake)
register("quantize", f"({_QUANTIZER}, str backend)", kernels.codes, kernels.codes_fake)
register(
    "fake_quantize_backward",
    f"(Tensor dy, {_QUANTIZER}, bool needs_dx, bool needs_dscale, str backend)",
    kernels.backward,
    kernels.backward_fake,
    "(Tensor, Tensor)",
)
register("fake_quantize_maximum", "(Tensor x, int? axis, str backend)", kernels.maximum, kernels.maximum_fake)
torch.library.register_autograd("spos_kernels::fake_quantize", _gradients, setup_context=_save)
