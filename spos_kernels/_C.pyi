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

ChainArgument = tuple[tuple[Tensor, Tensor | None, Tensor | None], ...]

def choice_block_forward(
    x: Tensor,
    main: ChainArgument,
    proj: ChainArgument,
    y: Tensor,
    saved: Tensor,
    statistics: Tensor,
    stride: int,
    whole: bool,
    training: bool,
    eps: float,
    isa: Isa,
    threads: int,
) -> None: ...
def choice_block_inference(
    x: Tensor,
    main: ChainArgument,
    proj: ChainArgument,
    y: Tensor,
    statistics: Tensor,
    stride: int,
    whole: bool,
    eps: float,
    isa: Isa,
    threads: int,
) -> bool: ...
def choice_block_backward(
    dy: Tensor,
    x: Tensor,
    main: ChainArgument,
    proj: ChainArgument,
    saved: Tensor,
    statistics: Tensor,
    dx: Tensor | None,
    gradients: tuple[tuple[Tensor | None, Tensor | None, Tensor | None], ...],
    stride: int,
    whole: bool,
    training: bool,
    eps: float,
    isa: Isa,
    threads: int,
) -> None: ...
def im2row(x: Tensor, y: Tensor, kernel: int, stride: int, padding: int, threads: int) -> None: ...
def choice_block_update(statistics: Tensor, running: tuple[tuple[Tensor, Tensor, float, int], ...]) -> None: ...
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
def sgd_step(updates: list[tuple[Any, ...]], isa: Isa, threads: int) -> None: ...
