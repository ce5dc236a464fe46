"""Weights of 1 to 8 bits, packed: a dense stream of bits a row, and what is known about the rows.

Code i of a row takes the bits i·bits and up of the row's stream, lowest bit first; a row ends with a whole byte. That
is the format in memory and in files: 3 bits take 3 bits, and kernels unpack it in registers or into cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spos_kernels import _C
from spos_kernels.backends import ISA, is_plain, threads_for

__all__ = ["PackedWeight", "pack", "pack_reference", "pack_weight", "unpack", "unpack_reference", "unpack_weight"]


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight of whole codes: weight[n, …] = scale[n] · (code[n, …] − zero[n]). Made by `pack_weight`.

    packed: uint8 [N, bytes], of each output its codes in the order (kernel row, kernel column, input).
    bits: 1 to 8. shape: (N, K) of a linear layer, (N, I, kh, kw) of a convolution, I the inputs of one of its groups.
    sums, twice_zero: int32 [G, N], of each group of scales the sum of its codes, and twice the zero.
    scale: float32 or float64 [G, N], or None for codes without a scale. What products by the weight make of their sums
        is computed in its dtype.

    The tensors must not be changed. Raises TypeError or ValueError where their shapes do not agree with each other.
    """

    packed: Tensor
    bits: int
    shape: tuple[int, ...]
    sums: Tensor
    twice_zero: Tensor
    scale: Tensor | None
    doubled: bool = field(init=False)  # a zero is an odd multiple of ½: sums are kept twice
    centred: bool = field(init=False)  # all zeros are 2^(bits − 1): codes less that are the integers meant
    _multipliers: dict[float, Tensor] = field(init=False, default_factory=dict, repr=False)
    shortcuts: dict[object, Any] = field(init=False, default_factory=dict, repr=False)  # see lowbit_shortcuts

    def __post_init__(self) -> None:
        check_bits(self.bits)
        if len(self.shape) not in (2, 4) or any(type(n) is not int or n < 1 for n in self.shape):
            raise ValueError(f"shape = {self.shape}: expected two or four positive sizes")
        size = math.prod(self.shape[1:])
        _check_part("packed", self.packed, (torch.uint8,), (self.shape[0], -(-size * self.bits // 8)))
        groups = self.sums.shape[0] if isinstance(self.sums, Tensor) and self.sums.ndim == 2 else 1
        if groups < 1 or (groups > 1 and (len(self.shape) != 2 or size % (8 * groups))):
            raise ValueError(
                f"sums has {groups} groups of inputs: expected 1, or for (N, K) multiples of 8 of K = {size}"
            )
        for name, part in (("sums", self.sums), ("twice_zero", self.twice_zero)):
            _check_part(name, part, (torch.int32,), (groups, self.shape[0]))
        if self.scale is not None:
            _check_part("scale", self.scale, (torch.float32, torch.float64), (groups, self.shape[0]))
        object.__setattr__(self, "doubled", bool((self.twice_zero & 1).any()))
        object.__setattr__(self, "centred", bool((self.twice_zero == 1 << self.bits).all()))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that results are computed in: the scale's, float32 where there is none."""
        return torch.float32 if self.scale is None else self.scale.dtype

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedWeight, (self.packed, self.bits, self.shape, self.sums, self.twice_zero, self.scale)

    def multiplier(self, x_scale: float) -> Tensor | None:
        """Return what makes a result of a sum: scale times x_scale, halved for sums that are kept twice."""
        if self.scale is None:
            return None
        found = self._multipliers.get(x_scale)
        if found is None:
            found = self.scale * (x_scale / (2 if self.doubled else 1))
            if is_plain(self.scale, found):  # not of a trace
                if len(self._multipliers) >= 64:  # a scale that changes at every call
                    self._multipliers.clear()
                self._multipliers[x_scale] = found
        return found


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack codes along the last dimension.

    codes: uint8 [..., K], below 2^bits. bits: 1 to 8. Returns uint8 [..., ⌈K·bits / 8⌉], unused bits 0.

    Raises TypeError or ValueError, also for a code that does not fit.
    """
    rows = _check_codes(codes, bits)
    packed = codes.new_empty((*codes.shape[:-1], -(-codes.shape[-1] * bits // 8)))
    if codes.numel() == 0:
        return packed
    _C.lowbit_pack(rows, packed.view(rows.shape[0], packed.shape[-1]), bits, threads_for(4 * codes.numel()))
    return packed


def unpack(packed: Tensor, bits: int, size: int) -> Tensor:
    """Undo `pack`: uint8 [..., ⌈size·bits / 8⌉] to codes, uint8 [..., size]. Raises TypeError or ValueError."""
    rows = _check_packed(packed, bits, size)
    codes = packed.new_empty((*packed.shape[:-1], size))
    if codes.numel() == 0:
        return codes
    _C.lowbit_unpack(rows, codes.view(rows.shape[0], size), bits, ISA, threads_for(4 * codes.numel()))
    return codes


def pack_reference(codes: Tensor, bits: int) -> Tensor:
    """`pack` in plain PyTorch: same arguments, result and errors."""
    rows = _check_codes(codes, bits)
    if rows.numel() and int(rows.max()) >> bits:
        raise ValueError("codes: expected values below 2^bits")
    if codes.numel() == 0:
        return codes.new_empty((*codes.shape[:-1], -(-codes.shape[-1] * bits // 8)))
    stream = (rows[..., None] >> torch.arange(bits, dtype=torch.uint8, device=rows.device)) & 1
    stream = stream.reshape(rows.shape[0], -1)
    stream = torch.nn.functional.pad(stream, (0, -stream.shape[1] % 8)).view(rows.shape[0], -1, 8)
    packed = (stream << torch.arange(8, dtype=torch.uint8, device=rows.device)).sum(-1, dtype=torch.uint8)
    return packed.view(*codes.shape[:-1], packed.shape[-1])


def unpack_reference(packed: Tensor, bits: int, size: int) -> Tensor:
    """`unpack` in plain PyTorch: same arguments, result and errors."""
    rows = _check_packed(packed, bits, size)
    if size == 0 or packed.numel() == 0:
        return packed.new_empty((*packed.shape[:-1], size))
    stream = (rows[..., None] >> torch.arange(8, dtype=torch.uint8, device=rows.device)) & 1
    stream = stream.reshape(rows.shape[0], -1)[:, : size * bits].reshape(rows.shape[0], size, bits)
    codes = (stream << torch.arange(bits, dtype=torch.uint8, device=rows.device)).sum(-1, dtype=torch.uint8)
    return codes.view(*packed.shape[:-1], size)


def pack_weight(
    codes: Tensor,
    bits: int,
    *,
    scale: Tensor | None = None,
    zero_point: float | Tensor | None = None,
) -> PackedWeight:
    """Pack a layer's weight for `lowbit_matmul` or `lowbit_conv2d`.

    codes: uint8 [N, K] or [N, I, kh, kw], below 2^bits.
    scale: float32 or float64 [N], or [N, G] for a scale of each K / G inputs of a linear layer (a multiple of 8 of
        them); None for codes without a scale, whose results are integers.
    zero_point: the code of 0, an integer or an odd multiple of ½ from 0 to 2^bits; a number, or a tensor shaped like
        `scale`; None for 2^(bits − 1), which makes signed numbers of the codes. DoReFa's weights (2c − n) / n, with
        n = 2^bits − 1, have the scale 2 / n and the zero n / 2.

    Raises TypeError or ValueError, naming the argument.
    """
    if not isinstance(codes, Tensor) or codes.dtype != torch.uint8:
        raise TypeError(f"codes is {_kind(codes)}: expected a torch.uint8 tensor")
    check_values(codes, "codes")
    if codes.ndim not in (2, 4) or codes.numel() == 0:
        raise ValueError(f"codes has shape {list(codes.shape)}: expected [N, K] or [N, I, kh, kw], none of them 0")
    outputs = codes.shape[0]
    rows = codes if codes.ndim == 2 else codes.permute(0, 2, 3, 1).reshape(outputs, -1)
    packed = pack(rows, bits)
    groups = _scale_groups(scale, "scale", outputs)
    zero_groups = _scale_groups(zero_point, "zero_point", outputs) if isinstance(zero_point, Tensor) else 1
    if zero_groups != 1 and zero_groups != groups:
        raise ValueError(f"zero_point has {zero_groups} groups of inputs: expected those of scale, {groups}")
    if groups > 1 and (codes.ndim != 2 or rows.shape[1] % (8 * groups)):
        raise ValueError(
            f"scale has {groups} groups of inputs: expected 1, or for [N, K] groups of a multiple of 8 of K = "
            f"{rows.shape[1]}"
        )
    accepted = f"zero_point = {zero_point!r}: accepted are multiples of ½ from 0 to 2^bits = {2**bits}"
    if not isinstance(zero_point, Tensor):
        if zero_point is not None and (isinstance(zero_point, bool) or not isinstance(zero_point, int | float)):
            raise TypeError(f"{accepted}, or a tensor of them")
        if zero_point is not None and not 0 <= zero_point <= 2**bits:
            raise ValueError(accepted)
    zero = torch.as_tensor(
        2.0 ** (bits - 1) if zero_point is None else zero_point, dtype=torch.float64, device=codes.device
    )
    twice = 2 * zero
    if not bool(((twice == twice.round()) & (twice >= 0) & (twice <= 2 * 2**bits)).all()):
        raise ValueError(accepted)
    shaped = twice.view(outputs, -1).T if twice.ndim else twice
    twice_zero = shaped.to(torch.int32).expand(groups, outputs).contiguous()
    sums = rows.view(outputs, groups, -1).sum(-1, dtype=torch.int32).T.contiguous()
    own = None if scale is None else _real(scale.detach()).view(outputs, groups).T.contiguous()
    return PackedWeight(packed, bits, tuple(codes.shape), sums, twice_zero, own)


def unpack_weight(weight: PackedWeight) -> Tensor:
    """Return the codes of a packed weight, uint8 in its shape."""
    return _in_shape(weight, unpack)


def unpack_weight_reference(weight: PackedWeight) -> Tensor:
    """`unpack_weight` in plain PyTorch."""
    return _in_shape(weight, unpack_reference)


def _in_shape(weight: PackedWeight, unpack: Callable[[Tensor, int, int], Tensor]) -> Tensor:
    outputs = weight.shape[0]
    inner = weight.shape[1:] if len(weight.shape) == 2 else (*weight.shape[2:], weight.shape[1])
    codes = unpack(weight.packed, weight.bits, math.prod(inner)).view(outputs, *inner)
    return codes if len(weight.shape) == 2 else codes.permute(0, 3, 1, 2)


def check_bits(bits: object, name: str = "bits") -> int:
    """Return `bits` if it is an integer from 1 to 8, else raise TypeError or ValueError."""
    if not isinstance(bits, int) or isinstance(bits, bool):
        raise TypeError(f"{name} = {bits!r}: expected an integer from 1 to 8")
    if not 1 <= bits <= 8:
        raise ValueError(f"{name} = {bits!r}: expected an integer from 1 to 8")
    return bits


def check_values(tensor: Tensor, name: str) -> None:
    """Raise TypeError for a tensor without values in memory that strides lead to."""
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} has layout {tensor.layout}: expected torch.strided")
    if tensor.is_meta:
        raise TypeError(f"{name} is on the meta device: expected a tensor with values")


def check_weight(weight: PackedWeight, ndim: int) -> None:
    """Raise TypeError or ValueError unless this is a packed weight of `ndim` dimensions."""
    if not isinstance(weight, PackedWeight):
        raise TypeError(f"weight is {_kind(weight)}: expected a PackedWeight, see pack_weight")
    if len(weight.shape) != ndim:
        raise ValueError(f"weight has shape {list(weight.shape)}: expected {ndim} dimensions")


def _check_part(name: str, tensor: object, dtypes: tuple[torch.dtype, ...], shape: tuple[int, ...]) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype not in dtypes:
        raise TypeError(f"{name} is {_kind(tensor)}: expected a {' or '.join(map(str, dtypes))} tensor")
    if tuple(tensor.shape) != shape or not tensor.is_contiguous():
        raise ValueError(f"{name} has shape {list(tensor.shape)}: expected {list(shape)}, contiguous")


def _scale_groups(scale: Tensor | None, name: str, outputs: int) -> int:
    if scale is None:
        return 1
    if not isinstance(scale, Tensor):
        raise TypeError(f"{name} is {_kind(scale)}: expected a tensor")
    if scale.ndim not in (1, 2) or scale.shape[0] != outputs or scale.numel() == 0:
        raise ValueError(f"{name} has shape {list(scale.shape)}: expected [{outputs}] or [{outputs}, G]")
    if scale.is_complex():
        raise TypeError(f"{name} has dtype {scale.dtype}: expected real numbers")
    if not bool(torch.isfinite(_real(scale)).all()):
        raise ValueError(f"{name} has a value that is not finite")
    return 1 if scale.ndim == 1 else scale.shape[1]


def _real(scale: Tensor) -> Tensor:
    return scale if scale.dtype == torch.float64 else scale.float()


def _check_codes(codes: Tensor, bits: int) -> Tensor:
    check_bits(bits)
    if not isinstance(codes, Tensor) or codes.dtype != torch.uint8:
        raise TypeError(f"codes is {_kind(codes)}: expected a torch.uint8 tensor")
    check_values(codes, "codes")
    if codes.ndim < 1:
        raise ValueError("codes has no dimension: expected at least one")
    return codes.contiguous().view(codes[..., :1].numel() if codes.shape[-1] else 0, codes.shape[-1])


def _check_packed(packed: Tensor, bits: int, size: int) -> Tensor:
    check_bits(bits)
    if not isinstance(packed, Tensor) or packed.dtype != torch.uint8:
        raise TypeError(f"packed is {_kind(packed)}: expected a torch.uint8 tensor")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError(f"size = {size!r}: expected an integer from 0")
    if packed.ndim < 1 or packed.shape[-1] != -(-size * bits // 8):
        raise ValueError(
            f"packed has shape {list(packed.shape)}: expected {-(-size * bits // 8)} bytes in the last dimension for "
            f"{size} codes of {bits} bits"
        )
    return packed.contiguous().view(packed[..., :1].numel() if packed.shape[-1] else 0, packed.shape[-1])


def _kind(value: object) -> str:
    return f"of dtype {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
