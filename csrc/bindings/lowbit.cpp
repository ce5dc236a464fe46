// Low-bit operations: packing, and the convolution of codes by packed codes. The checks keep memory safe and codes
// within their bits; which values make sense is the Python face's business.
#include <algorithm>
#include <climits>
#include <type_traits>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/processor.h"
#include "bindings/tensor.h"
#include "bindings/workspace.h"
#include "core/parallel.h"
#include "cpu/lowbit_conv2d.h"

namespace spos {

namespace {

Tensor read_dense(Dtype dtype, py::handle object, const char* name, std::initializer_list<int64_t> shape) {
    const Tensor tensor = read_tensor_of({dtype}, object, name);
    check_shape(tensor, name, shape);
    check_contiguous(tensor, name);
    return tensor;
}

int team_of(int64_t threads) { return static_cast<int>(std::clamp<int64_t>(threads, 1, 1024)); }

// Whether all codes, rows of `channels` bytes, are below 2^bits.
bool codes_fit(const uint8_t* codes, int64_t rows, int64_t channels, int64_t stride, int bits, int threads) {
    if (bits == 8) return true;
    constexpr int64_t chunk = 256;
    bool fit = true;
    parallel_for((rows + chunk - 1) / chunk, threads, [&](int64_t begin, int64_t end) {
        uint8_t all = 0;
        for (int64_t row = begin * chunk; row < std::min(end * chunk, rows); ++row)
            for (int64_t i = 0; i < channels; ++i) all |= codes[row * stride + i];
        if (all >> bits) __atomic_store_n(&fit, false, __ATOMIC_RELAXED);
    });
    return fit;
}

// codes [rows, k] uint8 to packed [rows, bytes].
void pack(py::handle codes_object, py::handle packed_object, int64_t bits, int64_t threads) {
    check_range("bits", bits, 1, 8);
    const Tensor codes = read_tensor_of({Dtype::uint8}, codes_object, "codes");
    if (codes.ndim != 2) throw py::value_error("codes: expected two dimensions");
    check_contiguous(codes, "codes");
    const int64_t rows = codes.shape[0], k = codes.shape[1], bytes = packed_bytes(k, static_cast<int>(bits));
    const Tensor packed = read_dense(Dtype::uint8, packed_object, "packed", {rows, bytes});
    const auto* const from = codes.as<const uint8_t>();
    auto* const to = packed.as<uint8_t>();
    bool fit = false;
    {
        py::gil_scoped_release release;
        const int team = team_of(threads);
        fit = codes_fit(from, rows, k, k, static_cast<int>(bits), team);
        if (fit)
            parallel_for(rows, team, [&](int64_t begin, int64_t end) {
                for (int64_t row = begin; row < end; ++row) {
                    uint8_t* out = to + row * bytes;
                    uint32_t waiting = 0;
                    int count = 0;
                    for (int64_t i = 0; i < k; ++i) {
                        waiting |= static_cast<uint32_t>(from[row * k + i]) << count;
                        for (count += static_cast<int>(bits); count >= 8; count -= 8, waiting >>= 8)
                            *out++ = static_cast<uint8_t>(waiting);
                    }
                    if (count) *out = static_cast<uint8_t>(waiting);
                }
            });
    }
    if (!fit) throw py::value_error("codes: expected values below 2^bits");
}

void unpack(py::handle packed_object, py::handle codes_object, int64_t bits, Isa isa, int64_t threads) {
    check_range("bits", bits, 1, 8);
    require_isa(isa, Dtype::float32);
    const Tensor codes = read_tensor_of({Dtype::uint8}, codes_object, "codes");
    if (codes.ndim != 2) throw py::value_error("codes: expected two dimensions");
    check_contiguous(codes, "codes");
    const int64_t rows = codes.shape[0], k = codes.shape[1], bytes = packed_bytes(k, static_cast<int>(bits));
    const Tensor packed = read_dense(Dtype::uint8, packed_object, "packed", {rows, bytes});
    py::gil_scoped_release release;
    const LowbitBody body = lowbit_body(isa);
    parallel_for(rows, team_of(threads), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
            body.unpack(packed.as<const uint8_t>() + row * bytes, k, static_cast<int>(bits),
                        codes.as<uint8_t>() + row * k);
    });
}

// A product of sizes, each below 2^31, that memory could hold.
int64_t product(std::initializer_list<int64_t> sizes) {
    constexpr int64_t most = int64_t{1} << 47;
    int64_t result = 1;
    for (const int64_t size : sizes)
        if (__builtin_mul_overflow(result, size, &result) || result > most)
            throw py::value_error("sizes: more elements than memory holds");
    return result;
}

template <typename T>
T* dense(Dtype dtype, py::handle object, const char* name, std::initializer_list<int64_t> shape) {
    return read_dense(dtype, object, name, shape).as<T>();
}

template <typename T>
T* optional(Dtype dtype, py::handle object, const char* name, std::initializer_list<int64_t> shape) {
    return object.is_none() ? nullptr : dense<T>(dtype, object, name, shape);
}

// Of at least one number. Without a branch, for it runs before every product.
std::pair<int32_t, int32_t> smallest_and_largest(const int32_t* numbers, int64_t count) {
    int32_t smallest = numbers[0], largest = numbers[0];
    for (int64_t i = 1; i < count; ++i)
        smallest = std::min(smallest, numbers[i]), largest = std::max(largest, numbers[i]);
    return {smallest, largest};
}

constexpr int64_t most_size = int64_t{1} << 31;

// x: [pixels, channels], adjacent channels, uint8 codes or Real, which is what the multiplier has, or float. sizes:
// batch, in and out height and width, groups, inputs and outputs of a group, kernel, stride, padding, dilation (pairs).
// packed [outputs, bytes]; sums, twice_zero and multiplier [scale_groups, outputs]; outputs [pixels, outputs]. numbers:
// x_bits, x_zero, w_bits, shift, out_zero, out_bits, residual_zero. scales: of x, of the residual, of the output.
template <typename Real>
void conv2d_in(py::handle x_object, py::handle packed_object, py::handle sums, py::handle twice_zero,
               py::handle multiplier, py::handle bias, py::handle residual, py::handle y_sums, py::handle y,
               py::handle y_codes, const py::tuple& sizes, const py::tuple& numbers, const py::tuple& scales, bool relu,
               int64_t method, Isa isa, int64_t threads) {
    require_isa(isa, Dtype::float32);
    if (sizes.size() != 16 || numbers.size() != 7 || scales.size() != 3)
        throw py::value_error("sizes, numbers, scales: expected 16, 7 and 3");
    constexpr Dtype real = std::is_same_v<Real, float> ? Dtype::float32 : Dtype::float64;
    LowbitConv2d<Real> call{};
    const auto size = [&](size_t at) { return py::cast<int64_t>(sizes[at]); };
    const auto number = [&](size_t at) { return py::cast<int>(numbers[at]); };
    call.batch = size(0), call.in_height = size(1), call.in_width = size(2);
    call.out_height = size(3), call.out_width = size(4);
    call.groups = size(5), call.inputs = size(6), call.outputs = size(7);
    for (size_t at = 0; at < 16; ++at)
        if (size(at) < (at < 5 || at == 12 || at == 13 ? 0 : 1) || size(at) >= most_size)
            throw py::value_error("sizes: expected positive integers below 2^31");
    const auto pair = [&](size_t at) { return Pair{static_cast<int>(size(at)), static_cast<int>(size(at + 1))}; };
    call.kernel = pair(8), call.stride = pair(10), call.padding = pair(12), call.dilation = pair(14);
    const auto length = [](int64_t in, int kernel, int stride, int padding, int dilation) {
        const int64_t room = in + int64_t{2} * padding - int64_t{dilation} * (kernel - 1) - 1;
        return room < 0 ? 0 : room / stride + 1;
    };
    if (call.out_height !=
            length(call.in_height, call.kernel.height, call.stride.height, call.padding.height, call.dilation.height) ||
        call.out_width !=
            length(call.in_width, call.kernel.width, call.stride.width, call.padding.width, call.dilation.width))
        throw py::value_error("sizes: the output's do not follow from the others");
    call.x_bits = number(0), call.x_zero = number(1), call.w_bits = number(2);
    check_range("x_bits", call.x_bits, 1, 8);
    check_range("w_bits", call.w_bits, 1, 8);
    check_range("x_zero", call.x_zero, 0, (1 << call.x_bits) - 1);
    check_range("shift", number(3), 0, 1);
    check_range("out_bits", number(5), 1, 8);
    check_range("method", method, 0, 2);
    call.method = static_cast<LowbitMethod>(method);

    const int64_t channels = call.groups * call.inputs;
    for (const auto& factors : {std::initializer_list<int64_t>{call.batch, call.in_height, call.in_width, channels},
                                {call.batch, call.out_height, call.out_width, call.groups * call.outputs},
                                {call.kernel.height, call.kernel.width, call.inputs, call.groups, call.outputs}})
        product(factors);
    const int64_t in_pixels = call.batch * call.in_height * call.in_width;
    const int64_t k = call.k(), outputs = call.groups * call.outputs, pixels = call.pixels();
    if (k > INT32_MAX / (((1 << call.x_bits) - 1) << (call.w_bits - 1)))
        throw py::value_error("sizes: more products than a sum of 32 bits holds");
    if (call.method != LowbitMethod::dots && k > INT32_MAX / (((1 << call.x_bits) - 1) * ((1 << call.w_bits) - 1)))
        throw py::value_error("method: only dots holds so many products");
    const bool plain = call.groups == 1 && call.kernel.height == 1 && call.kernel.width == 1 &&
                       call.stride.height == 1 && call.stride.width == 1 && call.padding.height == 0 &&
                       call.padding.width == 0;
    if (call.method == LowbitMethod::row && !plain) throw py::value_error("method: row is for matrix products");

    const bool floats = !scales[0].is_none();
    const Tensor x = read_tensor_of({floats ? real : Dtype::uint8}, x_object, "x");
    check_shape(x, "x", {in_pixels, channels});
    if (channels > 1 && x.strides[1] != 1) throw py::value_error("x: expected adjacent channels");
    call.x_stride = in_pixels > 1 ? x.strides[0] : channels;
    if (floats)
        call.floats = x.as<const Real>(), call.x_scale = py::cast<Real>(scales[0]);
    else
        call.codes = x.as<const uint8_t>();
    call.weight = dense<const uint8_t>(Dtype::uint8, packed_object, "packed", {outputs, packed_bytes(k, call.w_bits)});
    const Tensor all_sums = read_tensor_of({Dtype::int32}, sums, "sums");
    call.scale_groups = all_sums.ndim == 2 ? all_sums.shape[0] : 0;
    if (call.scale_groups < 1 || (call.scale_groups > 1 && (!plain || k % (8 * call.scale_groups))))
        throw py::value_error("sums: expected one row, or rows for whole multiples of 8 of a matrix product's k");
    if (call.scale_groups > 1 && (multiplier.is_none() || call.method == LowbitMethod::bits))
        throw py::value_error("multiplier, method: not with more than one group of scales");
    call.sums = dense<const int32_t>(Dtype::int32, sums, "sums", {call.scale_groups, outputs});
    call.twice_zero = dense<const int32_t>(Dtype::int32, twice_zero, "twice_zero", {call.scale_groups, outputs});
    const auto [least, most] = smallest_and_largest(call.twice_zero, call.scale_groups * outputs);
    if (least < 0 || most > 2 << call.w_bits)
        throw py::value_error("twice_zero: expected integers from 0 to 2^(w_bits + 1)");
    call.multiplier = optional<const Real>(real, multiplier, "multiplier", {call.scale_groups, outputs});
    LowbitFinish<Real>& finish = call.finish;
    finish.shift = number(3), finish.relu = relu;
    finish.bias = optional<const Real>(real, bias, "bias", {outputs});
    if (scales[1].is_none()) {
        finish.residual = optional<const Real>(real, residual, "residual", {pixels, outputs});
    } else {
        finish.residual_codes = optional<const uint8_t>(Dtype::uint8, residual, "residual", {pixels, outputs});
        finish.residual_scale = py::cast<Real>(scales[1]), finish.residual_zero = number(6);
        check_range("residual_zero", finish.residual_zero, 0, 255);
    }
    finish.sums = optional<int64_t>(Dtype::int64, y_sums, "y_sums", {pixels, outputs});
    finish.y = optional<Real>(real, y, "y", {pixels, outputs});
    finish.codes = optional<uint8_t>(Dtype::uint8, y_codes, "y_codes", {pixels, outputs});
    const bool summed = !y_sums.is_none(), finished = !y.is_none() || !y_codes.is_none();
    if (multiplier.is_none() ? !summed || finished : summed || !finished)
        throw py::value_error(
            "y_sums, y, y_codes: expected y_sums without a multiplier, y or y_codes or both with one");
    if (finish.codes) {
        if (scales[2].is_none()) throw py::value_error("scales: needed for y_codes");
        finish.out_scale = py::cast<Real>(scales[2]);
        finish.out_zero = number(4), finish.out_most = (1 << number(5)) - 1;
        check_range("out_zero", finish.out_zero, 0, finish.out_most);
    }
    if (pixels == 0) return;
    const int team = team_of(threads);
    bool fit = true;
    {
        const Workspace workspace(lowbit_conv2d_workspace(isa, call, team));
        py::gil_scoped_release release;
        fit = !call.codes || codes_fit(call.codes, in_pixels, channels, call.x_stride, call.x_bits, team);
        if (fit) lowbit_conv2d(isa, call, workspace.get(), team);
    }
    if (!fit) throw py::value_error("x: has codes of more than x_bits bits");
}

void conv2d(py::handle x, py::handle packed, py::handle sums, py::handle twice_zero, py::handle multiplier,
            py::handle bias, py::handle residual, py::handle y_sums, py::handle y, py::handle y_codes,
            const py::tuple& sizes, const py::tuple& numbers, const py::tuple& scales, bool relu, int64_t method,
            Isa isa, int64_t threads) {
    const bool in_double =
        !multiplier.is_none() &&
        read_tensor_of({Dtype::float32, Dtype::float64}, multiplier, "multiplier").dtype == Dtype::float64;
    const auto run = in_double ? conv2d_in<double> : conv2d_in<float>;
    run(x, packed, sums, twice_zero, multiplier, bias, residual, y_sums, y, y_codes, sizes, numbers, scales, relu,
        method, isa, threads);
}

}  // namespace

void bind_lowbit(py::module_& module) {
    module.def("lowbit_pack", &pack, py::arg("codes"), py::arg("packed"), py::arg("bits"), py::arg("threads"));
    module.def("lowbit_unpack", &unpack, py::arg("packed"), py::arg("codes"), py::arg("bits"), py::arg("isa"),
               py::arg("threads"));
    module.def("lowbit_conv2d", &conv2d, py::arg("x"), py::arg("packed"), py::arg("sums"), py::arg("twice_zero"),
               py::arg("multiplier"), py::arg("bias"), py::arg("residual"), py::arg("y_sums"), py::arg("y"),
               py::arg("y_codes"), py::arg("sizes"), py::arg("numbers"), py::arg("scales"), py::arg("relu"),
               py::arg("method"), py::arg("isa"), py::arg("threads"));
}

}  // namespace spos
