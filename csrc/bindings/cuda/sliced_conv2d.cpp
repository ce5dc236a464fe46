// sliced_conv2d on a GPU: tensors in, checked pointers out to the kernels. Matrices [M, C] pass for maps of one pixel
// and weights [O, I] for 1 x 1 kernels, so that a linear layer is the same call. Outputs are allocated by the caller.
#include "cuda/sliced_conv2d.h"

#include <algorithm>

#include "bindings/cuda/bindings.h"
#include "bindings/cuda/call.h"
#include "bindings/cuda/widths.h"

namespace spos {
namespace {

// What every pass takes besides its tensors.
struct Options {
    int64_t out_offset, in_offset, stride, padding, groups;
    bool tf32;
};

// A matrix as a tensor of four dimensions, the last two of size 1.
Tensor read_map(py::handle object, const char* name) {
    Tensor tensor = read_tensor_of(cuda_floats, object, name);
    if (tensor.ndim != 2) return tensor;
    tensor.ndim = 4;
    tensor.shape[2] = tensor.shape[3] = 1;
    tensor.strides[2] = tensor.strides[3] = 0;
    return tensor;
}

// A call, checked: its sizes and the weight's slice.
struct Call {
    cuda::SlicedConv2d shape;
    Tensor slice;  // of the weight: all that a call may touch
    cuda::Element element;
};

// From the input-like tensor x [N, C, H, W], the output-like y [N, O, H', W'] and the whole weight.
Call describe(const Tensor& x, const char* x_name, const Tensor& y, const char* y_name, const Tensor& weight,
              const char* weight_name, const Options& options) {
    const NhwcStrides x_strides = nhwc_strides(x, x_name), y_strides = nhwc_strides(y, y_name);
    const int64_t kernel = weight.ndim == 4 ? weight.shape[2] : 0;
    if (kernel < 1 || kernel > 7 || weight.shape[3] != kernel)
        throw py::value_error(std::string(weight_name) + " has shape " + to_string(weight.shape.data(), weight.ndim) +
                              ", expected [O, I, k, k] with k from 1 to 7");
    check_range("stride", options.stride, 1, 2);
    check_range("padding", options.padding, 0, kernel - 1);
    const int64_t groups = options.groups, inputs = x.shape[1], outputs = y.shape[1];
    if (groups < 1 || inputs < 1 || outputs < 1 || inputs % groups || outputs % groups)
        throw py::value_error("groups = " + std::to_string(groups) + ": expected a divisor of " +
                              std::to_string(inputs) + " and " + std::to_string(outputs) + ", which are at least 1");
    check_range("out_offset", options.out_offset, 0, weight.shape[0] - outputs);
    check_range("in_offset", options.in_offset, 0, weight.shape[1] - inputs / groups);
    const auto output_size = [&](int64_t size) { return (size + 2 * options.padding - kernel) / options.stride + 1; };
    const int64_t batch = x.shape[0], height = x.shape[2], width = x.shape[3];
    if (std::min(height, width) < 1 || std::min(height, width) + 2 * options.padding < kernel)
        throw py::value_error(std::string(x_name) + " has shape " + to_string(x.shape.data(), 4) +
                              ", expected a map that the kernel fits in once padded");
    check_shape(y, y_name, {batch, outputs, output_size(height), output_size(width)});
    const auto pixels = [&](int64_t height, int64_t width) {
        return static_cast<double>(batch) * static_cast<double>(height) * static_cast<double>(width);
    };
    constexpr int64_t most = int64_t{1} << 30;
    if (std::max(pixels(height, width), pixels(y.shape[2], y.shape[3])) >= static_cast<double>(most))
        throw py::value_error(std::string(x_name) + " has shape " + to_string(x.shape.data(), 4) +
                              ", expected less than 2^30 pixels there and in " + y_name);
    check_range("channels of x", inputs, 1, most / 64);
    check_range("channels of y", outputs, 1, most / 64);
    check_same_dtype(y, y_name, x, x_name);
    check_same_dtype(weight, weight_name, x, x_name);

    Tensor slice = weight;
    slice.shape[0] = outputs;
    slice.shape[1] = inputs / groups;
    const int64_t w_o = weight.shape[0] > 1 ? weight.strides[0] : 1, w_i = weight.shape[1] > 1 ? weight.strides[1] : 1;
    slice.data = weight.as<char>() + (options.out_offset * w_o + options.in_offset * w_i) * size_of(weight.dtype);
    const auto narrow = [](int64_t value) { return static_cast<int>(value); };
    return {{narrow(batch),
             narrow(groups),
             narrow(inputs / groups),
             narrow(outputs / groups),
             narrow(height),
             narrow(width),
             narrow(y.shape[2]),
             narrow(y.shape[3]),
             narrow(kernel),
             narrow(options.stride),
             narrow(options.padding),
             x_strides.n,
             x_strides.h,
             x_strides.w,
             y_strides.n,
             y_strides.h,
             y_strides.w,
             w_o,
             w_i,
             kernel > 1 ? weight.strides[2] : 0,
             kernel > 1 ? weight.strides[3] : 0,
             nullptr,
             nullptr,
             options.tf32},
            slice,
            element_of(x)};
}

// The widths that the kernels read from device memory.
struct Widths {
    Tensor in, out;

    Widths(py::object in_object, py::object out_object)
        : in(read_width(in_object, "active_in_channels")), out(read_width(out_object, "active_out_channels")) {}
    CudaCall call(Call& call) const {
        call.shape.active_in_channels = in.as<int32_t>();
        call.shape.active_out_channels = out.as<int32_t>();
        CudaCall result;
        result.reads(in, "active_in_channels").reads(out, "active_out_channels");
        return result;
    }
};

void forward(py::handle x_object, py::handle weight_object, py::object bias_object, py::handle y_object,
             int64_t out_offset, int64_t in_offset, int64_t stride, int64_t padding, int64_t groups, bool tf32,
             py::object in_object, py::object out_object, uintptr_t stream) {
    const Tensor x = read_map(x_object, "x"), weight = read_map(weight_object, "weight"), y = read_map(y_object, "y");
    Call call = describe(x, "x", y, "y", weight, "weight", {out_offset, in_offset, stride, padding, groups, tf32});
    Tensor bias{};
    if (!bias_object.is_none()) {
        bias = read_tensor_of(cuda_floats, bias_object, "bias");
        check_shape(bias, "bias", {weight.shape[0]});
        check_contiguous(bias, "bias");
        check_same_dtype(bias, "bias", x, "x");
        bias.data = bias.as<char>() + out_offset * size_of(bias.dtype);
        bias.shape[0] = y.shape[1];
    }
    Widths(in_object, out_object)
        .call(call)
        .reads(x, "x")
        .reads(call.slice, "weight")
        .reads(bias, "bias")
        .writes(y, "y")
        .run(stream, [&](void* stream) {
            return cuda::sliced_conv2d_forward(call.shape, call.element, x.data, call.slice.data, bias.data, y.data,
                                               stream);
        });
}

void dgrad(py::handle dy_object, py::handle weight_object, py::handle dx_object, int64_t out_offset, int64_t in_offset,
           int64_t stride, int64_t padding, int64_t groups, bool tf32, py::object in_object, py::object out_object,
           uintptr_t stream) {
    const Tensor dy = read_map(dy_object, "dy"), weight = read_map(weight_object, "weight");
    const Tensor dx = read_map(dx_object, "dx");
    Call call = describe(dx, "dx", dy, "dy", weight, "weight", {out_offset, in_offset, stride, padding, groups, tf32});
    Widths(in_object, out_object)
        .call(call)
        .reads(dy, "dy")
        .reads(call.slice, "weight")
        .writes(dx, "dx")
        .run(stream, [&](void* stream) {
            return cuda::sliced_conv2d_dgrad(call.shape, call.element, dy.data, call.slice.data, dx.data, stream);
        });
}

int64_t wgrad_workspace(py::handle x_object, py::handle dy_object, py::handle dweight_object, int64_t out_offset,
                        int64_t in_offset, int64_t stride, int64_t padding, int64_t groups) {
    const Tensor x = read_map(x_object, "x"), dy = read_map(dy_object, "dy");
    const Tensor dweight = read_map(dweight_object, "dweight");
    const Call call =
        describe(x, "x", dy, "dy", dweight, "dweight", {out_offset, in_offset, stride, padding, groups, false});
    return cuda::sliced_conv2d_wgrad_workspace(call.shape, call.element);
}

void wgrad(py::handle x_object, py::handle dy_object, py::handle dweight_object, int64_t out_offset, int64_t in_offset,
           int64_t stride, int64_t padding, int64_t groups, bool accumulate, bool tf32, py::handle workspace_object,
           py::object in_object, py::object out_object, uintptr_t stream) {
    const Tensor x = read_map(x_object, "x"), dy = read_map(dy_object, "dy");
    const Tensor dweight = read_map(dweight_object, "dweight");
    const Tensor workspace = read_tensor_of({Dtype::float32}, workspace_object, "workspace");
    Call call = describe(x, "x", dy, "dy", dweight, "dweight", {out_offset, in_offset, stride, padding, groups, tf32});
    check_shape(workspace, "workspace", {cuda::sliced_conv2d_wgrad_workspace(call.shape, call.element)});
    check_contiguous(workspace, "workspace");
    Widths(in_object, out_object)
        .call(call)
        .reads(x, "x")
        .reads(dy, "dy")
        .writes(workspace, "workspace")
        .writes(call.slice, "dweight")
        .run(stream, [&](void* stream) {
            return cuda::sliced_conv2d_wgrad(call.shape, call.element, x.data, dy.data, call.slice.data, accumulate,
                                             workspace.as<float>(), stream);
        });
}

}  // namespace

// active_in_channels, active_out_channels: int32 tensors of one element, how many channels of a group to use, or None.
void bind_cuda_sliced_conv2d(py::module_& module) {
    module.def("sliced_conv2d_forward", &forward, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("y"),
               py::arg("out_offset"), py::arg("in_offset"), py::arg("stride"), py::arg("padding"), py::arg("groups"),
               py::arg("tf32"), py::arg("active_in_channels"), py::arg("active_out_channels"), py::arg("stream"));
    module.def("sliced_conv2d_dgrad", &dgrad, py::arg("dy"), py::arg("weight"), py::arg("dx"), py::arg("out_offset"),
               py::arg("in_offset"), py::arg("stride"), py::arg("padding"), py::arg("groups"), py::arg("tf32"),
               py::arg("active_in_channels"), py::arg("active_out_channels"), py::arg("stream"));
    // Elements of wgrad's workspace, float32.
    module.def("sliced_conv2d_wgrad_workspace", &wgrad_workspace, py::arg("x"), py::arg("dy"), py::arg("dweight"),
               py::arg("out_offset"), py::arg("in_offset"), py::arg("stride"), py::arg("padding"), py::arg("groups"));
    module.def("sliced_conv2d_wgrad", &wgrad, py::arg("x"), py::arg("dy"), py::arg("dweight"), py::arg("out_offset"),
               py::arg("in_offset"), py::arg("stride"), py::arg("padding"), py::arg("groups"), py::arg("accumulate"),
               py::arg("tf32"), py::arg("workspace"), py::arg("active_in_channels"), py::arg("active_out_channels"),
               py::arg("stream"));
}

}  // namespace spos
