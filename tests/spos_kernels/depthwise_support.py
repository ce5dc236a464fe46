"""What the depthwise convolution's tests share: shapes, guarded buffers, the three passes, the error bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spos_kernels import _C

PASSES = ("forward", "dgrad", "wgrad")


@dataclass(frozen=True)
class Case:
    batch: int
    channels: int
    height: int
    width: int
    kernel: int
    stride: int = 1
    padding: int | None = None

    @property
    def pad(self) -> int:
        return self.kernel // 2 if self.padding is None else self.padding

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.channels, self.height, self.width

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        height, width = ((n + 2 * self.pad - self.kernel) // self.stride + 1 for n in (self.height, self.width))
        return self.batch, self.channels, height, width

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.channels, 1, self.kernel, self.kernel

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.x_shape))
        return f"{sizes}-k{self.kernel}s{self.stride}p{self.pad}"


# Channels below, at and above every vector width, with tails; maps down to one pixel, and narrower than the kernel.
CASES = [
    Case(1, 1, 1, 1, 3),
    Case(2, 1, 9, 9, 7),
    Case(2, 2, 5, 1, 5),
    Case(1, 7, 1, 6, 7, stride=2),
    Case(3, 7, 7, 7, 3),
    Case(2, 7, 8, 8, 5, stride=2),
    Case(2, 16, 14, 14, 3),
    Case(1, 16, 14, 13, 3, stride=2),
    Case(2, 17, 2, 2, 7),
    Case(1, 33, 11, 12, 5),
    Case(2, 48, 7, 7, 5, stride=2),
    Case(1, 64, 9, 10, 7, stride=2),
    Case(1, 65, 28, 3, 3),
    Case(2, 129, 5, 9, 7),
    Case(1, 129, 4, 4, 3, stride=2),
    Case(1, 160, 13, 29, 5),
    Case(1, 16, 56, 56, 7),
]
PADDINGS = [
    Case(2, 19, 10, 9, kernel, stride, padding)
    for kernel in (3, 5, 7)
    for stride in (1, 2)
    for padding in range(kernel)
    if padding != kernel // 2
]


def run_pass(name: str, case: Case, inputs: tuple[Tensor, Tensor], output: Tensor, isa: _C.Isa, threads: int) -> None:
    """Call the extension itself: (x, weight) → y, (dy, weight) → dx or (x, dy) → dweight."""
    kernel: Callable[..., None] = getattr(_C, f"depthwise_conv2d_{name}")
    kernel(*inputs, output, case.stride, case.pad, isa, threads)


def shapes_of(name: str, case: Case) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The shapes of a pass's two inputs and of its output."""
    x, weight, y = case.x_shape, case.weight_shape, case.y_shape
    return {"forward": (x, weight, y), "dgrad": (y, weight, x), "wgrad": (x, y, weight)}[name]


def torch_pass(name: str, case: Case, inputs: tuple[Tensor, Tensor]) -> Tensor:
    """The same pass by torch, in the dtype of the inputs."""
    first, second = inputs
    options = {"stride": case.stride, "padding": case.pad, "groups": case.channels}
    if name == "forward":
        return F.conv2d(first, second, **options)
    if name == "dgrad":
        return torch.nn.grad.conv2d_input(case.x_shape, second, first, **options)
    return torch.nn.grad.conv2d_weight(first, case.weight_shape, second, **options)


def assert_accurate(name: str, case: Case, inputs: tuple[Tensor, Tensor], result: Tensor) -> None:
    """Each element's error against float64 is at most 2 × that of torch's kernel in this dtype + 4·eps·Σ|aᵢbᵢ|."""
    exact = torch_pass(name, case, (inputs[0].double(), inputs[1].double()))
    magnitude = torch_pass(name, case, (inputs[0].double().abs(), inputs[1].double().abs()))
    torch_error = (torch_pass(name, case, inputs).double() - exact).abs()
    error = (result.double() - exact).abs()
    bound = 2 * torch_error + 4 * torch.finfo(result.dtype).eps * magnitude
    assert torch.isfinite(result).all()
    worst = (error - bound).max() if error.numel() else torch.tensor(0.0)
    assert worst <= 0, f"{name} {case}: error exceeds its bound by {worst:.3e}"


class Guarded:
    """A channels_last view of `shape` inside a wider buffer that is NaN everywhere else: before, behind, between.

    The view is a slice of channels at an odd offset, so rows are not aligned. NaN outside an input shows a read that
    matters; changed NaNs (a bit pattern of their own) outside an output show a write.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: torch.dtype, fill: Tensor | None = None, device: str = "cpu"
    ) -> None:
        batch, channels, height, width = shape
        self._as_int, self._pattern = {
            2: (torch.int16, 0x7FBE),  # a NaN of float16 and of bfloat16
            4: (torch.int32, 0x7FC0BEEF),
            8: (torch.int64, 0x7FF800000000BEEF),
        }[dtype.itemsize]
        before, after, self._margin = 3, 5, 64 + 1
        pixel = before + channels + after
        size = batch * height * width * pixel
        self._buffer = torch.full((size + 2 * self._margin,), self._pattern, dtype=self._as_int, device=device)
        self._buffer = self._buffer.view(dtype)
        wide = self._buffer[self._margin : self._margin + size].view(batch, height, width, pixel).permute(0, 3, 1, 2)
        self.view = wide[:, before : before + channels]
        if fill is not None:
            self.view.copy_(fill)

    def assert_guards_intact(self) -> None:
        outside = torch.ones_like(self._buffer, dtype=torch.bool)
        outside.as_strided(self.view.shape, self.view.stride(), self.view.storage_offset()).fill_(False)
        assert (self._buffer.view(self._as_int)[outside] == self._pattern).all(), "written outside the output"
