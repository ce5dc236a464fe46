"""Products of floats by packed weights, which become floats on the way: quantization of the weights alone.

w[n, k] = scale[group of k, n] · (code[n, k] − zero[group of k, n]), rounded to x's dtype
y[p, n] = relu(Σ over k of x[p, k] · w[n, k] + bias[n]), rounded to x's dtype
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spos_kernels.backends import is_plain, resolve_backend
from spos_kernels.cuda.modules import module_of, stream_of, takes_tf32
from spos_kernels.library import register
from spos_kernels.lowbit_geometry import Geometry
from spos_kernels.packing import PackedWeight, check_values, unpack_weight_reference

WeightOnly = Callable[[Tensor, PackedWeight, Geometry, Tensor | None, bool], Tensor]
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def refuse(**options: object) -> None:
    """Raise ValueError for an option that products of floats do not have."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{given[0]} is given where x_quantizer is None: expected none")


def check_weight_only(x: Tensor, weight: PackedWeight, bias: Tensor | None, relu: bool) -> None:
    """Raise TypeError or ValueError for what products of floats do not take, naming the argument."""
    if not isinstance(x, Tensor) or x.dtype not in FLOATS:
        kind = f"has dtype {x.dtype}" if isinstance(x, Tensor) else f"is a {type(x).__name__}"
        raise TypeError(f"x {kind}: expected floats where x_quantizer is None")
    check_values(x, "x")
    if weight.scale is None:
        raise ValueError("weight has no scale: expected one where x_quantizer is None")
    if not isinstance(relu, bool):
        raise TypeError(f"relu is a {type(relu).__name__}: expected True or False")
    if bias is not None:
        if not isinstance(bias, Tensor) or bias.dtype not in FLOATS:
            kind = f"has dtype {bias.dtype}" if isinstance(bias, Tensor) else f"is a {type(bias).__name__}"
            raise TypeError(f"bias {kind}: expected floats")
        if tuple(bias.shape) != (weight.shape[0],):
            raise ValueError(f"bias has shape {list(bias.shape)}: expected {[weight.shape[0]]}")
        check_values(bias, "bias")


def run_weight_only(rows: Tensor, weight: PackedWeight, geometry: Geometry, bias: Tensor | None, relu: bool) -> Tensor:
    """Run a checked call on the backend in force; x and the result as rows of pixels."""
    if resolve_backend(rows, compiled=("triton",)) == "reference":
        return run_weight_only_reference(rows, weight, geometry, bias, relu)
    assert weight.scale is not None
    tensors = (rows.detach(), weight.packed, weight.twice_zero, weight.scale.float(),
               None if bias is None else bias.detach().float())  # fmt: skip
    plain = is_plain(*[t for t in tensors if t is not None])
    kernel = _kernel if plain else torch.ops.spos_kernels.weight_only_products
    return kernel(*tensors, geometry.flat(), weight.bits, relu)


def run_weight_only_reference(
    rows: Tensor, weight: PackedWeight, geometry: Geometry, bias: Tensor | None, relu: bool
) -> Tensor:
    """The same in plain PyTorch."""
    if rows.shape[0] == 0:
        return rows.new_empty((0, weight.shape[0]))
    image = rows.detach().view(geometry.batch, geometry.height, geometry.width, -1).permute(0, 3, 1, 2)
    kernel = floats_of(weight).to(rows.dtype).view(*weight.shape[:2], *geometry.kernel)
    y = F.conv2d(image, kernel, None, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
    pixels = y.permute(0, 2, 3, 1).reshape(-1, weight.shape[0]).contiguous()
    if bias is not None:
        wide = torch.promote_types(rows.dtype, torch.float32)
        pixels = (pixels.to(wide) + bias.detach().to(wide)).to(rows.dtype)
    return pixels.clamp(min=0) if relu else pixels


def floats_of(weight: PackedWeight) -> Tensor:
    """Return what a packed weight means, in its shape and in the dtype of its scale."""
    assert weight.scale is not None
    codes = unpack_weight_reference(weight).to(weight.dtype)
    groups, outputs = weight.scale.shape
    parts = codes.reshape(outputs, groups, -1)
    zero = weight.twice_zero.to(weight.dtype) / 2
    return ((parts - zero.T[:, :, None]) * weight.scale.T[:, :, None]).view(weight.shape)


def _kernel(
    x: Tensor,
    packed: Tensor,
    twice_zero: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    sizes: Sequence[int],
    bits: int,
    relu: bool,
) -> Tensor:
    y = _fake(x, packed, twice_zero, scale, bias, sizes, bits, relu)
    if y.numel():
        module_of("triton").weight_only_conv2d(
            x, packed, twice_zero, scale, bias, y, sizes, bits, relu, takes_tf32(x), stream_of(x)
        )
    return y


def _fake(
    x: Tensor,
    packed: Tensor,
    twice_zero: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    sizes: Sequence[int],
    bits: int,
    relu: bool,
) -> Tensor:
    batch, _, _, out_height, out_width = sizes[:5]
    return x.new_empty((batch * out_height * out_width, packed.shape[0]))


register(
    "weight_only_products",
    "(Tensor x, Tensor packed, Tensor twice_zero, Tensor scale, Tensor? bias, SymInt[] sizes, int bits, bool relu)",
    _kernel,
    _fake,
)
