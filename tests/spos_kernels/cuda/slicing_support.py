"""What the tests of the slicing kernels for GPUs share: passes on guarded and on aligned memory."""

from __future__ import annotations

import torch
from cuda_support import device_of
from depthwise_support import Case as DepthwiseCase
from depthwise_support import Guarded
from depthwise_support import shapes_of as depthwise_shapes
from sliced_support import Case as SlicedCase
from sliced_support import guarded_weight
from sliced_support import shapes_of as sliced_shapes
from torch import Tensor

from spos_kernels.cuda import depthwise_conv2d as depthwise_kernels
from spos_kernels.cuda import sliced_conv2d as sliced_kernels


def random_inputs(
    name: str, case: DepthwiseCase | SlicedCase, dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor]:
    """The two inputs of a pass."""
    shapes = depthwise_shapes(name, case) if isinstance(case, DepthwiseCase) else sliced_shapes(name, case)
    first, second = (torch.randn(shape, device=device_of(backend)).to(dtype) for shape in shapes[:2])
    return first, second


def run_depthwise(
    name: str,
    case: DepthwiseCase,
    inputs: tuple[Tensor, Tensor],
    output: Tensor,
    backend: str,
    active: Tensor | None = None,
) -> None:
    if name == "wgrad":
        depthwise_kernels.wgrad(*inputs, output, case.stride, case.pad, False, backend, active)
    else:
        getattr(depthwise_kernels, name)(*inputs, output, case.stride, case.pad, backend, active)


def run_depthwise_guarded(
    name: str, case: DepthwiseCase, inputs: tuple[Tensor, Tensor], backend: str, active: Tensor | None = None
) -> Tensor:
    """Run a pass on channel slices with NaN around them, into a poisoned output; check its guards, return a copy."""
    dtype, device, shape = inputs[0].dtype, device_of(backend), depthwise_shapes(name, case)[2]
    first = Guarded(tuple(inputs[0].shape), dtype, inputs[0], device).view
    second = inputs[1] if name != "wgrad" else Guarded(tuple(inputs[1].shape), dtype, inputs[1], device).view
    if name == "wgrad":
        memory = torch.full((3, *shape), float("nan"), dtype=dtype, device=device)
        run_depthwise(name, case, (first, second), memory[1], backend, active)
        assert memory[0].isnan().all() and memory[2].isnan().all(), "written outside the output"
        return memory[1].clone()
    output = Guarded(shape, dtype, device=device)
    run_depthwise(name, case, (first, second), output.view, backend, active)
    output.assert_guards_intact()
    return output.view.clone()


def run_depthwise_aligned(name: str, case: DepthwiseCase, inputs: tuple[Tensor, Tensor], backend: str) -> Tensor:
    """Run a pass on whole channels_last tensors."""
    nhwc = torch.channels_last
    first = inputs[0].to(memory_format=nhwc)
    second = inputs[1].to(memory_format=nhwc) if name == "wgrad" else inputs[1]
    output = torch.empty(depthwise_shapes(name, case)[2], dtype=first.dtype, device=first.device)
    output = output if name == "wgrad" else output.to(memory_format=nhwc)
    run_depthwise(name, case, (first, second), output.fill_(float("nan")), backend)
    return output


def run_sliced_guarded(
    name: str,
    case: SlicedCase,
    inputs: tuple[Tensor, Tensor],
    backend: str,
    start: Tensor | None = None,
    widths: tuple[Tensor, Tensor] | tuple[None, None] = (None, None),
) -> Tensor:
    """Run a pass on slices with NaN around them, into a poisoned output; check its guards, return a copy.

    start: what a wgrad finds in the slice and adds to; None for one that overwrites.
    """
    dtype, device = inputs[0].dtype, device_of(backend)
    first = Guarded(tuple(inputs[0].shape), dtype, inputs[0], device).view
    if name == "wgrad":
        second = Guarded(tuple(inputs[1].shape), dtype, inputs[1], device).view
        whole = guarded_weight(case, dtype, start, device)
        sliced_kernels.wgrad(first, second, whole, case.options, start is not None, backend, *widths)
        result = case.slice_of(whole).clone()
        case.slice_of(whole).fill_(float("nan"))
        assert whole.isnan().all(), "written outside the slice"
        return result
    output = Guarded(sliced_shapes(name, case)[2], dtype, device=device)
    weight = guarded_weight(case, dtype, inputs[1], device)
    if name == "forward":
        sliced_kernels.forward(first, weight, None, output.view, case.options, backend, *widths)
    else:
        sliced_kernels.dgrad(first, weight, output.view, case.options, backend, *widths)
    output.assert_guards_intact()
    return output.view.clone()
