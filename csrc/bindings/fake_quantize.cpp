// fake_quantize: tensors in, checked pointers out to the kernels. Outputs are allocated by the caller and written in
// full; the GIL is released while a kernel runs.
#include "cpu/fake_quantize.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/processor.h"
#include "bindings/tensor.h"
#include "bindings/workspace.h"

namespace spos {

namespace {

// What every call takes besides its tensors. Of x in memory: channels of `inner` adjacent elements each follow each
// other, over and over.
struct Options {
    QuantizeMethod method;
    int64_t bits;
    bool is_signed;
    int64_t channels, inner;
    Isa isa;
    int64_t threads;
};

int64_t elements(const Tensor& tensor) {
    int64_t result = 1;
    for (int d = 0; d < tensor.ndim; ++d) result *= tensor.shape[d];
    return result;
}

// x fills its memory without gaps, in any order of its dimensions.
FakeQuantize describe(const Tensor& x, const Options& options) {
    check_range("bits", options.bits, 1, 8);
    const int64_t size = elements(x);
    if (size == 0 || reach(x) != size)
        throw py::value_error("x: expected a dense tensor with elements, not shape " +
                              to_string(x.shape.data(), x.ndim) + " and strides " +
                              to_string(x.strides.data(), x.ndim));
    check_range("channels", options.channels, 1, size);
    check_range("inner", options.inner, 1, size);
    if (size % options.channels != 0 || size / options.channels % options.inner != 0)
        throw py::value_error("x: its elements are no multiple of channels and inner");
    require_isa(options.isa, x.dtype);
    const int levels = (1 << options.bits) - 1, low = options.is_signed ? -(1 << (options.bits - 1)) : 0;
    return {options.method,   low,          low + levels, size / options.channels / options.inner,
            options.channels, options.inner};
}

// `tensor` lies in memory as x does.
void check_like(const Tensor& tensor, const char* name, const Tensor& x) {
    bool same = tensor.ndim == x.ndim;
    for (int d = 0; same && d < x.ndim; ++d)
        same = tensor.shape[d] == x.shape[d] && (x.shape[d] == 1 || tensor.strides[d] == x.strides[d]);
    if (!same)
        throw py::value_error(std::string(name) + ": expected shape and strides of x, " +
                              to_string(x.shape.data(), x.ndim) + " and " + to_string(x.strides.data(), x.ndim));
}

Tensor read_like(py::handle object, const char* name, const Tensor& x) {
    const Tensor tensor = read_tensor(object, name);
    check_same_dtype(tensor, name, x, "x");
    check_like(tensor, name, x);
    return tensor;
}

Tensor read_channels(py::handle object, const char* name, const Tensor& x, const FakeQuantize& shape) {
    const Tensor tensor = read_tensor(object, name);
    check_same_dtype(tensor, name, x, "x");
    check_contiguous(tensor, name);
    if (tensor.ndim > 1 || elements(tensor) != shape.channels)
        throw py::value_error(std::string(name) + ": expected one value for each of " + std::to_string(shape.channels) +
                              " channels");
    return tensor;
}

[[noreturn]] void refuse(const char* name, int64_t index, double value, const std::string& accepted) {
    throw py::value_error(
        py::cast<std::string>(py::str("{}[{}] = {}: accepted are {}").format(name, index, value, accepted)));
}

template <typename T>
void check_values(const FakeQuantize& shape, const T* scale, const T* zero_point) {
    for (int64_t i = 0; i < shape.channels; ++i) {
        if (shape.method != QuantizeMethod::dorefa && !(scale[i] > 0 && std::isfinite(scale[i])))
            refuse("learned", i, static_cast<double>(scale[i]), "finite numbers above 0");
        if (zero_point && !(zero_point[i] >= static_cast<T>(shape.low) && zero_point[i] <= static_cast<T>(shape.high)))
            refuse("zero_point", i, static_cast<double>(zero_point[i]),
                   "integers from " + std::to_string(shape.low) + " to " + std::to_string(shape.high));
    }
}

// Calls kernel(isa, first value of the element type, workspace, threads) without the GIL.
template <typename Kernel>
void run(const FakeQuantize& shape, Dtype dtype, const Options& options, Kernel&& kernel) {
    const int threads = static_cast<int>(std::clamp<int64_t>(options.threads, 1, 1024));
    const bool is_float = dtype == Dtype::float32;
    const Workspace workspace(fake_quantize_workspace(shape, is_float ? sizeof(float) : sizeof(double)));
    py::gil_scoped_release release;
    if (is_float)
        kernel(options.isa, float{}, workspace.get(), threads);
    else
        kernel(Isa::portable, double{}, workspace.get(), threads);
}

// The tensors that forward, codes and backward read, checked.
struct Inputs {
    Tensor x, scale, zero_point;
    FakeQuantize shape;

    Inputs(py::handle x_object, py::handle scale_object, py::handle zero_point_object, const Options& options)
        : x(read_tensor(x_object, "x")), zero_point{}, shape(describe(x, options)) {
        scale = read_channels(scale_object, "scale", x, shape);
        if (!zero_point_object.is_none()) zero_point = read_channels(zero_point_object, "zero_point", x, shape);
        if (x.dtype == Dtype::float32)
            check_values(shape, scale.as<float>(), zero_point.as<float>());
        else
            check_values(shape, scale.as<double>(), zero_point.as<double>());
    }
};

void forward(const Options& options, py::handle x_object, py::handle scale_object, py::handle zero_point_object,
             py::handle y_object) {
    const Inputs in(x_object, scale_object, zero_point_object, options);
    const Tensor y = read_like(y_object, "y", in.x);
    run(in.shape, in.x.dtype, options, [&](Isa isa, auto element, void* workspace, int threads) {
        using T = decltype(element);
        fake_quantize_forward<T>(isa, in.shape, in.x.as<T>(), in.scale.as<T>(), in.zero_point.as<T>(), y.as<T>(),
                                 workspace, threads);
    });
}

void codes(const Options& options, py::handle x_object, py::handle scale_object, py::handle zero_point_object,
           py::handle codes_object) {
    const Inputs in(x_object, scale_object, zero_point_object, options);
    const Tensor codes = read_tensor_of({Dtype::int8, Dtype::uint8}, codes_object, "codes");
    check_like(codes, "codes", in.x);
    run(in.shape, in.x.dtype, options, [&](Isa isa, auto element, void* workspace, int threads) {
        using T = decltype(element);
        fake_quantize_codes<T>(isa, in.shape, in.x.as<T>(), in.scale.as<T>(), in.zero_point.as<T>(),
                               codes.as<uint8_t>(), workspace, threads);
    });
}

void backward(const Options& options, py::handle dy_object, py::handle x_object, py::handle scale_object,
              py::handle zero_point_object, py::handle dx_object, py::handle dscale_object) {
    const Inputs in(x_object, scale_object, zero_point_object, options);
    const Tensor dy = read_like(dy_object, "dy", in.x);
    Tensor dx{}, dscale{};
    if (!dx_object.is_none()) dx = read_like(dx_object, "dx", in.x);
    if (!dscale_object.is_none()) dscale = read_channels(dscale_object, "dscale", in.x, in.shape);
    if (dscale.data && options.method == QuantizeMethod::dorefa)
        throw py::value_error("dscale: method dorefa has none");
    run(in.shape, in.x.dtype, options, [&](Isa isa, auto element, void* workspace, int threads) {
        using T = decltype(element);
        fake_quantize_backward<T>(isa, in.shape, dy.as<T>(), in.x.as<T>(), in.scale.as<T>(), in.zero_point.as<T>(),
                                  dx.as<T>(), dscale.as<T>(), workspace, threads);
    });
}

void maximum(const Options& options, py::handle x_object, py::handle maximum_object) {
    const Tensor x = read_tensor(x_object, "x");
    const FakeQuantize shape = describe(x, options);
    const Tensor maximum = read_channels(maximum_object, "maximum", x, shape);
    run(shape, x.dtype, options, [&](Isa isa, auto element, void* workspace, int threads) {
        using T = decltype(element);
        fake_quantize_maximum<T>(isa, shape, x.as<T>(), maximum.as<T>(), workspace, threads);
    });
}

// Adds function(options, tensors...) to the module as a function of its tensors, then of the options one by one.
template <typename... Handles>
void define(py::module_& module, const char* name, void (*function)(const Options&, Handles...)) {
    module.def(name, [function](Handles... tensors, QuantizeMethod method, int64_t bits, bool is_signed,
                                int64_t channels, int64_t inner, Isa isa, int64_t threads) {
        function({method, bits, is_signed, channels, inner, isa, threads}, tensors...);
    });
}

}  // namespace

void bind_fake_quantize(py::module_& module) {
    py::enum_<QuantizeMethod>(module, "QuantizeMethod")
        .value("dorefa", QuantizeMethod::dorefa)
        .value("pact", QuantizeMethod::pact)
        .value("lsq", QuantizeMethod::lsq);
    define(module, "fake_quantize_forward", &forward);
    define(module, "fake_quantize_codes", &codes);
    define(module, "fake_quantize_backward", &backward);
    define(module, "fake_quantize_maximum", &maximum);
}

}  // namespace spos
