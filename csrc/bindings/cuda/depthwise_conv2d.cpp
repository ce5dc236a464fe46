// depthwise_conv2d on a GPU: tensors in, checked pointers out to the kernels. Outputs are allocated by the caller.
#include "cuda/depthwise_conv2d.h"

#include <algorithm>

#include "bindings/cuda/bindings.h"
#include "bindings/cuda/call.h"
#include "bindings/cuda/widths.h"

namespace spos {
namespace {

// The sizes of a call, from its input-like tensor x [N, C, H, W], output-like y [N, C, H', W'] and weight [C, 1, k, k].
cuda::DepthwiseConv2d describe(const Tensor& x, const char* x_name, const Tensor& y, const char* y_name,
                               const Tensor& weight, const char* weight_name, int64_t stride, int64_t padding) {
    const NhwcStrides x_strides = nhwc_strides(x, x_name), y_strides = nhwc_strides(y, y_name);
    const int64_t kernel = weight.ndim == 4 ? weight.shape[2] : 0;
    if (kernel != 3 && kernel != 5 && kernel != 7)
        throw py::value_error(std::string(weight_name) + " has shape " + to_string(weight.shape.data(), weight.ndim) +
                              ", expected [C, 1, k, k] with k = 3, 5 or 7");
    check_shape(weight, weight_name, {x.shape[1], 1, kernel, kernel});
    check_range("stride", stride, 1, 2);
    check_range("padding", padding, 0, kernel - 1);
    const auto output_size = [&](int64_t size) { return (size + 2 * padding - kernel) / stride + 1; };
    const auto& [batch, channels, height, width] = x.shape;
    if (std::min({height, width, channels}) < 1 || std::min(height, width) + 2 * padding < kernel ||
        std::max({height, width, channels}) >= int64_t{1} << 30)
        throw py::value_error(std::string(x_name) + " has shape " + to_string(x.shape.data(), 4) +
                              ", expected at least one channel and a map that the kernel fits in once padded, below " +
                              "2^30 each");
    check_shape(y, y_name, {batch, channels, output_size(height), output_size(width)});
    check_same_dtype(y, y_name, x, x_name);
    check_same_dtype(weight, weight_name, x, x_name);
    const auto narrow = [](int64_t value) { return static_cast<int>(value); };
    return {
        batch,          narrow(channels), narrow(height),  narrow(width),     narrow(y.shape[2]), narrow(y.shape[3]),
        narrow(kernel), narrow(stride),   narrow(padding), x_strides.n,       x_strides.h,        x_strides.w,
        y_strides.n,    y_strides.h,      y_strides.w,     weight.strides[0], weight.strides[2],  weight.strides[3],
        nullptr};
}

void forward(py::handle x_object, py::handle weight_object, py::handle y_object, int64_t stride, int64_t padding,
             py::object active_object, uintptr_t stream) {
    const Tensor x = read_tensor_of(cuda_floats, x_object, "x"), y = read_tensor_of(cuda_floats, y_object, "y");
    const Tensor weight = read_tensor_of(cuda_floats, weight_object, "weight");
    const Tensor active = read_width(active_object, "active_channels");
    cuda::DepthwiseConv2d shape = describe(x, "x", y, "y", weight, "weight", stride, padding);
    shape.active_channels = active.as<int32_t>();
    CudaCall()
        .reads(x, "x")
        .reads(weight, "weight")
        .reads(active, "active_channels")
        .writes(y, "y")
        .run(stream, [&](void* stream) {
            return cuda::depthwise_conv2d_forward(shape, element_of(x), x.data, weight.data, y.data, stream);
        });
}

void dgrad(py::handle dy_object, py::handle weight_object, py::handle dx_object, int64_t stride, int64_t padding,
           py::object active_object, uintptr_t stream) {
    const Tensor dy = read_tensor_of(cuda_floats, dy_object, "dy"), dx = read_tensor_of(cuda_floats, dx_object, "dx");
    const Tensor weight = read_tensor_of(cuda_floats, weight_object, "weight");
    const Tensor active = read_width(active_object, "active_channels");
    cuda::DepthwiseConv2d shape = describe(dx, "dx", dy, "dy", weight, "weight", stride, padding);
    shape.active_channels = active.as<int32_t>();
    CudaCall()
        .reads(dy, "dy")
        .reads(weight, "weight")
        .reads(active, "active_channels")
        .writes(dx, "dx")
        .run(stream, [&](void* stream) {
            return cuda::depthwise_conv2d_dgrad(shape, element_of(dx), dy.data, weight.data, dx.data, stream);
        });
}

cuda::DepthwiseConv2d describe_wgrad(const Tensor& x, const Tensor& dy, const Tensor& dweight, int64_t stride,
                                     int64_t padding) {
    return describe(x, "x", dy, "dy", dweight, "dweight", stride, padding);
}

int64_t wgrad_workspace(py::handle x_object, py::handle dy_object, py::handle dweight_object, int64_t stride,
                        int64_t padding) {
    const Tensor x = read_tensor_of(cuda_floats, x_object, "x"), dy = read_tensor_of(cuda_floats, dy_object, "dy");
    const Tensor dweight = read_tensor_of(cuda_floats, dweight_object, "dweight");
    return cuda::depthwise_conv2d_wgrad_workspace(describe_wgrad(x, dy, dweight, stride, padding));
}

void wgrad(py::handle x_object, py::handle dy_object, py::handle dweight_object, int64_t stride, int64_t padding,
           bool accumulate, py::handle workspace_object, py::object active_object, uintptr_t stream) {
    const Tensor x = read_tensor_of(cuda_floats, x_object, "x"), dy = read_tensor_of(cuda_floats, dy_object, "dy");
    const Tensor dweight = read_tensor_of(cuda_floats, dweight_object, "dweight");
    const Tensor workspace = read_tensor_of({Dtype::float32}, workspace_object, "workspace");
    const Tensor active = read_width(active_object, "active_channels");
    cuda::DepthwiseConv2d shape = describe_wgrad(x, dy, dweight, stride, padding);
    shape.active_channels = active.as<int32_t>();
    check_shape(workspace, "workspace", {cuda::depthwise_conv2d_wgrad_workspace(shape)});
    check_contiguous(workspace, "workspace");
    CudaCall()
        .reads(x, "x")
        .reads(dy, "dy")
        .reads(active, "active_channels")
        .writes(workspace, "workspace")
        .writes(dweight, "dweight")
        .run(stream, [&](void* stream) {
            return cuda::depthwise_conv2d_wgrad(shape, element_of(x), x.data, dy.data, dweight.data, accumulate,
                                                workspace.as<float>(), stream);
        });
}

}  // namespace

// active_channels: an int32 tensor of one element, how many of the channels to compute, or None for all.
void bind_cuda_depthwise_conv2d(py::module_& module) {
    module.def("depthwise_conv2d_forward", &forward, py::arg("x"), py::arg("weight"), py::arg("y"), py::arg("stride"),
               py::arg("padding"), py::arg("active_channels"), py::arg("stream"));
    module.def("depthwise_conv2d_dgrad", &dgrad, py::arg("dy"), py::arg("weight"), py::arg("dx"), py::arg("stride"),
               py::arg("padding"), py::arg("active_channels"), py::arg("stream"));
    // Elements of wgrad's workspace, float32.
    module.def("depthwise_conv2d_wgrad_workspace", &wgrad_workspace, py::arg("x"), py::arg("dy"), py::arg("dweight"),
               py::arg("stride"), py::arg("padding"));
    module.def("depthwise_conv2d_wgrad", &wgrad, py::arg("x"), py::arg("dy"), py::arg("dweight"), py::arg("stride"),
               py::arg("padding"), py::arg("accumulate"), py::arg("workspace"), py::arg("active_channels"),
               py::arg("stream"));
}

}  // namespace spos
