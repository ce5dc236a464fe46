"""What `make bounds` counts: one entry a case, easily added to.

A case is a function that makes its tensors and returns the call to count. `multiply_adds` are those of the
floating-point units, which the emulator does not see (those of mma instructions it counts): for each start of a
kernel's name, the number for each launch of such a kernel, in their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

import spos_kernels as sk

Call = Callable[[], object]


@dataclass(frozen=True)
class Case:
    name: str
    shapes: str
    prepare: Callable[[], Call]
    multiply_adds: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def multiply_adds_by_launch(self, kernels: Sequence[str]) -> list[int]:
        """Of these launches; ValueError if what is stated is not used up: then kernels have other names now."""
        met: Counter[str] = Counter()
        found = []
        for kernel in kernels:
            start = next((each for each in self.multiply_adds if kernel.startswith(each)), None)
            if start is None:
                found.append(0)
                continue
            if met[start] == len(self.multiply_adds[start]):
                raise ValueError(f"{self.name}: more launches of {start} than multiply_adds states")
            found.append(self.multiply_adds[start][met[start]])
            met[start] += 1
        unused = [start for start, numbers in self.multiply_adds.items() if met[start] != len(numbers)]
        if unused:
            raise ValueError(f"{self.name}: fewer launches of {', '.join(unused)} than multiply_adds states")
        return found


CASES: list[Case] = []


def case(shapes: str, **multiply_adds: Sequence[int]) -> Callable[[Callable[[], Call]], Callable[[], Call]]:
    def add(prepare: Callable[[], Call]) -> Callable[[], Call]:
        CASES.append(Case(prepare.__name__.replace("_", " "), shapes, prepare, multiply_adds))
        return prepare

    return add


def image(batch: int, channels: int, size: int, dtype: torch.dtype, grad: bool = True) -> Tensor:
    """A map in NHWC."""
    x = torch.randn(batch, channels, size, size, dtype=dtype).to(memory_format=torch.channels_last)
    return x.requires_grad_(grad)


def step(function: Callable[[], Tensor], *leaves: Tensor) -> Call:
    """Forward and backward, of a gradient that is there already."""
    with torch.no_grad():
        dy = torch.ones_like(function())

    def call() -> object:
        return torch.autograd.grad(function(), leaves, dy)

    return call


DEPTHWISE = 4 * 64 * 28 * 28 * 25


@case(
    "x (4, 64, 28, 28) fp16, k = 5, stride 1: forward, dgrad, wgrad",
    convolve_kernel=[DEPTHWISE, DEPTHWISE],
    wgrad_kernel=[DEPTHWISE],
)
def depthwise_conv2d_fp16() -> Call:
    x, weight = image(4, 64, 28, torch.float16), torch.randn(64, 1, 5, 5, dtype=torch.float16, requires_grad=True)
    return step(lambda: sk.depthwise_conv2d(x, weight), x, weight)


@case("x (4, 160, 14, 14) fp16, a slice of 160 x 160 of a weight of 256 x 256, 1 x 1: forward, dgrad, wgrad")
def sliced_conv2d_pointwise_fp16() -> Call:
    x, weight = image(4, 160, 14, torch.float16), torch.randn(256, 256, 1, 1, dtype=torch.float16, requires_grad=True)
    return step(lambda: sk.sliced_conv2d(x, weight, out_channels=160), x, weight)


@case("x (2, 64, 14, 14) bf16, a slice of 64 x 64 of a weight of 128 x 128, 3 x 3: forward, dgrad, wgrad")
def sliced_conv2d_3x3_bf16() -> Call:
    x, weight = image(2, 64, 14, torch.bfloat16), torch.randn(128, 128, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    return step(lambda: sk.sliced_conv2d(x, weight, out_channels=64, padding=1), x, weight)
