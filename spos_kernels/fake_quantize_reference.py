"""Fake quantization in plain PyTorch, and what the arguments of a call mean: the part that needs no kernel.

Each reference is value + (surrogate − surrogate.detach()): the value rounds, the surrogate is linear in what is
differentiated and has the coefficients of the method's published gradient. Every device and torch.func can run it, and
its second derivatives are those of the surrogate.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from spos_kernels.backends import GPU, float_dtypes, is_autocast, is_plain, is_transformed, names_of

METHODS = ("dorefa", "pact", "lsq")


class Quantizer(NamedTuple):
    """What a call asks for besides its tensors. axis: from 0, or None for one quantizer of the whole tensor."""

    bits: int
    method: str
    signed: bool
    axis: int | None

    @property
    def low(self) -> int:
        """The lowest code."""
        return -(2 ** (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """The highest code."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1

    @property
    def codes(self) -> torch.dtype:
        return torch.int8 if self.signed else torch.uint8


class Call(NamedTuple):
    """Checked arguments. learned is None for dorefa only; zero_point is int32, or None for 0."""

    x: Tensor
    learned: Tensor | None
    zero_point: Tensor | None
    quantizer: Quantizer


def check_arguments(
    x: Tensor,
    bits: int,
    method: str,
    learned: Tensor | None,
    signed: bool,
    zero_point: int | Tensor | None,
    axis: int | None,
) -> Call:
    """Resolve autocast and negative axes, and check everything except dtypes of floats and the values of tensors."""
    _check_tensor(x, "x")
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"bits = {bits!r}: expected an integer from 1 to 8")
    if not 1 <= bits <= 8:
        raise ValueError(f"bits = {bits!r}: accepted are integers from 1 to 8")
    if method not in METHODS:
        raise ValueError(f"method = {method!r}: accepted are {', '.join(map(repr, METHODS))}")
    if not isinstance(signed, bool):
        raise TypeError(f"signed = {signed!r}: expected True or False")
    if signed and method != "lsq":
        raise ValueError(f"signed = {signed!r}: method {method!r} accepts False")
    if axis is not None:
        if isinstance(axis, bool) or not isinstance(axis, int):
            raise TypeError(f"axis = {axis!r}: expected an integer or None")
        if not -x.ndim <= axis < x.ndim:
            raise ValueError(f"axis = {axis!r}: expected an axis of x, which has {x.ndim} dimensions")
        axis %= x.ndim
    if (learned is None) != (method == "dorefa"):
        given = "None" if learned is None else "a value"
        wanted = "a tensor, the clip" if method == "pact" else "a tensor, the step" if method == "lsq" else "None"
        raise ValueError(f"learned is {given}: method {method!r} accepts {wanted}")
    quantizer = Quantizer(bits, method, signed, axis)
    if learned is not None:
        _check_tensor(learned, "learned", like=x)
        _check_shape(learned, "learned", x, axis)
    if is_autocast(x):
        x, learned = widened(x), None if learned is None else widened(learned)
    return Call(x, learned, _zero_point(zero_point, x, quantizer), quantizer)


def check_dtypes(call: Call, backend: str) -> None:
    """TypeError for dtypes that `backend` does not take."""
    x, learned = call.x, call.learned
    if x.dtype not in float_dtypes(backend):
        raise TypeError(f"x has dtype {x.dtype}: accepted are {names_of(float_dtypes(backend))}")
    if learned is None or learned.dtype == x.dtype or (backend in GPU and learned.dtype == torch.float32):
        return
    alternative = " or torch.float32" if backend in GPU else ""
    raise TypeError(f"learned has dtype {learned.dtype}: expected that of x, {x.dtype}{alternative}")


def check_values(call: Call) -> None:
    """ValueError for a learned value or a zero point out of range, where a call has values that can be looked at.

    Under torch.compile, torch.func and dispatch modes it has not; the compiled kernels for CPUs check for themselves.
    """
    for tensor in (call.learned, call.zero_point):
        if tensor is None or tensor.is_meta or not is_plain(tensor) or is_transformed():
            continue
        values, (low, high) = tensor.detach().reshape(-1), (call.quantizer.low, call.quantizer.high)
        if tensor is call.learned:
            good, name, accepted = values.isfinite() & (values > 0), "learned", "finite numbers above 0"
        else:
            good, name, accepted = (values >= low) & (values <= high), "zero_point", f"integers from {low} to {high}"
        if not good.all():
            index = int(good.logical_not().nonzero()[0, 0])
            raise ValueError(f"{name}[{index}] = {values[index].item()}: accepted are {accepted}")


def reference(call: Call) -> Tensor:
    """The fake-quantized tensor, differentiable in x and learned."""
    check_dtypes(call, "reference")
    check_values(call)
    with torch.autocast(call.x.device.type, enabled=False):
        x, quantizer = call.x, call.quantizer
        codes, scale, zero_point = _codes(call)
        if quantizer.method == "dorefa":
            steps = quantizer.high
            value, surrogate = (2 * codes - steps) / steps, x.tanh() / scale
        else:
            assert call.learned is not None
            learned = _along(call.learned, x, quantizer.axis)
            value = (codes - zero_point) * scale
            surrogate = _pact(x, learned) if quantizer.method == "pact" else _lsq(x, learned, zero_point, quantizer)
        return value.detach() + (surrogate - surrogate.detach())


def codes_reference(call: Call) -> Tensor:
    """The integer codes of `reference`. NaN becomes the lowest one."""
    check_dtypes(call, "reference")
    check_values(call)
    call = call._replace(x=call.x.detach(), learned=None if call.learned is None else call.learned.detach())
    with torch.autocast(call.x.device.type, enabled=False):
        codes, _, _ = _codes(call)
        return codes.where(codes == codes, call.quantizer.low).to(call.quantizer.codes)


def widened(tensor: Tensor) -> Tensor:
    """What autocast makes of an argument."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def elements_per_channel(x: Tensor, axis: int | None) -> int:
    """How many elements one learned value governs."""
    return x.numel() // max(x.shape[axis], 1) if axis is not None else x.numel()


def lsq_factor(x: Tensor, quantizer: Quantizer) -> float:
    """LSQ's scale of the step's gradient, g = 1 / sqrt(N · high); high counts as 1 where it is 0 (signed, 1 bit)."""
    return 1.0 / math.sqrt(max(elements_per_channel(x, quantizer.axis), 1) * max(quantizer.high, 1))


def _codes(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes as floats, the scale (dorefa: max|tanh x|, otherwise the step) and the zero point."""
    x, (bits, method, _, axis) = call.x, call.quantizer
    zero_point = x.new_zeros(())
    if method == "dorefa":
        tanh, steps = x.detach().tanh(), 2**bits - 1
        others = [d for d in range(x.ndim) if d != axis]
        largest = tanh.abs().amax(others, keepdim=True) if x.numel() and others else tanh.abs()
        # Of a tensor of zeros: r = 1/2 and no gradient.
        largest = largest.where(~(largest < torch.finfo(x.dtype).smallest_normal), torch.inf)
        return (steps * (tanh / (2 * largest) + 0.5)).round(), largest, zero_point
    assert call.learned is not None
    scale = _along(call.learned.detach(), x, axis)
    if method == "pact":
        scale = scale / call.quantizer.high
    if call.zero_point is not None:
        zero_point = _along(call.zero_point, x, axis).to(x.dtype)
    codes = (x.detach() / scale).round() + zero_point
    return codes.clamp(call.quantizer.low, call.quantizer.high), scale, zero_point


def _pact(x: Tensor, clip: Tensor) -> Tensor:
    inside = (x > 0) & (x < clip)
    return x.where(inside, 0) + clip.where(x >= clip, 0)


def _lsq(x: Tensor, step: Tensor, zero_point: Tensor, quantizer: Quantizer) -> Tensor:
    low, high = quantizer.low - zero_point, quantizer.high - zero_point
    v = (x / step).detach()
    coefficient = (v.round() - v).where(v < high, high).where(v > low, low)
    coefficient = coefficient.where(v == v, v)
    return x.where((v >= low) & (v <= high), 0) + lsq_factor(x, quantizer) * coefficient * step


def _along(tensor: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """One value a channel in the shape that broadcasts against x."""
    return tensor.reshape([-1 if d == axis else 1 for d in range(x.ndim)])


def _zero_point(zero_point: int | Tensor | None, x: Tensor, quantizer: Quantizer) -> Tensor | None:
    if zero_point is None:
        return None
    if quantizer.method != "lsq":
        raise ValueError(f"zero_point = {zero_point!r}: method {quantizer.method!r} accepts None")
    low, high = quantizer.low, quantizer.high
    if isinstance(zero_point, Tensor):
        _check_tensor(zero_point, "zero_point", like=x)
        if zero_point.dtype != torch.int32:
            raise TypeError(f"zero_point has dtype {zero_point.dtype}: accepted is torch.int32")
        _check_shape(zero_point, "zero_point", x, quantizer.axis)
        return zero_point
    if isinstance(zero_point, bool) or not isinstance(zero_point, int):
        raise TypeError(f"zero_point = {zero_point!r}: expected an integer, a torch.int32 tensor or None")
    if not low <= zero_point <= high:
        raise ValueError(f"zero_point = {zero_point!r}: accepted are integers from {low} to {high}")
    if zero_point == 0:
        return None
    count = 1 if quantizer.axis is None else x.shape[quantizer.axis]
    return torch.full((count,), zero_point, dtype=torch.int32, device=x.device)


def _check_tensor(tensor: Tensor, name: str, like: Tensor | None = None) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(tensor).__name__}")
    if tensor.layout is not torch.strided:
        raise ValueError(f"{name} has layout {tensor.layout}: accepted is torch.strided")
    if like is not None and tensor.device != like.device:
        raise ValueError(f"{name} is on {tensor.device}: expected the device of x, {like.device}")


def _check_shape(tensor: Tensor, name: str, x: Tensor, axis: int | None) -> None:
    shape = tuple(tensor.shape)
    if axis is None and shape not in ((), (1,)):
        raise ValueError(f"{name} has shape {list(shape)}: expected [] or [1], or axis for one value a channel")
    if axis is not None and shape != (x.shape[axis],):
        raise ValueError(f"{name} has shape {list(shape)}: expected [C] with C = {x.shape[axis]}, axis {axis} of x")
