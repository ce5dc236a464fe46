"""What convolutions and matrix products of codes have in common: a checked call, and its two ways to run.

    S[p, n] = Σ over taps and inputs of (x_code − x_zero) · (w_code − w_zero[n])          exact
    y = relu(S · (x_scale · scale[n]) + bias[n] + residual)                               each step rounded
    code = clamp(round(y / out_scale) + out_zero, 0, 2^out_bits − 1)                      half to even

S, and every operation after it, is rounded by itself to the dtype of the weight's scale, float32 or float64: nothing
is fused. Scales of quantizers, bias, residual and floats to quantize are numbers of that dtype; float32 is taken for
float64. Taps outside of the map give nothing. Where a zero of the weights is an odd multiple of ½ (DoReFa's), S is
doubled to stay whole, and the scale halved.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spos_kernels import _C
from spos_kernels.backends import GPU, ISA, current_backend, is_plain, resolve_backend, threads_for
from spos_kernels.cuda import lowbit as lowbit_cuda
from spos_kernels.library import register
from spos_kernels.lowbit_geometry import Geometry
from spos_kernels.lowbit_methods import Key, choose
from spos_kernels.packing import PackedWeight, check_bits, check_values, unpack_weight_reference

__all__ = ["Quantizer"]


class Quantizer(NamedTuple):
    """What codes mean, value = scale · (code − zero_point), and how floats become codes: see the module.

    scale > 0, rounded to float32 unless the weight's scale is float64; bits 1 to 8; zero_point from 0 to 2^bits − 1.
    NaN becomes code 0.
    """

    scale: float
    bits: int = 8
    zero_point: int = 0


LARGEST = torch.finfo(torch.float32).max
# Of a row of weights: each lane of its products sums multiples of up to 64 of them in 32 bits.
MOST_ROW_BITS = 1 << 23
MOST_ELEMENTS = 1 << 47  # of a result: more than memory holds, and few enough to count
PLAIN = Quantizer(1.0)  # of codes that are the values


class Call(NamedTuple):
    """One checked call: x and residual as rows of pixels."""

    x: Tensor
    weight: PackedWeight
    geometry: Geometry
    quantizer: Quantizer  # of x
    bias: Tensor | None
    residual: Tensor | None
    residual_quantizer: Quantizer | None
    relu: bool
    out: Quantizer | None
    keep: bool


class Launch(NamedTuple):
    """What the kernel is told of a call besides its tensors."""

    sizes: tuple[int, ...]
    numbers: tuple[int, ...]
    scales: tuple[float | None, float | None, float | None]  # of x, of the residual, of the result
    relu: bool
    keep: bool


class Prepared(NamedTuple):
    """What follows from the sizes of a call: of its result, the methods that can run it, the threads for it."""

    rows: int
    columns: int
    methods: tuple[str, ...]
    threads: int
    key: Key


def backend_of(call: Call) -> str:
    """Return the backend that runs a checked call. TypeError for an explicit one that does not have its dtype."""
    in_float32 = call.weight.dtype == torch.float32
    if current_backend() in GPU and not in_float32:
        raise TypeError(
            f"weight.scale has dtype {call.weight.dtype}: backend {current_backend()!r} accepts torch.float32"
        )
    backend = resolve_backend(call.x, compiled=("cpu", *GPU))
    return backend if in_float32 or backend == "cpu" else "reference"


def run(call: Call, backend: str) -> list[Tensor]:
    """Run a checked call on the kernels of a backend; the results as rows of pixels."""
    weight = call.weight
    launch = launch_of(call)
    tensors = (call.x, weight.packed, weight.sums, weight.twice_zero, weight.multiplier(call.quantizer.scale),
               call.bias, call.residual)  # fmt: skip
    plain = is_plain(*[t for t in (call.x, weight.packed, call.bias, call.residual) if t is not None])
    kernel = _kernel if plain else torch.ops.spos_kernels.lowbit_products
    return list(kernel(*tensors, launch.sizes, launch.numbers, *launch.scales, launch.relu, launch.keep, backend,
                       weight.centred))  # fmt: skip


def launch_of(call: Call) -> Launch:
    """Return what the kernel is told of a call."""
    weight, quantizer, beside, out = call.weight, call.quantizer, call.residual_quantizer, call.out
    sizes = call.geometry.flat()
    numbers = (quantizer.bits, quantizer.zero_point, weight.bits, int(weight.doubled), out.zero_point if out else 0,
               out.bits if out else 8, beside.zero_point if beside else 0)  # fmt: skip
    x_scale = quantizer.scale if call.x.is_floating_point() else None
    scales = (x_scale, beside.scale if beside else None, out.scale if out else None)
    return Launch(sizes, numbers, scales, call.relu, call.keep)


def _kernel(
    x: Tensor,
    packed: Tensor,
    sums: Tensor,
    twice_zero: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[int],
    x_scale: float | None,
    residual_scale: float | None,
    out_scale: float | None,
    relu: bool,
    keep: bool,
    backend: str = "cpu",
    centred: bool = False,
) -> list[Tensor]:
    launch = Launch(tuple(sizes), tuple(numbers), (x_scale, residual_scale, out_scale), relu, keep)
    rows, columns = _rows_and_columns(launch.sizes)
    results = _results(x, rows, columns, multiplier, out_scale is not None, keep)
    tensors = (x, packed, sums, twice_zero, multiplier, bias, residual, *results)
    if backend in GPU:
        lowbit_cuda.run(backend, tensors, launch.sizes, launch.numbers, launch.scales, relu, centred)
    elif rows:
        how = prepared(launch, sums.shape[0])

        def work(method: int) -> None:
            _C.lowbit_conv2d(*tensors, launch.sizes, launch.numbers, launch.scales, relu, method, ISA, how.threads)

        work(choose(how.key, how.methods, work))
    return [t for t in results if t is not None]


def _fake(
    x: Tensor,
    packed: Tensor,
    sums: Tensor,
    twice_zero: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    sizes: Sequence[int],
    numbers: Sequence[int],
    x_scale: float | None,
    residual_scale: float | None,
    out_scale: float | None,
    relu: bool,
    keep: bool,
    backend: str = "cpu",
    centred: bool = False,
) -> list[Tensor]:
    rows, columns = _rows_and_columns(sizes)
    results = _results(x, rows, columns, multiplier, out_scale is not None, keep)
    return [t for t in results if t is not None]


def _rows_and_columns(sizes: Sequence[int]) -> tuple[int, int]:
    batch, _, _, out_height, out_width, groups, _, outputs = sizes[:8]
    return batch * out_height * out_width, groups * outputs


def _results(
    x: Tensor, rows: int, columns: int, multiplier: Tensor | None, coded: bool, keep: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return memory for the sums, the floats and the codes, of those that are wanted."""
    if multiplier is None:
        return x.new_empty((rows, columns), dtype=torch.int64), None, None
    y = x.new_empty((rows, columns), dtype=multiplier.dtype) if keep or not coded else None
    return None, y, x.new_empty((rows, columns), dtype=torch.uint8) if coded else None


register(
    "lowbit_products",
    "(Tensor x, Tensor packed, Tensor sums, Tensor twice_zero, Tensor? multiplier, Tensor? bias, Tensor? residual, "
    "SymInt[] sizes, int[] numbers, float? x_scale, float? residual_scale, float? out_scale, bool relu, bool keep, "
    "str backend='cpu', bool centred=False)",
    _kernel,
    _fake,
    "Tensor[]",
)


def prepared(launch: Launch, scale_groups: int) -> Prepared:
    """Return what follows from the sizes of a call."""
    sizes, numbers = launch.sizes, launch.numbers
    return _prepare(sizes, numbers[0], numbers[2], scale_groups, torch.get_num_threads())


@lru_cache(maxsize=4096)
def _prepare(sizes: tuple[int, ...], x_bits: int, w_bits: int, scale_groups: int, threads: int) -> Prepared:
    inputs, _, kernel_height, kernel_width = sizes[6:10]
    rows, columns = _rows_and_columns(sizes)
    threads = min(threads, threads_for(rows * columns * inputs * kernel_height * kernel_width // 4))
    methods = methods_of(sizes, scale_groups, w_bits, x_bits)
    return Prepared(rows, columns, methods, threads, (*sizes, scale_groups, x_bits, w_bits, ISA.name, threads))


def methods_of(sizes: tuple[int, ...], scale_groups: int, w_bits: int, x_bits: int) -> tuple[str, ...]:
    """Return the methods that can run a call and might be the fastest."""
    batch, _, _, out_height, out_width, groups, inputs, outputs, kernel_height, kernel_width, *rest = sizes
    if groups > 1 and inputs == 1 and outputs == 1:
        return ("dots",)  # a kernel of its own
    if inputs * kernel_height * kernel_width * (2**x_bits - 1) * (2**w_bits - 1) >= 2**31:
        return ("dots",)  # whose sums of codes less half are half as large
    most_bits, most_rows = 4, 8  # bits of a weight times bits of x: more planes have never been faster
    methods = ["dots"]
    if w_bits * x_bits <= most_bits and scale_groups == 1:
        methods.append("bits")
    whole = (kernel_height, kernel_width, groups) == (1, 1, 1) and rest[:4] == [1, 1, 0, 0]
    whole = whole and inputs * w_bits <= MOST_ROW_BITS
    if whole and batch * out_height * out_width <= most_rows:
        methods.append("row")
    return tuple(methods)


def run_reference(call: Call) -> list[Tensor]:
    """Run a checked call in plain PyTorch: whole numbers exactly, in float64, and then the scale's dtype."""
    geometry, weight = call.geometry, call.weight
    codes = call.x
    rows, columns = geometry.batch * geometry.out_height * geometry.out_width, geometry.groups * geometry.outputs
    if rows == 0:
        results = _results(codes, rows, columns, weight.scale, call.out is not None, call.keep)
        return [t for t in results if t is not None]
    if codes.is_floating_point():
        codes = _codes(codes, call.quantizer)
    elif codes.numel() and int(codes.max()) >> call.quantizer.bits:
        raise ValueError("x: has codes of more than x_bits bits")
    pixels = codes.to(torch.float64) - call.quantizer.zero_point
    image = pixels.view(geometry.batch, geometry.height, geometry.width, pixels.shape[-1]).permute(0, 3, 1, 2)
    times = 2 if weight.doubled else 1
    whole = unpack_weight_reference(weight).to(torch.float64).view(*weight.shape[:2], *geometry.kernel) * times
    zeros = weight.twice_zero.to(torch.float64) * times / 2
    count = zeros.shape[0]
    part = geometry.inputs // count
    y = torch.zeros(())
    multiplier = weight.multiplier(call.quantizer.scale)
    for group in range(count):
        inputs = slice(group * part, (group + 1) * part) if count > 1 else slice(None)
        found = F.conv2d(image[:, inputs], whole[:, inputs] - zeros[group][:, None, None, None], None, geometry.stride,
                         geometry.padding, geometry.dilation, geometry.groups)  # fmt: skip
        sums = found.permute(0, 2, 3, 1).reshape(-1, whole.shape[0]).to(torch.int64)
        if multiplier is None:
            return [sums]
        scaled = sums.to(weight.dtype) * multiplier[group]
        y = y + scaled if group else scaled
    if call.bias is not None:
        y = y + call.bias
    if call.residual is not None:
        beside = call.residual_quantizer
        floats = call.residual
        if beside is not None:
            floats = (floats.to(torch.int32) - beside.zero_point).to(weight.dtype) * beside.scale
        y = y + floats
    y = y.clamp(min=0) if call.relu else y
    if call.out is None:
        return [y]
    return [y, _codes(y, call.out)] if call.keep else [_codes(y, call.out)]


def _codes(x: Tensor, how: Quantizer) -> Tensor:
    steps = torch.round(x / torch.tensor(how.scale, dtype=x.dtype, device=x.device)) + how.zero_point
    return steps.nan_to_num(nan=0.0).clamp(0, 2**how.bits - 1).to(torch.uint8)


def check_quantizer(how: Quantizer, name: str, dtype: torch.dtype) -> Quantizer:
    """Return a quantizer with its scale rounded to `dtype`. Raises TypeError or ValueError, naming it."""
    if not isinstance(how, Quantizer):
        raise TypeError(f"{name} is a {type(how).__name__}: expected a Quantizer")
    check_bits(how.bits, f"{name}.bits")
    scale, zero = how.scale, how.zero_point
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(f"{name}.scale is a {type(scale).__name__}: expected a number")
    if not 0 < scale <= LARGEST or (rounded := struct.unpack("f", struct.pack("f", scale))[0]) == 0:
        raise ValueError(f"{name}.scale = {scale!r}: expected a finite number above 0")
    if isinstance(zero, bool) or not isinstance(zero, int) or not 0 <= zero < 2**how.bits:
        raise ValueError(f"{name}.zero_point = {zero!r}: expected an integer from 0 to {2**how.bits - 1}")
    return Quantizer(rounded if dtype == torch.float32 else float(scale), how.bits, zero)


def check_call(
    x: Tensor,
    weight: PackedWeight,
    geometry: Geometry,
    x_quantizer: Quantizer,
    bias: Tensor | None,
    residual: Tensor | None,
    residual_quantizer: Quantizer | None,
    relu: bool,
    out: Quantizer | None,
    keep: bool,
    rows: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
) -> Call:
    """Check what convolution and product have in common. `rows` makes rows of pixels of a tensor shaped like a map."""
    dtype = weight.dtype
    x_quantizer = check_quantizer(x_quantizer, "x_quantizer", dtype)
    size = geometry.inputs * geometry.kernel[0] * geometry.kernel[1]
    most = (2**31 - 1) // ((2**x_quantizer.bits - 1) << (weight.bits - 1))
    if size > most:
        raise ValueError(
            f"weight.shape = {list(weight.shape)}: expected at most {most:,} products a sum at {x_quantizer.bits} by "
            f"{weight.bits} bits, got {size:,}"
        )
    if weight.scale is None:
        options = {"bias": bias, "residual": residual, "residual_quantizer": residual_quantizer, "out_quantizer": out}
        given = [name for name, value in options.items() if value is not None] + ["relu"] * relu + ["keep_float"] * keep
        if given:
            raise ValueError(f"{given[0]} is given for a weight without a scale: expected none")
    for name, flag in (("relu", relu), ("keep_float", keep)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} is a {type(flag).__name__}: expected True or False")
    if math.prod(shape) > MOST_ELEMENTS:
        raise ValueError(f"the result has shape {list(shape)}: expected at most 2^47 elements")
    if keep and out is None:
        raise ValueError("keep_float = True without out_quantizer: the result is float already")
    outputs = geometry.groups * geometry.outputs
    if bias is not None:
        _check_tensor(bias, "bias", _floats(dtype), (outputs,))
        bias = bias.detach().to(dtype).contiguous()
    if residual_quantizer is not None:
        residual_quantizer = check_quantizer(residual_quantizer, "residual_quantizer", dtype)
        if residual is None:
            raise ValueError("residual_quantizer is given without a residual")
    if residual is not None:
        _check_tensor(residual, "residual", _floats(dtype) if residual_quantizer is None else (torch.uint8,), shape)
        residual = rows(residual.detach()).contiguous()
        residual = residual.to(dtype) if residual_quantizer is None else residual
    out = None if out is None else check_quantizer(out, "out_quantizer", dtype)
    pixels = rows(x.detach())
    pixels = pixels.to(dtype) if pixels.is_floating_point() else pixels
    return Call(pixels, weight, geometry, x_quantizer, bias, residual, residual_quantizer, bool(relu), out,
                bool(keep))  # fmt: skip


def check_input(x: object, weight: PackedWeight) -> None:
    """Raise TypeError unless x is a tensor of codes, or of floats that the weight's dtype holds."""
    _check_dtype(x, "x", (torch.uint8, *_floats(weight.dtype)))


def _floats(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    return (torch.float32,) if dtype == torch.float32 else (torch.float32, torch.float64)


def _check_tensor(tensor: Tensor, name: str, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...]) -> None:
    _check_dtype(tensor, name, dtypes)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {list(tensor.shape)}: expected {list(shape)}")


def _check_dtype(tensor: object, name: str, dtypes: tuple[torch.dtype, ...]) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}: expected a tensor")
    if tensor.dtype not in dtypes:
        *others, last = map(str, dtypes)
        expected = f"{', '.join(others)} or {last}" if others else last
        raise TypeError(f"{name} has dtype {tensor.dtype}: expected {expected}")
    check_values(tensor, name)
