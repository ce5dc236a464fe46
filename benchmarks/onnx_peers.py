"""onnxruntime's integer operators, each a session of its own: what low-bit kernels are measured against."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def qlinear_conv(x: NDArray[np.uint8], weight: NDArray[np.int8]) -> Callable[[], object]:
    """QLinearConv of unsigned bytes by signed ones, a scale an output channel, 3×3 with padding 1: its fastest form."""
    outputs = weight.shape[0]
    constants = {
        "x_scale": np.float32(0.1),
        "x_zero": np.uint8(0),
        "weight": weight,
        "w_scale": np.full(outputs, 0.1, np.float32),
        "w_zero": np.zeros(outputs, np.int8),
        "y_scale": np.float32(3),
        "y_zero": np.uint8(0),
        "bias": np.zeros(outputs, np.int32),
    }
    node = helper.make_node("QLinearConv", ["x", *constants], ["y"], pads=[1, 1, 1, 1])
    return _run(node, constants, x, (x.shape[0], outputs, *x.shape[2:]), TensorProto.UINT8)


def matmul_nbits(x: NDArray[np.float32], outputs: int, bits: int) -> Callable[[], object]:
    """MatMulNBits with a scale each 32 inputs, computed on 8-bit integers (accuracy_level 4)."""
    rows, inputs = x.shape
    block = 32
    generator = np.random.default_rng(0)
    constants = {
        "weight": generator.integers(0, 256, (outputs, inputs // block, block * bits // 8), np.uint8),
        "scales": generator.random(outputs * inputs // block, np.float32),
    }
    node = helper.make_node("MatMulNBits", ["x", *constants], ["y"], K=inputs, N=outputs, bits=bits, block_size=block,
                            accuracy_level=4, domain="com.microsoft")  # fmt: skip
    return _run(node, constants, x, (rows, outputs), TensorProto.FLOAT)


def _run(
    node: onnx.NodeProto, constants: dict[str, object], x: NDArray[np.generic], shape: tuple[int, ...], kind: int
) -> Callable[[], object]:
    x_kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    graph = helper.make_graph(
        [node],
        "peer",
        [helper.make_tensor_value_info("x", x_kind, x.shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    versions = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y", "cpu")
    return lambda: session.run_with_iobinding(binding)
