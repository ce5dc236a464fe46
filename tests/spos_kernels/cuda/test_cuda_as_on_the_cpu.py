"""What the CPU's tests of autograd, torch.compile, layouts, sinks and errors ask for holds on the CUDA kernels too."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import test_choice_block_arguments
import test_choice_block_operators
import test_choice_block_python
import test_conv_norm_relu
import test_depthwise_conv2d_python
import test_fake_quantize_arguments
import test_gradient_sink
import test_sliced_conv2d_python
import test_sliced_linear
from cuda_support import needs_emulator
from test_choice_block_python import block  # noqa: F401, a fixture of its tests

import spos_kernels as sk

pytestmark = [needs_emulator, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    with sk.use_backend("cuda-emulated"):
        yield


def all_of(module: ModuleType, *but: str) -> type:
    """The module's tests without those named: these are of float64 or of another backend, need the CPU's extension or
    what it refuses, such as bfloat16 and, as nobody waits for the GPU to look at them, steps that are not positive.
    """
    tests = {name: staticmethod(test) for name, test in vars(module).items() if name.startswith("test_")}
    missing = set(but) - set(tests)
    assert not missing, f"{module.__name__} has no {missing}"
    return type("Tests", (), {name: test for name, test in tests.items() if name not in but})


TestChoiceBlock = all_of(
    test_choice_block_python,
    "test_backward_runs_where_forward_ran",
    "test_an_explicit_backend_does_not_fall_back",
    "test_torch_func_runs_on_the_reference_and_an_explicit_backend_says_no",
)
TestChoiceBlockArguments = all_of(test_choice_block_arguments, "test_bad_arguments")
TestChoiceBlockOperators = all_of(test_choice_block_operators)
TestConvNormRelu = all_of(test_conv_norm_relu, "test_gradcheck")
TestDepthwise = all_of(
    test_depthwise_conv2d_python,
    "test_gradcheck",
    "test_torch_func_runs_on_the_reference_and_an_explicit_backend_says_no",
    "test_bad_input",
)
TestFakeQuantize = all_of(
    test_fake_quantize_arguments,
    "test_a_dense_tensor_is_read_in_place",
    "test_bad_input",
    "test_a_bad_value_is_found_in_compiled_code_too",
)
TestSink = all_of(
    test_gradient_sink,
    "test_a_weight_that_moves_to_another_layout_or_dtype_gets_another_buffer",
    "test_the_extension_is_given_the_weight_itself_and_the_buffer_itself",
)
TestSlicedConv2d = all_of(
    test_sliced_conv2d_python,
    "test_gradcheck",
    "test_gradcheck_of_a_depthwise_slice",
    "test_torch_func_runs_on_the_reference_and_an_explicit_backend_says_no",
    "test_bad_input",
)
TestSlicedLinear = all_of(test_sliced_linear, "test_the_weight_is_read_in_place", "test_gradcheck")
