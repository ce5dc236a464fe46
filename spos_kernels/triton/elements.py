"""What the kernels do with single elements and widths: conversions to memory's type, sizes read from the device."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
# 1.5 · 2^23: adding it and taking it away rounds half to even what is below 2^22.
ROUND = tl.constexpr(12582912.0)


@triton.jit
def stored(x, pointer):
    """float32 as what `pointer` points to, rounded half to even."""
    kind: tl.constexpr = pointer.dtype.element_ty
    if INTERPRETED and kind == tl.bfloat16:  # the interpreter's own conversion cuts off, or carries wrongly
        bits = x.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(x != x, 0x7FC0, nearest).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(kind)


@triton.jit
def rounded(x):
    """To a whole number, half to even, where |x| is below 2^22; NaN stays NaN."""
    return (x + ROUND) - ROUND


@triton.jit
def active_width(pointer, most, IS_ACTIVE: tl.constexpr):
    """A width in device memory, from 0 to `most`; or `most`."""
    result = most
    if IS_ACTIVE:
        result = tl.minimum(tl.maximum(tl.load(pointer), 0), most)
    return result


@triton.jit
def product(a, b, sums, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """sums + a @ b. UPCAST: in float32, for the interpreter, which multiplies bfloat16 wrongly."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION)
