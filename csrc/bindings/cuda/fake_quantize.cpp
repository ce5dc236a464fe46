// fake_quantize on a GPU: tensors in, checked pointers out to the kernels. Outputs and workspaces are allocated by the
// caller.
#include "cuda/fake_quantize.h"

#include <algorithm>
#include <string>
#include <utility>

#include "bindings/cuda/bindings.h"
#include "bindings/cuda/call.h"

namespace spos {
namespace {

// What every call takes besides its tensors. Of x in memory: channels of `inner` adjacent elements each follow each
// other, over and over.
struct Options {
    std::string method;
    int64_t bits;
    bool is_signed;
    int64_t channels, inner;
    uintptr_t stream;
};

int64_t elements(const Tensor& tensor) {
    int64_t result = 1;
    for (int d = 0; d < tensor.ndim; ++d) result *= tensor.shape[d];
    return result;
}

cuda::QuantizeMethod method_of(const std::string& name) {
    if (name == "dorefa") return cuda::QuantizeMethod::dorefa;
    if (name == "pact") return cuda::QuantizeMethod::pact;
    if (name == "lsq") return cuda::QuantizeMethod::lsq;
    throw py::value_error("method = '" + name + "': accepted are 'dorefa', 'pact' and 'lsq'");
}

// x fills its memory without gaps, in any order of its dimensions.
cuda::FakeQuantize describe(const Tensor& x, const Options& options) {
    check_range("bits", options.bits, 1, 8);
    const int64_t size = elements(x);
    if (size == 0 || reach(x) != size)
        throw py::value_error("x: expected a dense tensor with elements, not shape " +
                              to_string(x.shape.data(), x.ndim) + " and strides " +
                              to_string(x.strides.data(), x.ndim));
    check_range("the size of x", size, 1, int64_t{1} << 37);
    check_range("channels", options.channels, 1, std::min(size, int64_t{1} << 30));
    check_range("inner", options.inner, 1, size);
    if (size % options.channels != 0 || size / options.channels % options.inner != 0)
        throw py::value_error("x: its elements are no multiple of channels and inner");
    const int levels = (1 << options.bits) - 1, low = options.is_signed ? -(1 << (options.bits - 1)) : 0;
    return {method_of(options.method), low,          low + levels, size / options.channels / options.inner,
            options.channels,          options.inner};
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
    const Tensor tensor = read_tensor_of(cuda_floats, object, name);
    check_same_dtype(tensor, name, x, "x");
    check_like(tensor, name, x);
    return tensor;
}

// Not given: a tensor without data.
Tensor read_channels(Dtype dtype, py::handle object, const char* name, const cuda::FakeQuantize& shape) {
    if (object.is_none()) return {};
    const Tensor tensor = read_tensor_of({dtype}, object, name);
    check_contiguous(tensor, name);
    if (tensor.ndim > 1 || elements(tensor) != shape.channels)
        throw py::value_error(std::string(name) + ": expected one value for each of " + std::to_string(shape.channels) +
                              " channels");
    return tensor;
}

Tensor read_workspace(py::handle object, const cuda::FakeQuantize& shape, const Tensor& x) {
    const Tensor workspace = read_tensor_of({Dtype::float32}, object, "workspace");
    check_contiguous(workspace, "workspace");
    const int64_t needed = cuda::fake_quantize_workspace(shape, element_of(x));
    if (elements(workspace) < needed)
        throw py::value_error("workspace: expected " + std::to_string(needed) + " elements");
    return workspace;
}

// The tensors that forward, codes and backward read, checked.
struct Inputs {
    Tensor x, scale, zero_point;
    cuda::FakeQuantize shape;
    cuda::Element element;
    CudaCall call;

    Inputs(py::handle x_object, py::handle scale_object, py::handle zero_point_object, const Options& options)
        : x(read_tensor_of(cuda_floats, x_object, "x")), shape(describe(x, options)), element(element_of(x)) {
        if (scale_object.is_none()) throw py::type_error("scale: expected a torch.Tensor, got None");
        scale = read_channels(Dtype::float32, scale_object, "scale", shape);
        zero_point = read_channels(Dtype::int32, zero_point_object, "zero_point", shape);
        call.reads(x, "x").reads(scale, "scale").reads(zero_point, "zero_point");
    }
};

void forward(const Options& options, py::handle x, py::handle scale, py::handle zero_point, py::handle y_object) {
    Inputs in(x, scale, zero_point, options);
    const Tensor y = read_like(y_object, "y", in.x);
    in.call.writes(y, "y").run(options.stream, [&](void* stream) {
        return cuda::fake_quantize_forward(in.shape, in.element, in.x.data, in.scale.as<float>(),
                                           in.zero_point.as<int32_t>(), y.data, stream);
    });
}

void codes(const Options& options, py::handle x, py::handle scale, py::handle zero_point, py::handle codes_object) {
    Inputs in(x, scale, zero_point, options);
    const Tensor codes = read_tensor_of({Dtype::int8, Dtype::uint8}, codes_object, "codes");
    check_like(codes, "codes", in.x);
    in.call.writes(codes, "codes").run(options.stream, [&](void* stream) {
        return cuda::fake_quantize_codes(in.shape, in.element, in.x.data, in.scale.as<float>(),
                                         in.zero_point.as<int32_t>(), codes.as<uint8_t>(), stream);
    });
}

void backward(const Options& options, py::handle dy_object, py::handle x, py::handle scale, py::handle zero_point,
              py::handle dx_object, py::handle dscale_object, py::handle workspace_object) {
    Inputs in(x, scale, zero_point, options);
    const Tensor dy = read_like(dy_object, "dy", in.x);
    Tensor dx{}, workspace{};
    if (!dx_object.is_none()) dx = read_like(dx_object, "dx", in.x);
    const Tensor dscale = read_channels(Dtype::float32, dscale_object, "dscale", in.shape);
    if (dscale.data && in.shape.method == cuda::QuantizeMethod::dorefa)
        throw py::value_error("dscale: method dorefa has none");
    if (dscale.data) workspace = read_workspace(workspace_object, in.shape, in.x);
    in.call.reads(dy, "dy").writes(dx, "dx").writes(dscale, "dscale").writes(workspace, "workspace");
    in.call.run(options.stream, [&](void* stream) {
        return cuda::fake_quantize_backward(in.shape, in.element, dy.data, in.x.data, in.scale.as<float>(),
                                            in.zero_point.as<int32_t>(), dx.data, dscale.as<float>(),
                                            workspace.as<float>(), stream);
    });
}

void maximum(const Options& options, py::handle x_object, py::handle maximum_object, py::handle workspace_object) {
    const Tensor x = read_tensor_of(cuda_floats, x_object, "x");
    const cuda::FakeQuantize shape = describe(x, options);
    const Tensor maximum = read_channels(Dtype::float32, maximum_object, "maximum", shape);
    if (!maximum.data) throw py::type_error("maximum: expected a torch.Tensor, got None");
    const Tensor workspace = read_workspace(workspace_object, shape, x);
    CudaCall call;
    call.reads(x, "x").writes(maximum, "maximum").writes(workspace, "workspace");
    call.run(options.stream, [&](void* stream) {
        return cuda::fake_quantize_maximum(shape, element_of(x), x.data, maximum.as<float>(), workspace.as<float>(),
                                           stream);
    });
}

int64_t workspace(const Options& options, py::handle x_object) {
    const Tensor x = read_tensor_of(cuda_floats, x_object, "x");
    return cuda::fake_quantize_workspace(describe(x, options), element_of(x));
}

// Adds function(options, tensors...) to the module as a function of its tensors, then of the options one by one.
template <typename Result, typename... Handles>
void define(py::module_& module, const char* name, Result (*function)(const Options&, Handles...)) {
    module.def(name, [function](Handles... tensors, std::string method, int64_t bits, bool is_signed, int64_t channels,
                                int64_t inner, uintptr_t stream) {
        return function({std::move(method), bits, is_signed, channels, inner, stream}, tensors...);
    });
}

}  // namespace

void bind_cuda_fake_quantize(py::module_& module) {
    define(module, "fake_quantize_forward", &forward);
    define(module, "fake_quantize_codes", &codes);
    define(module, "fake_quantize_backward", &backward);
    define(module, "fake_quantize_maximum", &maximum);
    define(module, "fake_quantize_workspace", &workspace);
}

}  // namespace spos
