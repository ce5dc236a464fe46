// fake_quantize on a GPU: tensors in, checked pointers out to the kernels. Outputs are allocated by the caller.
#include "cuda/fake_quantize.h"

#include "bindings/cuda/bindings.h"
#include "bindings/cuda/call.h"

namespace spos {
namespace {

void forward(py::handle x_object, py::handle scale_object, py::handle y_object, uintptr_t stream) {
    const Tensor x = read_tensor_of(cuda_floats, x_object, "x"), y = read_tensor_of(cuda_floats, y_object, "y");
    const Tensor scale = read_tensor_of({Dtype::float32}, scale_object, "scale");
    check_same_dtype(y, "y", x, "x");
    const cuda::FakeQuantize shape{cuda::QuantizeMethod::lsq, 0, 15, 1, 1, reach(x)};
    CudaCall().reads(x, "x").reads(scale, "scale").writes(y, "y").run(stream, [&](void* stream) {
        return cuda::fake_quantize_forward(shape, element_of(x), x.data, scale.as<float>(), nullptr, y.data, stream);
    });
}

}  // namespace

void bind_cuda_fake_quantize(py::module_& module) { module.def("fake_quantize_forward", &forward); }

}  // namespace spos
