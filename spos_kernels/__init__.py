"""Kernels for one-shot architecture search: differentiable PyTorch functions, each with a plain reference beside it."""

import torch  # noqa: F401 - first: it brings the OpenMP runtime (libgomp) that the extension then shares

from spos_kernels.backends import BackendStatus, backends, isa, use_backend
from spos_kernels.choice_block import choice_block
from spos_kernels.choice_block_chain import choice_block_chain, choice_block_chain_reference
from spos_kernels.choice_block_reference import Branch, ConvBN, Link, choice_block_reference
from spos_kernels.conv_norm_relu import conv_norm_relu, conv_norm_relu_reference
from spos_kernels.depthwise_conv2d import DepthwiseConv2d, depthwise_conv2d, depthwise_conv2d_reference
from spos_kernels.fake_quantize import fake_quantize, fake_quantize_reference, quantize, quantize_reference
from spos_kernels.gradient_sink import GradientSink, sliced_parameter
from spos_kernels.lowbit_conv2d import lowbit_conv2d, lowbit_conv2d_reference
from spos_kernels.lowbit_matmul import lowbit_matmul, lowbit_matmul_reference
from spos_kernels.lowbit_methods import lowbit_plans
from spos_kernels.lowbit_products import Quantizer
from spos_kernels.packed_file import PackedFileError
from spos_kernels.packed_layers import PackedBlock, PackedBlocks, PackedConv2d
from spos_kernels.packed_network import PackedNetwork, load_packed
from spos_kernels.packing import (
    PackedWeight,
    pack,
    pack_reference,
    pack_weight,
    unpack,
    unpack_reference,
    unpack_weight,
)
from spos_kernels.sgd import SGD, StepCondition
from spos_kernels.sliced_conv2d import sliced_conv2d, sliced_conv2d_reference
from spos_kernels.sliced_linear import sliced_linear, sliced_linear_reference
from spos_kernels.stem_conv2d import StemConv2d, stem_conv2d, stem_conv2d_reference

__all__ = [
    "SGD",
    "BackendStatus",
    "Branch",
    "ConvBN",
    "DepthwiseConv2d",
    "GradientSink",
    "Link",
    "PackedBlock",
    "PackedBlocks",
    "PackedConv2d",
    "PackedFileError",
    "PackedNetwork",
    "PackedWeight",
    "Quantizer",
    "StemConv2d",
    "StepCondition",
    "backends",
    "choice_block",
    "choice_block_chain",
    "choice_block_chain_reference",
    "choice_block_reference",
    "conv_norm_relu",
    "conv_norm_relu_reference",
    "depthwise_conv2d",
    "depthwise_conv2d_reference",
    "fake_quantize",
    "fake_quantize_reference",
    "isa",
    "load_packed",
    "lowbit_conv2d",
    "lowbit_conv2d_reference",
    "lowbit_matmul",
    "lowbit_matmul_reference",
    "lowbit_plans",
    "pack",
    "pack_reference",
    "pack_weight",
    "quantize",
    "quantize_reference",
    "sliced_conv2d",
    "sliced_conv2d_reference",
    "sliced_linear",
    "sliced_linear_reference",
    "sliced_parameter",
    "stem_conv2d",
    "stem_conv2d_reference",
    "unpack",
    "unpack_reference",
    "unpack_weight",
    "use_backend",
]
