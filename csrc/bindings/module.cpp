// The module spos_kernels._C. Private: the checks here keep memory safe, the Python face gives defaults and autograd.
#include <pybind11/pybind11.h>

#include "bindings/bindings.h"
#include "bindings/tensor.h"
#include "core/isa.h"

PYBIND11_MODULE(_C, module) {
    namespace py = pybind11;
    py::enum_<spos::Isa>(module, "Isa")
        .value("portable", spos::Isa::portable)
        .value("avx2", spos::Isa::avx2)
        .value("avx512", spos::Isa::avx512)
        .value("amx", spos::Isa::amx);
    module.def("best_isa", &spos::best_isa);
    module.def("isa_supported", &spos::isa_supported, py::arg("isa"));
    module.def("set_tensor_types", &spos::set_tensor_types, py::arg("tensor"), py::arg("parameter"),
               py::arg("exchange_capsule"));
    spos::bind_ceilings(module);
    spos::bind_choice_block(module);
    spos::bind_choice_block_call(module);
    spos::bind_depthwise_conv2d(module);
    spos::bind_fake_quantize(module);
    spos::bind_im2row(module);
    spos::bind_lowbit(module);
    spos::bind_sgd(module);
    spos::bind_sliced_conv2d(module);
    spos::bind_stem_conv2d(module);
}
