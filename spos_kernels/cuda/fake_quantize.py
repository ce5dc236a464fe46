"""Fake quantization on the CUDA kernels: functions of dense tensors, with outputs that `fake_quantize_kernels` makes.

x, dy and what is written lie alike in memory, `runs` says how: (channels, inner), channels of `inner` adjacent elements
over and over. scale and dscale are float32 there, whatever the dtype of x. The values of scale and zero_point are not
looked at, since that would wait for the GPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spos_kernels.cuda.modules import module_of, stream_of
from spos_kernels.fake_quantize_reference import Quantizer

_MAXIMUM = Quantizer(8, "dorefa", False, None)  # the bits do not matter


def forward(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    y: Tensor,
    quantizer: Quantizer,
    runs: tuple[int, int],
    backend: str,
) -> None:
    module_of(backend).fake_quantize_forward(x, *_values(scale, zero_point), y, *_options(x, quantizer, runs))


def codes(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    codes: Tensor,
    quantizer: Quantizer,
    runs: tuple[int, int],
    backend: str,
) -> None:
    module_of(backend).fake_quantize_codes(x, *_values(scale, zero_point), codes, *_options(x, quantizer, runs))


def backward(
    dy: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    dx: Tensor | None,
    dscale: Tensor | None,
    quantizer: Quantizer,
    runs: tuple[int, int],
    backend: str,
) -> None:
    """dx and dscale: None where they are not needed. dscale has the dtype of scale."""
    module, options = module_of(backend), _options(x, quantizer, runs)
    tensors = dy, x, *_values(scale, zero_point), dx
    if dscale is None:
        module.fake_quantize_backward(*tensors, None, None, *options)
        return
    single = dscale if dscale.dtype == torch.float32 else torch.empty_like(dscale, dtype=torch.float32)
    module.fake_quantize_backward(*tensors, single, _workspace(module, x, options), *options)
    if single is not dscale:
        dscale.copy_(single)


def maximum(x: Tensor, result: Tensor, runs: tuple[int, int], backend: str) -> None:
    """result: float32, one element a channel."""
    module, options = module_of(backend), _options(x, _MAXIMUM, runs)
    module.fake_quantize_maximum(x, result, _workspace(module, x, options), *options)


def _values(scale: Tensor, zero_point: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return scale.float().contiguous(), None if zero_point is None else zero_point.contiguous()


def _options(x: Tensor, quantizer: Quantizer, runs: tuple[int, int]) -> tuple[Any, ...]:
    """What the extension takes behind the tensors."""
    bits, method, signed, _ = quantizer
    return method, bits, signed, *runs, stream_of(x)


def _workspace(module: Any, x: Tensor, options: tuple[Any, ...]) -> Tensor:
    return torch.empty(module.fake_quantize_workspace(x, *options), dtype=torch.float32, device=x.device)
