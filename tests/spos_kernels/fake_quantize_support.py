"""What the tests of fake quantization share: quantizers, shapes, inputs full of ties and limits, guarded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spos_kernels import _C
from spos_kernels import fake_quantize_kernels as kernels
from spos_kernels.fake_quantize_reference import Call, Quantizer, check_arguments, lsq_factor


@dataclass(frozen=True)
class Kind:
    """A quantizer but for its bits and axis."""

    method: str
    signed: bool = False
    affine: bool = False

    def __str__(self) -> str:
        return self.method + ("-signed" if self.signed else "") + ("-affine" if self.affine else "")


DOREFA = Kind("dorefa")
EXACT = [Kind("pact"), Kind("lsq"), Kind("lsq", True), Kind("lsq", False, True), Kind("lsq", True, True)]
KINDS = [DOREFA, *EXACT]


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...]
    axis: int | None = None
    order: tuple[int, ...] | None = None  # of the dimensions in memory, the slowest first

    def __str__(self) -> str:
        order = "" if self.order is None else "-" + "".join(map(str, self.order))
        return "x".join(map(str, self.shape)) + ("" if self.axis is None else f"-axis{self.axis}") + order

    def lay_out(self, x: Tensor) -> Tensor:
        """A dense copy with the dimensions in this order."""
        if self.order is None:
            return x.contiguous()
        back = sorted(range(x.ndim), key=self.order.__getitem__)
        return x.permute(self.order).contiguous().permute(back)


CHANNELS_LAST = (0, 2, 3, 1)
# The tensor as a whole; channels in runs longer and shorter than a vector, cut and whole; channels side by side, fewer
# and more than a block is wide, with a last row that is shorter.
CASES = [
    Case(()),
    Case((1,)),
    Case((2,)),
    Case((7,)),
    Case((129,)),
    Case((2, 8195)),
    Case((3, 5, 7, 2), None, CHANNELS_LAST),
    Case((1,), 0),
    Case((7,), 0),
    Case((129,), 0),
    Case((33, 8, 3, 3), 0),
    Case((40, 1, 3, 3), 0),
    Case((3, 8201), 0),
    Case((5, 1), 1),
    Case((2, 3, 5, 5), 1),
    Case((3, 17, 7, 7), 1),
    Case((2, 3, 9, 9), 1, CHANNELS_LAST),
    Case((2, 17, 9, 9), 1, CHANNELS_LAST),
    Case((3, 64, 28, 28), 1, CHANNELS_LAST),
    Case((5, 129, 3, 3), 1, CHANNELS_LAST),
    Case((8, 512, 3, 3), 1, CHANNELS_LAST),
    Case((701, 24), -1),
    Case((9, 2500), -1),
    Case((2, 3, 4, 5, 6), 2),
    Case((2, 3, 4, 5, 6), -1, (4, 0, 2, 1, 3)),
]
SMALL = [case for case in CASES if len(case.shape) < 4] + [Case((3, 17, 4, 4), 1, CHANNELS_LAST), Case((6, 9, 3, 3), 0)]


LAYOUTS: dict[str, Any] = {
    "nchw": lambda wide: wide[:, :20].contiguous(),
    "nhwc": lambda wide: wide[:, :20].contiguous(memory_format=torch.channels_last),
    "slice": lambda wide: wide.contiguous(memory_format=torch.channels_last)[:, 7:27],
    "transposed": lambda wide: wide[:, :20].contiguous().transpose(2, 3),
    "expanded": lambda wide: wide[:1, :20].expand(3, 20, 7, 7),
    "every other column": lambda wide: wide[:, :20, :, ::2],
    "one channel": lambda wide: wide[:, :1],
    "no image": lambda wide: wide[:0, :20],
    "no channel": lambda wide: wide[:, :0],
}


def arguments(case: Case, kind: Kind, bits: int, dtype: torch.dtype = torch.float32) -> Call:
    """Random inputs. Those with a step contain every code's value, ties between codes, the limits, and infinities."""
    x = torch.randn(case.shape, dtype=dtype)
    axis = case.axis
    channels = 1 if axis is None else case.shape[axis]
    quantizer = Quantizer(bits, kind.method, kind.signed, None)
    low, high = quantizer.low, quantizer.high
    learned, zero_point = None, None
    if kind.affine:
        zero_point = torch.randint(low, high + 1, (channels,), dtype=torch.int32)
    if kind.method != "dorefa":
        learned = torch.rand(channels, dtype=dtype) * 3 / 2**bits + 0.01
        learned[::2] = 2.0**-bits
        step = learned
        if kind.method == "pact":
            learned = learned * high
            step = learned / high
        along = step.view([-1 if axis is not None and d == axis % x.ndim else 1 for d in range(x.ndim)])
        halves = torch.randint(2 * low - 4, 2 * high + 5, case.shape, dtype=dtype) / 2 * along
        x = torch.where(torch.rand(case.shape) < 0.5, x, halves)
        clip = halves.sign() * high * along
        x = torch.where(torch.rand(case.shape) < 0.1, clip, x)
        for value in (0.0, -0.0, torch.inf, -torch.inf, 1e-45, 1e38):
            x = torch.where(torch.rand(case.shape) < 0.02, value, x)
    call = check_arguments(case.lay_out(x), bits, kind.method, learned, kind.signed, zero_point, axis)
    assert call.x.stride() == case.lay_out(torch.empty(case.shape)).stride()
    return call


class Guarded:
    """A dense tensor like `like`, with a pattern of its own around it and, unless filled, in it.

    Its address is that of the `margin`-th element of an aligned buffer: by default an odd one.
    """

    def __init__(self, like: Tensor, dtype: torch.dtype, fill: Tensor | None = None, margin: int = 67) -> None:
        # Of floats, NaN: 0x7FC1 is one in both types of 16 bits.
        sizes = {1: (torch.uint8, 0xA5), 2: (torch.int16, 0x7FC1), 4: (torch.int32, 0x7FC0BEEF)}
        sizes[8] = torch.int64, 0x7FF800000000BEEF
        self._as_int, self._pattern = sizes[dtype.itemsize]
        self._margin, self._size = margin, like.numel()
        buffer = torch.full((self._size + 2 * margin,), self._pattern, dtype=self._as_int, device=like.device)
        self._buffer = buffer.view(dtype)
        self.view = self._buffer.as_strided(like.shape, like.stride(), margin)
        if fill is not None:
            self.view.copy_(fill)

    def assert_intact(self) -> None:
        buffer = self._buffer.view(self._as_int)
        assert (buffer[: self._margin] == self._pattern).all(), "written in front of the output"
        assert (buffer[self._margin + self._size :] == self._pattern).all(), "written behind the output"


def scale_of(call: Call, isa: _C.Isa, threads: int = 1) -> Tensor:
    """The learned values, or dorefa's maximum from the kernel."""
    if call.learned is not None:
        return call.learned
    x = Guarded(call.x, call.x.dtype, fill=call.x).view
    maximum = Guarded(kernels.maximum_fake(x, call.quantizer.axis, "cpu"), x.dtype)
    _C.fake_quantize_maximum(flat(x), maximum.view, *options(call, isa, threads))
    maximum.assert_intact()
    return maximum.view.clone()


def run_forward(call: Call, isa: _C.Isa, threads: int = 1) -> tuple[Tensor, Tensor]:
    """Call the extension itself on guarded memory: y and the codes."""
    x, scale = Guarded(call.x, call.x.dtype, fill=call.x).view, scale_of(call, isa, threads)
    y, codes = Guarded(x, x.dtype), Guarded(x, call.quantizer.codes)
    inputs = flat(x), scale, zero_point_of(call)
    _C.fake_quantize_forward(*inputs, flat(y.view), *options(call, isa, threads))
    _C.fake_quantize_codes(*inputs, flat(codes.view), *options(call, isa, threads))
    y.assert_intact()
    codes.assert_intact()
    return y.view.clone(), codes.view.clone()


def run_backward(
    call: Call, dy: Tensor, isa: _C.Isa, threads: int = 1, needs: Sequence[bool] = (True, True)
) -> tuple[Tensor | None, Tensor | None]:
    """The same for dx and the gradient of what is learned, each None if it is not needed."""
    x, scale = Guarded(call.x, call.x.dtype, fill=call.x).view, scale_of(call, isa, threads)
    outputs = [Guarded(like, x.dtype) if need else None for like, need in zip((x, scale), needs, strict=True)]
    dx, dscale = (None if output is None else flat(output.view) for output in outputs)
    if call.learned is None:
        outputs[1] = dscale = None
    dy = Guarded(x, x.dtype, fill=dy).view
    _C.fake_quantize_backward(flat(dy), flat(x), scale, zero_point_of(call), dx, dscale, *options(call, isa, threads))
    for output in outputs:
        if output is not None:
            output.assert_intact()
    first, second = (None if output is None else output.view.clone() for output in outputs)
    return first, second


def options(call: Call, isa: _C.Isa, threads: int) -> tuple[Any, ...]:
    return (*kernels._options(call.x, call.quantizer)[:-2], isa, threads)


def flat(dense: Tensor) -> Tensor:
    return kernels._flat(dense)


def zero_point_of(call: Call) -> Tensor | None:
    return None if call.zero_point is None else call.zero_point.to(call.x.dtype)


def along(values: Tensor, call: Call) -> Tensor:
    """One value a channel in the shape that broadcasts against x."""
    return values.reshape([-1 if d == call.quantizer.axis else 1 for d in range(call.x.ndim)])


def assert_right_dorefa(call: Call, y: Tensor, codes: Tensor, dy: Tensor, dx: Tensor) -> None:
    """Codes are those of float64, but where n r is so near to a tie that the tanh of float32 decides.

    y and dx may be rounded further, to a type of less precision.
    """
    levels, epsilon = call.quantizer.high, torch.finfo(torch.promote_types(call.x.dtype, torch.float32)).eps
    tanh = call.x.double().tanh()
    others = [d for d in range(tanh.ndim) if d != call.quantizer.axis]
    largest = tanh.abs().amax(others, keepdim=True) if others else tanh.abs()
    scaled = levels * (tanh / (2 * largest) + 0.5)
    assert ((codes - scaled).abs() <= 0.5 + 4 * epsilon * levels).all()
    exact_y = (2 * codes.to(torch.promote_types(y.dtype, torch.float32)) - levels) / levels
    assert torch.equal(y, exact_y.to(y.dtype))
    exact = dy.double() * (1 - tanh**2) / largest
    bound = 8 * epsilon * dy.double().abs() / largest
    if dx.dtype in (torch.float16, torch.bfloat16):
        bound += torch.finfo(dx.dtype).eps * exact.abs() + torch.finfo(dx.dtype).smallest_normal
    assert ((dx - exact).abs() <= bound).all()


def assert_accurate_sum(call: Call, dy: Tensor, dscale: Tensor) -> None:
    """Against terms that are rounded as the operation defines them, and summed in double precision."""
    assert call.learned is not None
    x, quantizer = call.x, call.quantizer
    learned = along(call.learned, call)
    if quantizer.method == "pact":
        terms = torch.where(x >= learned, dy, 0).double()
    else:
        zero = torch.zeros((), dtype=x.dtype) if call.zero_point is None else along(call.zero_point, call).to(x.dtype)
        low, high, v = quantizer.low - zero, quantizer.high - zero, x / learned
        coefficient = torch.where(v <= low, low, torch.where(v >= high, high, v.round() - v))
        terms = dy.double() * coefficient.double() * lsq_factor(x, quantizer)
    others = [d for d in range(x.ndim) if d != quantizer.axis]
    if others:
        exact, magnitude = terms.sum(others).view(dscale.shape), terms.abs().sum(others).view(dscale.shape)
    else:
        exact, magnitude = terms.reshape(dscale.shape), terms.abs().reshape(dscale.shape)
    underflow = x.numel() * torch.finfo(x.dtype).smallest_normal * torch.finfo(x.dtype).eps
    bound = 16 * torch.finfo(x.dtype).eps * magnitude + underflow
    assert ((dscale.double() - exact).abs() <= bound).all()
