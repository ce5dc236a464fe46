"""What the sliced convolution's tests share: shapes, slices of guarded weights, the three passes, the error bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from depthwise_support import Guarded
from torch import Tensor

from spos_kernels import _C


@dataclass(frozen=True)
class Case:
    """Channels are those of a group; the weight has `more` rows and columns than the slice, around it."""

    batch: int
    in_channels: int
    out_channels: int
    height: int
    width: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1
    more: int = 5
    channels_last: bool = False

    @property
    def out_offset(self) -> int:
        return self.more // 2

    @property
    def in_offset(self) -> int:
        return (self.more + 1) // 2

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.groups * self.in_channels, self.height, self.width

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        height, width = ((n + 2 * self.padding - self.kernel) // self.stride + 1 for n in (self.height, self.width))
        return self.batch, self.groups * self.out_channels, height, width

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.groups * self.out_channels + self.more, self.in_channels + self.more, self.kernel, self.kernel

    def slice_of(self, weight: Tensor) -> Tensor:
        rows = weight[self.out_offset : self.out_offset + self.groups * self.out_channels]
        return rows[:, self.in_offset : self.in_offset + self.in_channels]

    @property
    def options(self) -> tuple[int, ...]:
        """The arguments behind the tensors, in the extension's order."""
        return self.out_offset, self.in_offset, self.stride, self.padding, self.groups

    def __str__(self) -> str:
        sizes = "x".join(map(str, self.x_shape))
        layout = "-nhwc" if self.channels_last else ""
        return f"{sizes}-o{self.out_channels}k{self.kernel}s{self.stride}p{self.padding}g{self.groups}{layout}"


# Channels below, at and above every vector width and every panel; maps of one pixel and smaller than the kernel; every
# kernel size with every stride and some padding; what is cut into parts (many pixels, few channels) and into blocks
# (many channels); single channels and many groups; several images in a block, weights too large for L2, rows of one and
# of several tiles for each instruction set.
CASES = [
    Case(1, 1, 1, 1, 1),
    Case(2, 7, 33, 5, 6),
    Case(3, 33, 7, 4, 9),
    Case(1, 129, 129, 3, 3, channels_last=True),
    Case(2, 16, 80, 7, 7, more=0),
    Case(2, 64, 96, 9, 5, stride=2),
    Case(13, 24, 20, 13, 12),
    Case(1, 300, 340, 2, 3),
    Case(2, 1, 7, 6, 5, kernel=3, padding=1),
    Case(1, 17, 33, 9, 8, kernel=3, padding=1),
    Case(2, 33, 16, 11, 10, kernel=3, stride=2, padding=1, channels_last=True),
    Case(1, 130, 50, 6, 5, kernel=3, padding=1),
    Case(9, 16, 16, 14, 14, kernel=3, padding=1),
    Case(13, 130, 120, 7, 7, kernel=3, padding=1),
    Case(2, 16, 24, 5, 31, kernel=3, padding=1),
    Case(2, 32, 33, 6, 2, kernel=3, padding=1, channels_last=True),
    Case(1, 48, 7, 30, 29, kernel=3, padding=1),
    Case(2, 12, 9, 2, 2, kernel=3, padding=2),
    Case(1, 9, 12, 7, 8, kernel=2),
    Case(1, 9, 12, 7, 8, kernel=2, stride=2, padding=1),
    Case(1, 8, 5, 9, 9, kernel=4, padding=3),
    Case(2, 5, 18, 8, 7, kernel=4, stride=2, padding=1, channels_last=True),
    Case(1, 10, 17, 9, 9, kernel=5, padding=2),
    Case(1, 3, 16, 9, 11, kernel=5, stride=2, padding=2),
    Case(1, 6, 8, 9, 8, kernel=6, padding=4),
    Case(1, 6, 8, 9, 9, kernel=6, stride=2, padding=5),
    Case(2, 3, 64, 17, 18, kernel=7, stride=2, padding=3),
    Case(1, 4, 6, 8, 9, kernel=7, padding=6, channels_last=True),
    Case(2, 3, 4, 6, 7, groups=3),
    Case(1, 17, 18, 7, 6, kernel=3, padding=1, groups=2),
    Case(1, 2, 1, 9, 9, kernel=5, stride=2, padding=1, groups=7, channels_last=True),
    Case(1, 1, 1, 5, 5, kernel=2, padding=1, groups=19),
]


def run_pass(
    name: str,
    case: Case,
    inputs: tuple[Tensor, Tensor],
    output: Tensor,
    isa: _C.Isa,
    threads: int,
    accumulate: bool = False,
) -> None:
    """Call the extension itself: (x, weight) → y, (dy, weight) → dx or (x, dy) → dweight, weights whole."""
    kernel: Callable[..., None] = getattr(_C, f"sliced_conv2d_{name}")
    first, second = inputs
    if name == "forward":
        kernel(first, second, None, output, *case.options, isa, threads)
    elif name == "dgrad":
        kernel(first, second, output, *case.options, isa, threads)
    else:
        kernel(first, second, output, *case.options, accumulate, isa, threads)


def shapes_of(name: str, case: Case) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The shapes of a pass's two inputs and of its output, weights as their slices."""
    x, y = case.x_shape, case.y_shape
    weight = case.groups * case.out_channels, case.in_channels, case.kernel, case.kernel
    return {"forward": (x, weight, y), "dgrad": (y, weight, x), "wgrad": (x, y, weight)}[name]


def guarded_weight(case: Case, dtype: torch.dtype, fill: Tensor | None = None, device: str = "cpu") -> Tensor:
    """A whole weight, NaN outside the slice, and in it too unless there is a `fill`."""
    weight = torch.full(case.weight_shape, float("nan"), dtype=dtype, device=device)
    if case.channels_last:
        weight = weight.to(memory_format=torch.channels_last)
    if fill is not None:
        case.slice_of(weight).copy_(fill)
    return weight


def run_guarded(
    name: str,
    case: Case,
    inputs: tuple[Tensor, Tensor],
    isa: _C.Isa,
    threads: int = 2,
    start: Tensor | None = None,
) -> Tensor:
    """Run a pass on slices with NaN around them, into a poisoned output; check its guards, return a copy.

    start: what a wgrad finds in the slice and adds to; None for one that overwrites.
    """
    dtype = inputs[0].dtype
    views = [Guarded(tuple(t.shape), dtype, fill=t).view for t in inputs]
    if name == "wgrad":
        whole = guarded_weight(case, dtype, start)
        run_pass(name, case, (views[0], views[1]), whole, isa, threads, accumulate=start is not None)
        result = case.slice_of(whole).clone()
        case.slice_of(whole).fill_(float("nan"))
        assert whole.isnan().all(), "written outside the slice"
        return result
    output = Guarded(shapes_of(name, case)[2], dtype)
    run_pass(name, case, (views[0], guarded_weight(case, dtype, inputs[1])), output.view, isa, threads)
    output.assert_guards_intact()
    return output.view.clone()


def torch_pass(name: str, case: Case, inputs: tuple[Tensor, Tensor]) -> Tensor:
    """The same pass by torch, in the dtype of the inputs."""
    first, second = inputs
    options = {"stride": case.stride, "padding": case.padding, "groups": case.groups}
    if name == "forward":
        return F.conv2d(first, second, **options)
    if name == "dgrad":
        return torch.nn.grad.conv2d_input(case.x_shape, second, first, **options)
    return torch.nn.grad.conv2d_weight(first, shapes_of(name, case)[2], second, **options)


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
