"""The Triton kernels, with the functions that the compiled modules of csrc/cuda have: backend "triton".

They run where no CUDA module was compiled, and are the readable form of the same algorithms. Importing this package
imports triton.
"""

from spos_kernels.triton.depthwise_conv2d import (
    depthwise_conv2d_dgrad,
    depthwise_conv2d_forward,
    depthwise_conv2d_wgrad,
    depthwise_conv2d_wgrad_workspace,
)
from spos_kernels.triton.fake_quantize import (
    fake_quantize_backward,
    fake_quantize_codes,
    fake_quantize_forward,
    fake_quantize_maximum,
    fake_quantize_workspace,
)
from spos_kernels.triton.launch import INTERPRETED
from spos_kernels.triton.sliced_conv2d import (
    sliced_conv2d_dgrad,
    sliced_conv2d_forward,
    sliced_conv2d_wgrad,
    sliced_conv2d_wgrad_workspace,
)

__all__ = [
    "INTERPRETED",
    "depthwise_conv2d_dgrad",
    "depthwise_conv2d_forward",
    "depthwise_conv2d_wgrad",
    "depthwise_conv2d_wgrad_workspace",
    "fake_quantize_backward",
    "fake_quantize_codes",
    "fake_quantize_forward",
    "fake_quantize_maximum",
    "fake_quantize_workspace",
    "sliced_conv2d_dgrad",
    "sliced_conv2d_forward",
    "sliced_conv2d_wgrad",
    "sliced_conv2d_wgrad_workspace",
]
