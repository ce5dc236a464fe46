// sgd: a list of updates in, pieces of about the same size out to the kernel, with the GIL released.
#include "cpu/sgd.h"

#include <algorithm>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/processor.h"
#include "bindings/tensor.h"

namespace spos {

namespace {

// Elements of a piece: few enough that a large parameter is shared out among threads.
constexpr int64_t piece_size = 16384;

void check_same_layout(const Tensor& tensor, const char* name, const Tensor& parameter) {
    bool same = tensor.ndim == parameter.ndim;
    for (int d = 0; same && d < tensor.ndim; ++d)
        same = tensor.shape[d] == parameter.shape[d] &&
               (tensor.shape[d] == 1 || tensor.strides[d] == parameter.strides[d]);
    if (!same)
        throw py::value_error(std::string(name) + ": expected shape and strides of its parameter, " +
                              to_string(parameter.shape.data(), parameter.ndim) + " and " +
                              to_string(parameter.strides.data(), parameter.ndim));
    check_same_dtype(tensor, name, parameter, "parameter");
}

// What one entry of the list asks for: `rows` runs of `length` elements, `stride` apart, from `offset` on.
struct Extent {
    int64_t offset, rows, length, stride;
};

template <typename T>
void add_pieces(std::vector<SgdPiece<T>>& pieces, const Tensor& parameter, const Tensor& gradient, const Tensor& buffer,
                const Extent& extent, const std::array<double, 3>& factors, bool nesterov) {
    const int64_t length = std::min(extent.length, piece_size), rows = std::max<int64_t>(piece_size / length, 1);
    for (int64_t row = 0; row < extent.rows; row += rows)
        for (int64_t column = 0; column < extent.length; column += length) {
            const int64_t at = extent.offset + row * extent.stride + column;
            pieces.push_back({parameter.as<T>() + at, gradient.as<T>() + at,
                              buffer.data ? buffer.as<T>() + at : nullptr, std::min(rows, extent.rows - row),
                              std::min(length, extent.length - column), extent.stride, static_cast<T>(factors[0]),
                              static_cast<T>(factors[1]), static_cast<T>(factors[2]), nesterov});
        }
}

// Each update: (parameter, gradient, momentum buffer or None, offset, rows, length, stride, lr, momentum, weight_decay,
// nesterov).
void step(py::list updates, Isa isa, int64_t threads) {
    std::vector<SgdPiece<float>> singles;
    std::vector<SgdPiece<double>> doubles;
    for (const py::handle item : updates) {
        const auto update = py::cast<py::tuple>(item);
        if (update.size() != 11) throw py::value_error("updates: expected tuples of 11");
        const Tensor parameter = read_tensor(update[0], "parameter"), gradient = read_tensor(update[1], "gradient");
        check_same_layout(gradient, "gradient", parameter);
        Tensor buffer{};
        if (!update[2].is_none()) {
            buffer = read_tensor(update[2], "momentum_buffer");
            check_same_layout(buffer, "momentum_buffer", parameter);
        }
        const auto integer = [&](int index) { return py::cast<int64_t>(update[index]); };
        const Extent extent{integer(3), integer(4), integer(5), integer(6)};
        if (extent.offset < 0 || extent.rows < 0 || extent.length < 0 || extent.stride < 0)
            throw py::value_error("updates: expected offsets, rows, lengths and strides from 0");
        if (extent.rows == 0 || extent.length == 0) continue;
        if (extent.offset + (extent.rows - 1) * extent.stride + extent.length > reach(parameter))
            throw py::value_error("updates: expected extents within their parameter");
        const std::array<double, 3> factors{py::cast<double>(update[7]), py::cast<double>(update[8]),
                                            py::cast<double>(update[9])};
        const bool nesterov = py::cast<bool>(update[10]);
        require_isa(isa, parameter.dtype);
        if (parameter.dtype == Dtype::float32)
            add_pieces(singles, parameter, gradient, buffer, extent, factors, nesterov);
        else
            add_pieces(doubles, parameter, gradient, buffer, extent, factors, nesterov);
    }
    py::gil_scoped_release release;
    const int team = static_cast<int>(std::clamp<int64_t>(threads, 1, 1024));
    sgd_step(isa, singles.data(), static_cast<int64_t>(singles.size()), team);
    sgd_step(Isa::portable, doubles.data(), static_cast<int64_t>(doubles.size()), team);
}

}  // namespace

void bind_sgd(py::module_& module) {
    module.def("sgd_step", &step, py::arg("updates"), py::arg("isa"), py::arg("threads"));
}

}  // namespace spos
