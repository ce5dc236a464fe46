"""What the tests of SGD share: options, parameters of every layout, extents of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spos_kernels.gradient_sink import Extent

OPTIONS = [
    {"lr": 0.1},
    {"lr": 0.1, "momentum": 0.9},
    {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
    {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.01, "nesterov": True},
    {"lr": 0.1, "weight_decay": 0.1},
]


def tensors(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Every dimension count and layout, sizes around the vectors' and above a thread's share."""
    return [
        torch.randn((), dtype=dtype),
        torch.randn(1, dtype=dtype),
        torch.randn(33, dtype=dtype),
        torch.randn(7, 19, dtype=dtype),
        torch.randn(300, 129, dtype=dtype),
        torch.randn(5, 6, 3, dtype=dtype),
        torch.randn(9, 8, 3, 3, dtype=dtype),
        torch.randn(9, 8, 3, 3, dtype=dtype).to(memory_format=torch.channels_last),
        torch.randn(4, 3, 2, 2, 2, dtype=dtype),  # more dimensions than the extension reads
        torch.randn(12, 10, dtype=dtype).t(),
        torch.zeros(0, 5, dtype=dtype),
    ]


def parameters(values: list[Tensor]) -> list[nn.Parameter]:
    return [nn.Parameter(value.detach().clone(memory_format=torch.preserve_format)) for value in values]


def sampled_extents() -> list[list[Extent]]:
    """What is touched of a [9, 8, ...] parameter, step by step."""
    return [
        [Extent(0, 4, 0, 5)],
        [Extent(0, 9, 0, 8)],
        [],
        [Extent(2, 7, 3, 6)],
        [Extent(0, 2, 0, 8), Extent(5, 6, 1, 2)],
    ]
