// stem_conv2d: tensors in, checked pointers out. The checks keep memory safe.
#include "cpu/stem_conv2d.h"

#include <algorithm>

#include "bindings/bindings.h"
#include "bindings/processor.h"
#include "bindings/tensor.h"
#include "bindings/workspace.h"

namespace spos {

namespace {

// x: float32 [N, C, H, W], of any strides. weight: float32 [O, C, kh, kw], likewise. scale and bias: float64 [O].
// y: float64 rows of pixels, [N * rows * columns, O].
void run_stem_conv2d(py::handle x_object, py::handle weight_object, py::handle scale_object, py::handle bias_object,
                     py::handle y_object, int64_t stride, int64_t padding, bool relu, bool max_pool, Isa isa,
                     int64_t threads) {
    require_isa(isa, Dtype::float32);
    const Tensor x = read_tensor_of({Dtype::float32}, x_object, "x");
    const Tensor weight = read_tensor_of({Dtype::float32}, weight_object, "weight");
    const Tensor scale = read_tensor_of({Dtype::float64}, scale_object, "scale");
    const Tensor bias = read_tensor_of({Dtype::float64}, bias_object, "bias");
    const Tensor y = read_tensor_of({Dtype::float64}, y_object, "y");
    if (x.ndim != 4 || weight.ndim != 4) throw py::value_error("x, weight: expected four dimensions");
    constexpr int64_t most = int64_t{1} << 24;
    check_range("stride", stride, 1, most);
    check_range("padding", padding, 0, most);
    for (int i = 0; i < 4; ++i)
        if (x.shape[i] < (i ? 1 : 0) || x.shape[i] > most || weight.shape[i] < 1 || weight.shape[i] > most)
            throw py::value_error("x, weight: expected sizes from 1 to 2^24");
    const int64_t outputs = weight.shape[0];
    check_shape(weight, "weight", {outputs, x.shape[1], weight.shape[2], weight.shape[3]});
    check_shape(scale, "scale", {outputs});
    check_shape(bias, "bias", {outputs});
    const auto output = [&](int axis) {
        const int64_t room = x.shape[axis] + 2 * padding - weight.shape[axis];
        return room < 0 ? 0 : room / stride + 1;
    };
    if (output(2) < 1 || output(3) < 1) throw py::value_error("x: expected a map that the kernel fits in once padded");
    const StemConv2d call{x.shape[0],
                          x.shape[1],
                          x.shape[2],
                          x.shape[3],
                          output(2),
                          output(3),
                          outputs,
                          weight.shape[2],
                          weight.shape[3],
                          stride,
                          padding,
                          x.as<const float>(),
                          x.strides[0],
                          x.strides[1],
                          x.strides[2],
                          x.strides[3],
                          weight.as<const float>(),
                          weight.strides[0],
                          weight.strides[1],
                          weight.strides[2],
                          weight.strides[3],
                          scale.as<const double>(),
                          bias.as<const double>(),
                          relu,
                          max_pool,
                          y.as<double>()};
    check_shape(y, "y", {call.batch * call.rows() * call.columns(), outputs});
    for (const auto& [tensor, name] : {std::pair{&scale, "scale"}, {&bias, "bias"}, {&y, "y"}})
        check_contiguous(*tensor, name);
    const int team = static_cast<int>(std::clamp<int64_t>(threads, 1, 1024));
    const Workspace workspace(stem_conv2d_workspace(isa, call, team));
    py::gil_scoped_release release;
    stem_conv2d(isa, call, workspace.get(), team);
}

}  // namespace

void bind_stem_conv2d(py::module_& module) {
    module.def("stem_conv2d", &run_stem_conv2d, py::arg("x"), py::arg("weight"), py::arg("scale"), py::arg("bias"),
               py::arg("y"), py::arg("stride"), py::arg("padding"), py::arg("relu"), py::arg("max_pool"),
               py::arg("isa"), py::arg("threads"));
}

}  // namespace spos
