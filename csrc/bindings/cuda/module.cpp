// The modules spos_kernels._cuda and spos_kernels._cuda_emulated: the same operations, for tensors on a GPU and for
// those on the CPU. Private: the checks here keep memory safe, the Python face gives defaults and autograd.
#include <pybind11/pybind11.h>

#include "bindings/cuda/bindings.h"
#include "bindings/tensor.h"

#if defined(SPOS_CUDA_EMULATED)
PYBIND11_MODULE(_cuda_emulated, module) {
#else
PYBIND11_MODULE(_cuda, module) {
#endif
    namespace py = pybind11;
    module.def("set_tensor_types", &spos::set_tensor_types, py::arg("tensor"), py::arg("parameter"),
               py::arg("exchange_capsule"));
    spos::bind_cuda_choice_block(module);
    spos::bind_cuda_choice_table(module);
    spos::bind_cuda_classifier(module);
    spos::bind_cuda_depthwise_conv2d(module);
    spos::bind_cuda_fake_quantize(module);
    spos::bind_cuda_lowbit(module);
    spos::bind_cuda_sgd(module);
    spos::bind_cuda_sliced_conv2d(module);
#if defined(SPOS_CUDA_EMULATED)
    spos::bind_emulator(module);
#endif
}
