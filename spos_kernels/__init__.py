"""Kernels for one-shot architecture search: differentiable PyTorch functions, each with a plain reference beside it."""

import torch  # noqa: F401 - first: it brings the OpenMP runtime (libgomp) that the extension then shares

from spos_kernels.backends import BackendStatus, backends, isa, use_backend
from spos_kernels.depthwise_conv2d import DepthwiseConv2d, depthwise_conv2d, depthwise_conv2d_reference

__all__ = [
    "BackendStatus",
    "DepthwiseConv2d",
    "backends",
    "depthwise_conv2d",
    "depthwise_conv2d_reference",
    "isa",
    "use_backend",
]
