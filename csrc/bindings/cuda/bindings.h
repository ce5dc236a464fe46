// One function an operation, each in its own file: it adds that operation to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace spos {

void bind_cuda_choice_block(pybind11::module_& module);
void bind_cuda_choice_table(pybind11::module_& module);
void bind_cuda_classifier(pybind11::module_& module);
void bind_cuda_depthwise_conv2d(pybind11::module_& module);
void bind_cuda_fake_quantize(pybind11::module_& module);
void bind_cuda_lowbit(pybind11::module_& module);
void bind_cuda_sgd(pybind11::module_& module);
void bind_cuda_sliced_conv2d(pybind11::module_& module);
#if defined(SPOS_CUDA_EMULATED)
void bind_emulator(pybind11::module_& module);
#endif

}  // namespace spos
