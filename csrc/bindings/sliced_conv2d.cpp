// sliced_conv2d: tensors in, checked views out to the kernels. Matrices [M, C] pass for maps of one pixel and weights
// [O, I] for 1 x 1 kernels, so that a linear layer is the same call. Outputs are allocated by the caller; the GIL is
// released while a kernel runs.
#include "cpu/sliced_conv2d.h"

#include <algorithm>

#include "bindings/bindings.h"
#include "bindings/processor.h"
#include "bindings/tensor.h"
#include "bindings/workspace.h"

namespace spos {

namespace {

// What every pass takes besides its tensors.
struct Options {
    int64_t out_offset, in_offset, stride, padding, groups;
    Isa isa;
    int64_t threads;

    int team() const { return static_cast<int>(std::clamp<int64_t>(threads, 1, 1024)); }
};

// A matrix as a tensor of four dimensions, the last two of size 1.
Tensor four_dimensions(Tensor tensor) {
    if (tensor.ndim != 2) return tensor;
    tensor.ndim = 4;
    tensor.shape[2] = tensor.shape[3] = 1;
    return tensor;
}

Tensor read_map(py::handle object, const char* name) { return four_dimensions(read_tensor(object, name)); }

// A call, checked: its sizes and the weight's slice.
struct Call {
    SlicedConv2d shape;
    Dtype dtype;
    int64_t weight_offset;  // of the slice's first element

    template <typename T>
    T* slice(const Tensor& weight) const {
        return weight.as<T>() + weight_offset;
    }
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
    const int64_t height = x.shape[2], width = x.shape[3];
    if (std::min(height, width) < 1 || std::min(height, width) + 2 * options.padding < kernel)
        throw py::value_error(std::string(x_name) + " has shape " + to_string(x.shape.data(), 4) +
                              ", expected a map that the kernel fits in once padded");
    check_shape(y, y_name, {x.shape[0], outputs, output_size(height), output_size(width)});
    check_same_dtype(y, y_name, x, x_name);
    check_same_dtype(weight, weight_name, x, x_name);
    require_isa(options.isa, x.dtype);
    const auto& strides = weight.strides;
    const int64_t w_w = kernel > 1 ? strides[3] : 1, w_h = kernel > 1 ? strides[2] : 1;
    const int64_t w_i = weight.shape[1] > 1 ? strides[1] : 1, w_o = weight.shape[0] > 1 ? strides[0] : 1;
    return {{x.shape[0],
             groups,
             inputs / groups,
             outputs / groups,
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
             y_strides.w,
             w_o,
             w_i,
             w_h,
             w_w},
            x.dtype,
            options.out_offset * w_o + options.in_offset * w_i};
}

// Calls kernel(isa, first value of the element type, workspace, threads) without the GIL. float64 exists for checking
// gradients, and only in the portable body.
template <typename Kernel>
void run(Pass pass, const Call& call, const Options& options, Kernel&& kernel) {
    const int threads = options.team();
    const bool is_float = call.dtype == Dtype::float32;
    const Isa isa = is_float ? options.isa : Isa::portable;
    const size_t element = is_float ? sizeof(float) : sizeof(double);
    const Workspace workspace(pass == Pass::wgrad
                                  ? sliced_conv2d_wgrad_workspace(isa, call.shape, element, threads)
                                  : sliced_conv2d_rows_workspace(isa, call.shape, pass, element, threads));
    py::gil_scoped_release release;
    if (is_float)
        kernel(isa, float{}, workspace.get(), threads);
    else
        kernel(isa, double{}, workspace.get(), threads);
}

void forward(py::handle x_object, py::handle weight_object, py::object bias_object, py::handle y_object,
             int64_t out_offset, int64_t in_offset, int64_t stride, int64_t padding, int64_t groups, Isa isa,
             int64_t threads) {
    const Options options{out_offset, in_offset, stride, padding, groups, isa, threads};
    const Tensor x = read_map(x_object, "x"), weight = read_map(weight_object, "weight");
    const Tensor y = read_map(y_object, "y");
    const Call call = describe(x, "x", y, "y", weight, "weight", options);
    Tensor bias{};
    if (!bias_object.is_none()) {
        bias = read_tensor(bias_object, "bias");
        check_shape(bias, "bias", {weight.shape[0]});
        check_contiguous(bias, "bias");
        check_same_dtype(bias, "bias", x, "x");
    }
    run(Pass::forward, call, options, [&](Isa isa, auto element, void* workspace, int threads) {
        using T = decltype(element);
        const T* const bias_slice = bias.data ? bias.as<T>() + options.out_offset : nullptr;
        sliced_conv2d_forward<T>(isa, call.shape, x.as<T>(), call.slice<T>(weight), bias_slice, y.as<T>(), workspace,
                                 threads);
    });
}

void dgrad(py::handle dy_object, py::handle weight_object, py::handle dx_object, int64_t out_offset, int64_t in_offset,
           int64_t stride, int64_t padding, int64_t groups, Isa isa, int64_t threads) {
    const Options options{out_offset, in_offset, stride, padding, groups, isa, threads};
    const Tensor dy = read_map(dy_object, "dy"), weight = read_map(weight_object, "weight");
    const Tensor dx = read_map(dx_object, "dx");
    const Call call = describe(dx, "dx", dy, "dy", weight, "weight", options);
    run(Pass::dgrad, call, options, [&](Isa isa, auto element, void* workspace, int threads) {
        using T = decltype(element);
        sliced_conv2d_dgrad<T>(isa, call.shape, dy.as<T>(), call.slice<T>(weight), dx.as<T>(), workspace, threads);
    });
}

void wgrad(py::handle x_object, py::handle dy_object, py::handle dweight_object, int64_t out_offset, int64_t in_offset,
           int64_t stride, int64_t padding, int64_t groups, bool accumulate, Isa isa, int64_t threads) {
    const Options options{out_offset, in_offset, stride, padding, groups, isa, threads};
    const Tensor x = read_map(x_object, "x"), dy = read_map(dy_object, "dy");
    const Tensor dweight = read_map(dweight_object, "dweight");
    const Call call = describe(x, "x", dy, "dy", dweight, "dweight", options);
    run(Pass::wgrad, call, options, [&](Isa isa, auto element, void* workspace, int threads) {
        using T = decltype(element);
        sliced_conv2d_wgrad<T>(isa, call.shape, x.as<T>(), dy.as<T>(), call.slice<T>(dweight), accumulate, workspace,
                               threads);
    });
}

}  // namespace

void bind_sliced_conv2d(py::module_& module) {
    module.def("sliced_conv2d_forward", &forward, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("y"),
               py::arg("out_offset"), py::arg("in_offset"), py::arg("stride"), py::arg("padding"), py::arg("groups"),
               py::arg("isa"), py::arg("threads"));
    module.def("sliced_conv2d_dgrad", &dgrad, py::arg("dy"), py::arg("weight"), py::arg("dx"), py::arg("out_offset"),
               py::arg("in_offset"), py::arg("stride"), py::arg("padding"), py::arg("groups"), py::arg("isa"),
               py::arg("threads"));
    module.def("sliced_conv2d_wgrad", &wgrad, py::arg("x"), py::arg("dy"), py::arg("dweight"), py::arg("out_offset"),
               py::arg("in_offset"), py::arg("stride"), py::arg("padding"), py::arg("groups"), py::arg("accumulate"),
               py::arg("isa"), py::arg("threads"));
}

}  // namespace spos
