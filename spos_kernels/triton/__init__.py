"""The Triton kernels, with the functions that the compiled modules of csrc/cuda have: backend "triton".

They run where no CUDA module was compiled, and are the readable form of the same algorithms. Importing this package
imports triton.
"""

from spos_kernels.triton.choice_block import (
    CHOICE_BLOCK_COUNTERS,
    ChoiceTable,
    choice_block_backward,
    choice_block_forward,
    choice_block_sizes,
)
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
from spos_kernels.triton.lowbit import lowbit_conv2d, lowbit_counters, lowbit_plan
from spos_kernels.triton.network_ends import cross_entropy, im2row, pool
from spos_kernels.triton.sgd import SgdTable
from spos_kernels.triton.sliced_conv2d import sliced_conv2d_dgrad, sliced_conv2d_forward
from spos_kernels.triton.sliced_conv2d_wgrad import sliced_conv2d_wgrad, sliced_conv2d_wgrad_workspace
from spos_kernels.triton.weight_only import weight_only_conv2d

__all__ = [
    "CHOICE_BLOCK_COUNTERS",
    "INTERPRETED",
    "ChoiceTable",
    "SgdTable",
    "choice_block_backward",
    "choice_block_forward",
    "choice_block_sizes",
    "cross_entropy",
    "depthwise_conv2d_dgrad",
    "depthwise_conv2d_forward",
    "depthwise_conv2d_wgrad",
    "depthwise_conv2d_wgrad_workspace",
    "fake_quantize_backward",
    "fake_quantize_codes",
    "fake_quantize_forward",
    "fake_quantize_maximum",
    "fake_quantize_workspace",
    "im2row",
    "lowbit_conv2d",
    "lowbit_counters",
    "lowbit_plan",
    "pool",
    "sliced_conv2d_dgrad",
    "sliced_conv2d_forward",
    "sliced_conv2d_wgrad",
    "sliced_conv2d_wgrad_workspace",
    "weight_only_conv2d",
]
