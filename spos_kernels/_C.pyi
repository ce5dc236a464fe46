"""Types of the compiled module. Private: it checks what memory safety needs and nothing more."""

from typing import Any

from torch import Tensor

class Isa:
    portable: Isa
    avx2: Isa
    avx512: Isa
    __members__: dict[str, Isa]
    @property
    def name(self) -> str: ...

class Ceiling:
    fma: Ceiling
    load: Ceiling

class QuantizeMethod:
    dorefa: QuantizeMethod
    pact: QuantizeMethod
    lsq: QuantizeMethod

def run_ceiling(ceiling: Ceiling, isa: Isa, iterations: int, threads: int) -> float: ...
def best_isa() -> Isa: ...
def isa_supported(isa: Isa) -> bool: ...
def set_tensor_types(tensor: type, parameter: type, exchange_capsule: object) -> None: ...
def depthwise_conv2d_forward(
    x: Tensor, weight: Tensor, y: Tensor, stride: int, padding: int, isa: Isa, threads: int
) -> None: ...
def depthwise_conv2d_dgrad(
    dy: Tensor, weight: Tensor, dx: Tensor, stride: int, padding: int, isa: Isa, threads: int
) -> None: ...
def depthwise_conv2d_wgrad(
    x: Tensor, dy: Tensor, dweight: Tensor, stride: int, padding: int, isa: Isa, threads: int
) -> None: ...
def choice_block_forward(
    x: Tensor,
    bank: tuple[Tensor, ...],
    plans: tuple[tuple[Any, ...], ...],
    y: tuple[Tensor, ...],
    saved: tuple[Tensor, ...],
    statistics: Tensor,
    training: bool,
    eps: float,
    isa: Isa,
    threads: tuple[int, ...],
) -> None: ...
def choice_block_run(
    x: Tensor,
    bank: tuple[Tensor, ...],
    plans: tuple[tuple[Any, ...], ...],
    y: Tensor,
    statistics: Tensor,
    training: bool,
    eps: float,
    isa: Isa,
    threads: tuple[int, ...],
) -> int: ...
def choice_block_backward(
    dy: Tensor,
    x: Tensor,
    bank: tuple[Tensor, ...],
    plans: tuple[tuple[Any, ...], ...],
    y: tuple[Tensor, ...],
    saved: tuple[Tensor, ...],
    statistics: Tensor,
    dx: Tensor | None,
    gradients: tuple[Tensor | None, ...],
    training: bool,
    eps: float,
    isa: Isa,
    threads: tuple[int, ...],
) -> int: ...
def choice_block_measure(
    x: Tensor, links: tuple[Any, ...], types: tuple[type, ...], training: bool, averages: bool
) -> tuple[tuple[Tensor, ...], tuple[tuple[Any, ...], ...]] | None: ...
def choice_block_track(
    statistics: Tensor, links: tuple[Any, ...], x_shape: tuple[int, ...], momentum: float | None
) -> None: ...
def fake_quantize_forward(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    y: Tensor,
    method: QuantizeMethod,
    bits: int,
    signed: bool,
    channels: int,
    inner: int,
    isa: Isa,
    threads: int,
) -> None: ...
def fake_quantize_codes(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    codes: Tensor,
    method: QuantizeMethod,
    bits: int,
    signed: bool,
    channels: int,
    inner: int,
    isa: Isa,
    threads: int,
) -> None: ...
def fake_quantize_backward(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    dx: Tensor | None,
    dscale: Tensor | None,
    method: QuantizeMethod,
    bits: int,
    signed: bool,
    channels: int,
    inner: int,
    isa: Isa,
    threads: int,
) -> None: ...
def fake_quantize_maximum(
    x: Tensor,
    maximum: Tensor,
    method: QuantizeMethod,
    bits: int,
    signed: bool,
    channels: int,
    inner: int,
    isa: Isa,
    threads: int,
) -> None: ...
def im2row(x: Tensor, y: Tensor, kernel: int, stride: int, padding: int, threads: int) -> None: ...
def sliced_conv2d_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    out_offset: int,
    in_offset: int,
    stride: int,
    padding: int,
    groups: int,
    isa: Isa,
    threads: int,
) -> None: ...
def sliced_conv2d_dgrad(
    dy: Tensor,
    weight: Tensor,
    dx: Tensor,
    out_offset: int,
    in_offset: int,
    stride: int,
    padding: int,
    groups: int,
    isa: Isa,
    threads: int,
) -> None: ...
def sliced_conv2d_wgrad(
    x: Tensor,
    dy: Tensor,
    dweight: Tensor,
    out_offset: int,
    in_offset: int,
    stride: int,
    padding: int,
    groups: int,
    accumulate: bool,
    isa: Isa,
    threads: int,
) -> None: ...
def stem_conv2d(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    y: Tensor,
    stride: int,
    padding: int,
    relu: bool,
    max_pool: bool,
    isa: Isa,
    threads: int,
) -> None: ...
def sgd_step(updates: list[tuple[Any, ...]], isa: Isa, threads: int) -> None: ...
def lowbit_pack(codes: Tensor, packed: Tensor, bits: int, threads: int) -> None: ...
def lowbit_unpack(packed: Tensor, codes: Tensor, bits: int, isa: Isa, threads: int) -> None: ...
def lowbit_conv2d(
    x: Tensor,
    packed: Tensor,
    sums: Tensor,
    twice_zero: Tensor,
    multiplier: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    y_sums: Tensor | None,
    y: Tensor | None,
    y_codes: Tensor | None,
    sizes: tuple[int, ...],
    numbers: tuple[int, ...],
    scales: tuple[float | None, ...],
    relu: bool,
    method: int,
    isa: Isa,
    threads: int,
) -> None: ...
