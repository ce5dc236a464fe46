// One function an operation, each in its own file: it adds that operation to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace spos {

void bind_ceilings(pybind11::module_& module);
void bind_choice_block(pybind11::module_& module);
void bind_choice_block_call(pybind11::module_& module);
void bind_depthwise_conv2d(pybind11::module_& module);
void bind_fake_quantize(pybind11::module_& module);
void bind_im2row(pybind11::module_& module);
void bind_lowbit(pybind11::module_& module);
void bind_sgd(pybind11::module_& module);
void bind_sliced_conv2d(pybind11::module_& module);
void bind_stem_conv2d(pybind11::module_& module);

}  // namespace spos
