// depthwise_conv2d: tensors in, checked views out to the kernels. Outputs are allocated by the caller and written in
// full; the GIL is released while a kernel runs.
#include "cpu/depthwise_conv2d.h"

#include <algorithm>

#include "bindings/bindings.h"
#include "bindings/processor.h"
#include "bindings/tensor.h"
#include "bindings/workspace.h"

namespace spos {

namespace {

// What every pass takes besides its tensors.
struct Options {
    int64_t stride, padding;
    Isa isa;
    int64_t threads;
};

// The sizes of a call, from its input-like tensor x [N, C, H, W], output-like y [N, C, H', W'] and weight [C, 1, k, k].
DepthwiseConv2d describe(const Tensor& x, const char* x_name, const Tensor& y, const char* y_name, const Tensor& weight,
                         const char* weight_name, const Options& options) {
    const NhwcStrides x_strides = nhwc_strides(x, x_name), y_strides = nhwc_strides(y, y_name);
    const int64_t kernel = weight.ndim == 4 ? weight.shape[2] : 0;
    if (kernel != 3 && kernel != 5 && kernel != 7)
        throw py::value_error(std::string(weight_name) + " has shape " + to_string(weight.shape.data(), weight.ndim) +
                              ", expected [C, 1, k, k] with k = 3, 5 or 7");
    check_shape(weight, weight_name, {x.shape[1], 1, kernel, kernel});
    check_contiguous(weight, weight_name);
    check_range("stride", options.stride, 1, 2);
    check_range("padding", options.padding, 0, kernel - 1);
    const auto output_size = [&](int64_t size) { return (size + 2 * options.padding - kernel) / options.stride + 1; };
    const int64_t height = x.shape[2], width = x.shape[3];
    if (std::min({height, width}) < 1 || std::min(height, width) + 2 * options.padding < kernel || x.shape[1] < 1)
        throw py::value_error(std::string(x_name) + " has shape " + to_string(x.shape.data(), 4) +
                              ", expected at least one channel and a map that the kernel fits in once padded");
    check_shape(y, y_name, {x.shape[0], x.shape[1], output_size(height), output_size(width)});
    check_same_dtype(y, y_name, x, x_name);
    check_same_dtype(weight, weight_name, x, x_name);
    require_isa(options.isa, x.dtype);
    return {x.shape[0],
            x.shape[1],
            height,
            width,
            y.shape[2],
            y.shape[3],
            static_cast<int>(kernel),
            static_cast<int>(options.stride),
            static_cast<int>(options.padding),
            x_strides.n,
            x_strides.h,
            x_strides.w,
            y_strides.n,
            y_strides.h,
            y_strides.w};
}

// Calls kernel(isa, first value of the element type, workspace, threads) without the GIL. float64 exists for checking
// gradients, and only in the portable body.
template <typename Kernel>
void run(Pass pass, const DepthwiseConv2d& shape, Dtype dtype, const Options& options, Kernel&& kernel) {
    const int threads = static_cast<int>(std::clamp<int64_t>(options.threads, 1, 1024));
    const bool is_float = dtype == Dtype::float32;
    const Workspace workspace(depthwise_conv2d_workspace(shape, pass, is_float ? sizeof(float) : sizeof(double)));
    py::gil_scoped_release release;
    if (is_float)
        kernel(options.isa, float{}, workspace.get(), threads);
    else
        kernel(Isa::portable, double{}, workspace.get(), threads);
}

void forward(py::handle x_object, py::handle weight_object, py::handle y_object, int64_t stride, int64_t padding,
             Isa isa, int64_t threads) {
    const Options options{stride, padding, isa, threads};
    const Tensor x = read_tensor(x_object, "x"), weight = read_tensor(weight_object, "weight");
    const Tensor y = read_tensor(y_object, "y");
    const DepthwiseConv2d shape = describe(x, "x", y, "y", weight, "weight", options);
    run(Pass::forward, shape, x.dtype, options, [&](Isa isa, auto element, void* workspace, int threads) {
        using T = decltype(element);
        depthwise_conv2d_forward<T>(isa, shape, x.as<T>(), weight.as<T>(), y.as<T>(), workspace, threads);
    });
}

void dgrad(py::handle dy_object, py::handle weight_object, py::handle dx_object, int64_t stride, int64_t padding,
           Isa isa, int64_t threads) {
    const Options options{stride, padding, isa, threads};
    const Tensor dy = read_tensor(dy_object, "dy"), weight = read_tensor(weight_object, "weight");
    const Tensor dx = read_tensor(dx_object, "dx");
    const DepthwiseConv2d shape = describe(dx, "dx", dy, "dy", weight, "weight", options);
    run(Pass::dgrad, shape, dx.dtype, options, [&](Isa isa, auto element, void* workspace, int threads) {
        using T = decltype(element);
        depthwise_conv2d_dgrad<T>(isa, shape, dy.as<T>(), weight.as<T>(), dx.as<T>(), workspace, threads);
    });
}

void wgrad(py::handle x_object, py::handle dy_object, py::handle dweight_object, int64_t stride, int64_t padding,
           Isa isa, int64_t threads) {
    const Options options{stride, padding, isa, threads};
    const Tensor x = read_tensor(x_object, "x"), dy = read_tensor(dy_object, "dy");
    const Tensor dweight = read_tensor(dweight_object, "dweight");
    const DepthwiseConv2d shape = describe(x, "x", dy, "dy", dweight, "dweight", options);
    run(Pass::wgrad, shape, x.dtype, options, [&](Isa isa, auto element, void* workspace, int threads) {
        using T = decltype(element);
        depthwise_conv2d_wgrad<T>(isa, shape, x.as<T>(), dy.as<T>(), dweight.as<T>(), workspace, threads);
    });
}

}  // namespace

void bind_depthwise_conv2d(py::module_& module) {
    const auto define = [&](const char* name, auto function, const char* first, const char* second,
                            const char* output) {
        module.def(name, function, py::arg(first), py::arg(second), py::arg(output), py::arg("stride"),
                   py::arg("padding"), py::arg("isa"), py::arg("threads"));
    };
    define("depthwise_conv2d_forward", &forward, "x", "weight", "y");
    define("depthwise_conv2d_dgrad", &dgrad, "dy", "weight", "dx");
    define("depthwise_conv2d_wgrad", &wgrad, "x", "dy", "dweight");
}

}  // namespace spos
