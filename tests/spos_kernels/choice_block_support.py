"""What the choice block's tests share: blocks to run, guarded memory, a run with all its results, the error bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import spos_kernels as sk
from spos_kernels import Branch, ConvBN

CHOICES = ("3", "5", "7", "x")


@dataclass(frozen=True)
class Case:
    """One block: `mid` channels inside the main branch, `out` at its end; `offset` is the mean of x, in deviations."""

    choice: str
    stride: int
    batch: int = 3
    channels: int = 10
    height: int = 7
    width: int = 6
    mid: int = 7
    out: int = 9
    affine: bool = False
    training: bool = True
    momentum: float | None = 0.1
    offset: float = 0.0

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.channels, self.height, self.width

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        height, width = ((n - 1) // self.stride + 1 for n in (self.height, self.width))
        return self.batch, (self.channels // 2 if self.stride == 1 else self.channels) + self.out, height, width

    @property
    def options(self) -> dict[str, Any]:
        return {"stride": self.stride, "training": self.training, "momentum": self.momentum}

    def __str__(self) -> str:
        flags = [f"choice_{self.choice}", f"s{self.stride}", "x".join(map(str, self.x_shape)), f"{self.mid}-{self.out}"]
        flags += ["train" if self.training else "eval"] + ["affine"] * self.affine
        flags += ["cumulative"] * (self.momentum is None) + [f"offset{self.offset:g}"] * bool(self.offset)
        return " ".join(flags)


def make_layer(shape: tuple[int, ...], affine: bool = False) -> ConvBN:
    """Kaiming weights and random statistics: outputs of the size of the inputs, so that no tolerance hides anything."""
    weight, channels = torch.empty(shape), shape[0]
    nn.init.kaiming_normal_(weight)
    gamma, beta = (torch.rand(channels) + 0.5, torch.randn(channels) * 0.3) if affine else (None, None)
    mean, var = torch.randn(channels) * 0.2, torch.rand(channels) * 1.5 + 0.5
    return ConvBN(weight, gamma, beta, mean, var, torch.tensor(3))


def make_branch(choice: str, channels: int, mid: int, out: int, stride: int, affine: bool = False) -> Branch:
    """A branch of a block with `channels` at its input."""
    branch = channels // 2 if stride == 1 else channels
    kernel = 3 if choice == "x" else int(choice)
    if choice == "x":
        shapes = [(branch, 1, 3, 3), (mid, branch, 1, 1), (mid, 1, 3, 3), (mid, mid, 1, 1), (mid, 1, 3, 3)]
        shapes += [(out, mid, 1, 1)]
    else:
        shapes = [(mid, branch, 1, 1), (mid, 1, kernel, kernel), (out, mid, 1, 1)]
    projection = [(branch, 1, kernel, kernel), (branch, branch, 1, 1)] if stride == 2 else []
    return Branch(*(tuple(make_layer(shape, affine) for shape in chain) for chain in (shapes, projection)))


def map_tensors(branch: Branch, function: Callable[[Tensor, str], Tensor]) -> Branch:
    """Put `function(tensor, field)` in the place of every tensor of a branch."""
    return Branch(
        *(
            tuple(
                ConvBN(*(t if t is None else function(t, f) for f, t in zip(ConvBN._fields, layer, strict=True)))  # type: ignore[arg-type]
                for layer in chain
            )
            for chain in branch
        )
    )


def named_tensors(branch: Branch) -> Iterator[tuple[str, str, Tensor]]:
    """Yield ("main[0].weight", "weight", tensor) for every tensor of a branch."""
    for part, chain in zip(Branch._fields, branch, strict=True):
        for index, layer in enumerate(chain):
            for field, tensor in zip(ConvBN._fields, layer, strict=True):
                if tensor is not None:
                    yield f"{part}[{index}].{field}", field, tensor


def copied(branch: Branch, dtype: torch.dtype = torch.float32) -> Branch:
    """A branch with copies: trained tensors are leaves that require grad."""

    def copy(tensor: Tensor, field: str) -> Tensor:
        tensor = tensor.detach().clone() if field == "num_batches_tracked" else tensor.detach().to(dtype, copy=True)
        return tensor.requires_grad_(field in ("weight", "gamma", "beta"))

    return map_tensors(branch, copy)


@dataclass(frozen=True)
class Inputs:
    x: Tensor
    branch: Branch
    dy: Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        return Inputs(self.x.to(dtype, copy=True), copied(self.branch, dtype), self.dy.to(dtype, copy=True))


Results = dict[str, Tensor]
BlockFunction = Callable[..., Tensor]


def run(function: BlockFunction, inputs: Inputs, case: Case) -> Results:
    """Forward and backward on `inputs`: "y", "dx", gradients and statistics under their tensor's name."""
    x = inputs.x.requires_grad_()
    y = function(x, [inputs.branch], 0, **case.options)
    trained = {name: t for name, _, t in named_tensors(inputs.branch) if t.requires_grad}
    dx, *gradients = torch.autograd.grad(y, [x, *trained.values()], inputs.dy)
    results = {"y": y.detach(), "dx": dx, **dict(zip(trained, gradients, strict=True))}
    return results | {name: t for name, _, t in named_tensors(inputs.branch) if name not in trained}


class _SmallestRelu(TorchFunctionMode):
    """The smallest magnitude at the input of any ReLU called under it."""

    smallest = torch.inf

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.relu:
            self.smallest = min(self.smallest, float(args[0].detach().abs().min()))
        return func(*args, **(kwargs or {}))


def kink_distance(inputs: Inputs, case: Case) -> float:
    """How far from its kink the nearest ReLU input is, in float64.

    Next to the kink, rounding decides whether a gradient passes: the result of no precision is then wrong, and any two
    differ. Tests draw again until the distance is well above rounding.
    """
    with _SmallestRelu() as mode, torch.no_grad():
        exact = inputs.to(torch.float64)
        sk.choice_block_reference(exact.x, [exact.branch], 0, **case.options)
    return mode.smallest


def draw(case: Case, distance: float = 3e-6) -> Inputs:
    for seed in range(50):
        torch.manual_seed(seed)
        branch = make_branch(case.choice, case.channels, case.mid, case.out, case.stride, case.affine)
        inputs = Inputs(torch.randn(case.x_shape) + case.offset, branch, torch.randn(case.y_shape))
        if kink_distance(inputs, case) > distance * (1 + abs(case.offset)):
            return inputs
    raise AssertionError(f"no draw of {case} keeps its distance from the kinks")


@cache
def expected(case: Case) -> tuple[Inputs, Results, list[Results]]:
    """The inputs of a case, its results in float64, and those of torch in float32, in several orders of summation."""
    inputs = draw(case)
    exact = run(sk.choice_block_reference, inputs.to(torch.float64), case)
    generator = torch.Generator().manual_seed(0)
    orders = [torch.arange(case.batch)] + [torch.randperm(case.batch, generator=generator) for _ in range(5)]
    return inputs, exact, [_by_torch(inputs, case, order, nhwc=n % 2 == 0) for n, order in enumerate(orders)]


def _by_torch(inputs: Inputs, case: Case, order: Tensor, nhwc: bool) -> Results:
    """Torch's float32 results with the images in another order, which changes them by rounding only."""
    inputs = inputs.to(torch.float32)
    x = inputs.x[order].contiguous(memory_format=torch.channels_last if nhwc else torch.contiguous_format)
    results = run(sk.choice_block_reference, Inputs(x, inputs.branch, inputs.dy[order]), case)
    back = order.argsort()
    return results | {name: results[name][back] for name in ("y", "dx")}


def size_of(name: str, exact: Results) -> float:
    """The norm that a result's rounding error is measured by: the result's own, unless its terms cancel by design."""
    layer, _, field = name.rpartition(".")
    norm = float(exact[name].norm())
    if field == "running_mean":  # a mean is as exact as what it is the mean of, whose root mean square this is
        return float((exact[name].square() + exact[f"{layer}.running_var"]).sum().sqrt())
    if field in (
        "gamma",
        "beta",
    ):  # sums of g * z and of g over the pixels, z of unit size: terms of one size, which may
        return max(float(exact[f"{layer}.{name}"].norm()) for name in ("gamma", "beta"))  # cancel in either sum
    return norm


def assert_accurate(results: Results, case: Case) -> None:
    """The norm of every result's error against float64 is at most 2 × that of torch in float32 + 4·eps·norm.

    Torch's own error is measured on the same numbers, since gradients through batch normalisation lose digits to
    cancellation; it is the largest one of several orders of summation.
    """
    _, exact, others = expected(case)
    assert set(results) == set(exact)
    problems = []
    for name, right in exact.items():
        result = results[name]
        assert result.shape == right.shape, name
        if name.endswith("num_batches_tracked"):
            assert torch.equal(result, right), name
            continue
        assert result.dtype == torch.float32 and torch.isfinite(result).all(), f"{name} is not finite: {case}"
        error = float((result.double() - right).norm())
        by_torch = max(float((other[name].double() - right).norm()) for other in others)
        bound = 2 * by_torch + 4 * torch.finfo(torch.float32).eps * size_of(name, exact)
        if error > bound:
            problems.append(f"{name}: error {error:.2e}, bound {bound:.2e}")
    assert not problems, f"{case}: " + "; ".join(problems)


class Guards:
    """Memory with a margin of a NaN pattern around every tensor; `assert_intact` finds a write outside of them.

    A read outside shows as a NaN in a result.
    """

    MARGIN = 64
    PATTERN = 0x7FC0BEEF

    def __init__(self) -> None:
        self._guarded: list[tuple[Tensor, Tensor]] = []

    def empty(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
        """A float32 tensor, all NaN, that is no view of another as far as autograd knows."""
        size = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if 0 not in shape else 0
        buffer = torch.tensor(self.PATTERN, dtype=torch.int32).repeat(size + 2 * self.MARGIN).view(torch.float32)
        result = torch.tensor([]).set_(buffer.untyped_storage(), self.MARGIN, shape, strides)
        self._guarded.append((buffer, result))
        return result

    def slice_of_wider(self, tensor: Tensor) -> Tensor:
        """A copy as the leading part of a tensor that is wider in its first two dimensions and NaN elsewhere."""
        if tensor.ndim == 0 or tensor.dtype != torch.float32:
            return tensor
        wide = [n + 3 if i < 2 and (i == 0 or n > 1) else n for i, n in enumerate(tensor.shape)]
        result = self.empty(tuple(tensor.shape), torch.empty(wide, device="meta").stride())
        with torch.no_grad():
            result.copy_(tensor)
        return result.requires_grad_(tensor.requires_grad)

    def channel_slice(self, tensor: Tensor) -> Tensor:
        """A copy as a slice of the channels of a wider channels_last tensor that is NaN elsewhere."""
        batch, channels, height, width = tensor.shape
        pixel = channels + 5
        strides = (height * width * pixel, 1, width * pixel, pixel)
        return self.empty((batch, channels, height, width), strides).copy_(tensor)

    def assert_intact(self) -> None:
        for buffer, tensor in self._guarded:
            outside = torch.ones_like(buffer, dtype=torch.bool)
            outside.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).fill_(False)
            assert (buffer.view(torch.int32)[outside] == self.PATTERN).all(), f"written outside of {tensor.shape}"

    @contextmanager
    def around_allocations(self) -> Iterator[None]:
        """Everything that Python code allocates without a value is NaN and guarded."""
        originals = {name: getattr(torch, name) for name in ("empty", "empty_like", "empty_strided")}
        new_empty, new_empty_strided = Tensor.new_empty, Tensor.new_empty_strided

        def guarded(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def allocate(*args: Any, **kwargs: Any) -> Tensor:
                plain = original(*args, **kwargs)
                if plain.dtype != torch.float32 or not plain.is_cpu:
                    return plain
                return self.empty(tuple(plain.shape), plain.stride())

            return allocate

        with pytest.MonkeyPatch.context() as patch:
            for name, original in originals.items():
                patch.setattr(torch, name, guarded(original))
            patch.setattr(Tensor, "new_empty", guarded(new_empty))
            patch.setattr(Tensor, "new_empty_strided", guarded(new_empty_strided))
            yield
