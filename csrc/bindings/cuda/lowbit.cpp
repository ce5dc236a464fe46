// Convolution of codes by packed codes on a GPU: tensors in, checked pointers out. The checks keep memory safe; which
// values make sense is the Python face's business. Outputs and workspace are allocated by the caller.
#include "cuda/lowbit.h"

#include <algorithm>

#include "bindings/cuda/bindings.h"
#include "bindings/cuda/call.h"

namespace spos {
namespace {

Tensor read_dense(std::initializer_list<Dtype> dtypes, py::handle object, const char* name,
                  std::initializer_list<int64_t> shape) {
    const Tensor tensor = read_tensor_of(dtypes, object, name);
    check_shape(tensor, name, shape);
    check_contiguous(tensor, name);
    return tensor;
}

// What a call consists of, as Python gives it; each tensor but the first four may be None.
struct Arguments {
    py::object x, packed, sums, twice_zero, multiplier, bias, residual, y_sums, y, y_codes;
    py::tuple sizes, numbers, scales;
    bool relu, centred;
};

class Reader {
  public:
    explicit Reader(const Arguments& arguments) : from_(arguments) {
        read_sizes();
        read_x();
        read_weight();
        read_result();
    }

    cuda::LowbitConv2d call{};
    CudaCall memory;

  private:
    int64_t size(size_t at) const { return py::cast<int64_t>(from_.sizes[at]); }
    int number(size_t at) const { return py::cast<int>(from_.numbers[at]); }

    // sizes: batch, in and out height and width, groups, inputs and outputs of a group, and pairs: kernel, stride,
    // padding, dilation. numbers: x_bits, x_zero, w_bits, whether sums are doubled, out_zero, out_bits, residual_zero.
    void read_sizes() {
        if (from_.sizes.size() != 16 || from_.numbers.size() != 7 || from_.scales.size() != 3)
            throw py::value_error("sizes, numbers, scales: expected 16, 7 and 3");
        constexpr int64_t most = int64_t{1} << 29;  // room to add and to multiply by two
        for (size_t at = 0; at < 16; ++at)
            if (size(at) < (at < 5 || at == 12 || at == 13 ? 0 : 1) || size(at) >= (at < 5 || at > 7 ? most : 2 * most))
                throw py::value_error("sizes: expected positive integers below 2^29, or 2^30 for channels");
        const auto of = [&](size_t at) { return static_cast<int>(size(at)); };
        const auto pair = [&](size_t at) { return cuda::Extent{of(at), of(at + 1)}; };
        call.map = {of(0), of(1), of(2), of(3), of(4), pair(8), pair(10), pair(12), pair(14)};
        call.groups = of(5), call.inputs = of(6), call.outputs = of(7);
        const auto length = [](int64_t in, int kernel, int stride, int padding, int dilation) {
            const int64_t room = in + int64_t{2} * padding - int64_t{dilation} * (kernel - 1) - 1;
            return room < 0 ? 0 : room / stride + 1;
        };
        const cuda::LowbitMap& map = call.map;
        if (map.out_height !=
                length(map.in_height, map.kernel.height, map.stride.height, map.padding.height, map.dilation.height) ||
            map.out_width !=
                length(map.in_width, map.kernel.width, map.stride.width, map.padding.width, map.dilation.width))
            throw py::value_error("sizes: the output's do not follow from the others");
        constexpr int64_t most_pixels = (int64_t{1} << 31) - 256;
        if (product({map.batch, map.in_height, map.in_width}) > most_pixels ||
            product({map.batch, map.out_height, map.out_width}) > most_pixels)
            throw py::value_error(
                "x: more than 2^31 - 256 pixels, or as many in the result, which the CUDA kernels do "
                "not number");
        if (product({call.groups, call.outputs}) >= 2 * most || product({call.groups, call.inputs}) >= 2 * most)
            throw py::value_error("sizes: expected fewer than 2^30 channels");
        product({map.in_pixels(), call.groups, call.inputs});
        product({map.pixels(), call.columns()});
        product({map.kernel.height, map.kernel.width, call.inputs});

        call.x.bits = number(0), call.x.zero = number(1);
        call.weight.bits = number(2), call.weight.doubled = number(3) != 0;
        check_range("x_bits", call.x.bits, 1, 8);
        check_range("w_bits", call.weight.bits, 1, 8);
        check_range("x_zero", call.x.zero, 0, (1 << call.x.bits) - 1);
        if (call.k() > INT32_MAX / (((1 << call.x.bits) - 1) << (call.weight.bits - 1)))
            throw py::value_error("sizes: more products than a sum of 32 bits holds");
    }

    // Of sizes, each below 2^31; a product that memory could hold.
    static int64_t product(std::initializer_list<int64_t> sizes) {
        constexpr int64_t most = int64_t{1} << 47;
        int64_t result = 1;
        for (const int64_t size : sizes)
            if (__builtin_mul_overflow(result, size, &result) || result > most)
                throw py::value_error("sizes: more elements than memory holds");
        return result;
    }

    void read_x() {
        const bool floats = !from_.scales[0].is_none();
        const Tensor x =
            floats ? read_tensor_of(cuda_floats, from_.x, "x") : read_tensor_of({Dtype::uint8}, from_.x, "x");
        const int64_t pixels = call.map.in_pixels(), channels = int64_t{call.groups} * call.inputs;
        check_shape(x, "x", {pixels, channels});
        if (channels > 1 && x.strides[1] != 1) throw py::value_error("x: expected adjacent channels");
        call.x.stride = pixels > 1 ? x.strides[0] : channels;
        if (floats)
            call.x.floats = x.data, call.x.element = element_of(x), call.x.scale = py::cast<float>(from_.scales[0]);
        else
            call.x.codes = x.as<const uint8_t>(), call.x.scale = 1;
        memory.reads(x, "x");
#if defined(SPOS_CUDA_EMULATED)  // a GPU's memory is not read here: the kernels take codes to be what they should be
        if (!floats && call.x.bits < 8)
            for (int64_t pixel = 0; pixel < pixels; ++pixel) {
                const uint8_t* const codes = call.x.codes + pixel * call.x.stride;
                if (std::any_of(codes, codes + channels, [&](uint8_t code) { return code >> call.x.bits; }))
                    throw py::value_error("x: has codes of more than x_bits bits");
            }
#endif
    }

    void read_weight() {
        cuda::LowbitWeight& weight = call.weight;
        const int64_t columns = call.columns();
        weight.row_bytes = (call.k() * weight.bits + 7) / 8;
        weight.packed =
            dense<const uint8_t>({Dtype::uint8}, from_.packed, "packed", {columns, weight.row_bytes}, false);
        const Tensor all_sums = read_tensor_of({Dtype::int32}, from_.sums, "sums");
        const int64_t scale_groups = all_sums.ndim == 2 ? all_sums.shape[0] : 0;
        if (scale_groups < 1 || (scale_groups > 1 && (!call.map.plain() || call.groups > 1 ||
                                                      call.k() % (8 * scale_groups) || from_.multiplier.is_none())))
            throw py::value_error("sums: expected one row, or rows for whole multiples of 8 of a matrix product's k");
        weight.scale_groups = static_cast<int>(scale_groups);
        weight.sums = dense<const int32_t>({Dtype::int32}, from_.sums, "sums", {scale_groups, columns}, false);
        weight.twice_zero =
            dense<const int32_t>({Dtype::int32}, from_.twice_zero, "twice_zero", {scale_groups, columns}, false);
        weight.multiplier =
            optional<const float>({Dtype::float32}, from_.multiplier, "multiplier", {scale_groups, columns}, false);
        weight.centred = from_.centred;
    }

    // scales: of x, of the residual, of the codes that are written; None where there is none.
    void read_result() {
        cuda::LowbitResult& to = call.result;
        const int64_t pixels = call.map.pixels(), columns = call.columns();
        to.bias = optional<const float>({Dtype::float32}, from_.bias, "bias", {columns}, false);
        to.relu = from_.relu;
        if (from_.scales[1].is_none()) {
            to.residual = optional<const void>(cuda_floats, from_.residual, "residual", {pixels, columns}, false,
                                               &to.residual_element);
        } else {
            to.residual_codes =
                optional<const uint8_t>({Dtype::uint8}, from_.residual, "residual", {pixels, columns}, false);
            to.residual_scale = py::cast<float>(from_.scales[1]), to.residual_zero = number(6);
            check_range("residual_zero", to.residual_zero, 0, 255);
        }
        to.sums = optional<int64_t>({Dtype::int64}, from_.y_sums, "y_sums", {pixels, columns}, true);
        to.y = optional<void>(cuda_floats, from_.y, "y", {pixels, columns}, true, &to.y_element);
        to.codes = optional<uint8_t>({Dtype::uint8}, from_.y_codes, "y_codes", {pixels, columns}, true);
        const bool summed = !from_.y_sums.is_none(), finished = !from_.y.is_none() || !from_.y_codes.is_none();
        if (from_.multiplier.is_none() ? !summed || finished : summed || !finished)
            throw py::value_error(
                "y_sums, y, y_codes: expected y_sums without a multiplier, y or y_codes or both with one");
        to.out_scale = 1;
        if (from_.y_codes.is_none()) return;
        if (from_.scales[2].is_none()) throw py::value_error("scales: needed for y_codes");
        check_range("out_bits", number(5), 1, 8);
        to.out_scale = py::cast<float>(from_.scales[2]);
        to.out_zero = number(4), to.out_most = (1 << number(5)) - 1;
        check_range("out_zero", to.out_zero, 0, to.out_most);
    }

    template <typename T>
    T* dense(std::initializer_list<Dtype> dtypes, py::handle object, const char* name,
             std::initializer_list<int64_t> shape, bool written, cuda::Element* element = nullptr) {
        const Tensor tensor = read_dense(dtypes, object, name, shape);
        written ? memory.writes(tensor, name) : memory.reads(tensor, name);
        if (element) *element = element_of(tensor);
        return static_cast<T*>(tensor.data);
    }
    template <typename T>
    T* optional(std::initializer_list<Dtype> dtypes, const py::object& object, const char* name,
                std::initializer_list<int64_t> shape, bool written, cuda::Element* element = nullptr) {
        return object.is_none() ? nullptr : dense<T>(dtypes, object, name, shape, written, element);
    }

    const Arguments& from_;
};

// body, tile, splits: what is wanted, or -1, 0 and 0 for what the plan says. capability: 0, or of the device to plan
// for, which only the emulator can be.
using Wanted = std::tuple<int, int, int, int>;

cuda::LowbitDevice device_of(int number, const Wanted& wanted) {
    cuda::LowbitDevice device = cuda::lowbit_device(number);
    const int capability = std::get<3>(wanted);
#if !defined(SPOS_CUDA_EMULATED)
    if (capability != 0 && capability != device.capability)
        throw py::value_error("wanted: another capability than the device's");
#endif
    if (capability != 0) device.capability = capability;
    return device;
}

cuda::LowbitPlan plan_of(const Reader& reader, const Wanted& wanted) {
    const auto [body, tile, splits, capability] = wanted;
    const cuda::LowbitConv2d& call = reader.call;
    const cuda::LowbitDevice device = device_of(reader.memory.device(), wanted);
    if (body < -1 || body > 4 || (body >= 0 && !cuda::lowbit_can(static_cast<cuda::LowbitBody>(body), call, device)))
        throw py::value_error("wanted: a body that cannot run this call on this device");
    if (tile != 0 && tile != 64 && tile != 128) throw py::value_error("wanted: expected a tile of 64 or 128");
    check_range("splits", splits, 0, 64);
    return cuda::lowbit_plan(call, device, {body, tile, splits});
}

Arguments arguments_of(const py::args& args) {
    if (args.size() != 15) throw py::type_error("expected 15 arguments before the keywords");
    Arguments from;
    py::object* const tensors[] = {&from.x,    &from.packed,   &from.sums,   &from.twice_zero, &from.multiplier,
                                   &from.bias, &from.residual, &from.y_sums, &from.y,          &from.y_codes};
    for (size_t at = 0; at < 10; ++at) *tensors[at] = args[at];
    from.sizes = py::cast<py::tuple>(args[10]), from.numbers = py::cast<py::tuple>(args[11]);
    from.scales = py::cast<py::tuple>(args[12]);
    from.relu = py::cast<bool>(args[13]), from.centred = py::cast<bool>(args[14]);
    return from;
}

// Returns body, form, tile, splits, bytes of workspace and the device's capability.
py::tuple plan(const py::args& args, const Wanted& wanted) {
    const Arguments arguments = arguments_of(args);
    const Reader reader(arguments);
    const cuda::LowbitPlan plan = plan_of(reader, wanted);
    return py::make_tuple(static_cast<int>(plan.body), static_cast<int>(plan.form), plan.tile, plan.splits,
                          plan.workspace_bytes, device_of(reader.memory.device(), wanted).capability);
}

void conv2d(const py::args& args, const Wanted& wanted, py::handle workspace_object, py::handle counters_object,
            uintptr_t stream) {
    const Arguments arguments = arguments_of(args);
    Reader reader(arguments);
    const cuda::LowbitConv2d& call = reader.call;
    const cuda::LowbitPlan plan = plan_of(reader, wanted);
    const Tensor workspace = read_tensor_of({Dtype::uint8}, workspace_object, "workspace");
    const Tensor counters = read_dense({Dtype::int32}, counters_object, "counters", {cuda::lowbit_counters});
    check_contiguous(workspace, "workspace");
    if (reach(workspace) < plan.workspace_bytes || reinterpret_cast<uintptr_t>(workspace.data) % 16 != 0)
        throw py::value_error("workspace: expected " + std::to_string(plan.workspace_bytes) +
                              " bytes, 16-byte aligned");
    if (call.map.pixels() == 0) return;
    reader.memory.writes(workspace, "workspace").writes(counters, "counters").run(stream, [&](void* stream) {
        return cuda::lowbit_conv2d(call, plan, workspace.data, counters.as<int>(), stream);
    });
}

}  // namespace

void bind_cuda_lowbit(py::module_& module) {
    module.def("lowbit_plan", &plan, py::arg("wanted"));
    module.def("lowbit_conv2d", &conv2d, py::arg("wanted"), py::arg("workspace"), py::arg("counters"),
               py::arg("stream"));
    module.attr("lowbit_counters") = cuda::lowbit_counters;
}

}  // namespace spos
