// sgd on a GPU: a list of updates in, a table of the kernel's pieces out, and the launch over it.
#include "cuda/sgd.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "bindings/cuda/bindings.h"
#include "bindings/cuda/call.h"

namespace spos {
namespace {

using cuda::SgdPiece;

void check_same_layout(const Tensor& tensor, const char* name, const Tensor& parameter) {
    bool same = tensor.ndim == parameter.ndim;
    for (int d = 0; same && d < tensor.ndim; ++d)
        same = tensor.shape[d] == parameter.shape[d] &&
               (tensor.shape[d] == 1 || tensor.strides[d] == parameter.strides[d]);
    if (!same)
        throw py::value_error(std::string(name) + ": expected shape and strides of its parameter, " +
                              to_string(parameter.shape.data(), parameter.ndim) + " and " +
                              to_string(parameter.strides.data(), parameter.ndim));
}

// One int32, or none.
Tensor read_number(py::handle object, const char* name) {
    if (object.is_none()) return {};
    const Tensor tensor = read_tensor_of({Dtype::int32}, object, name);
    for (int d = 0; d < tensor.ndim; ++d)
        if (tensor.shape[d] != 1) throw py::value_error(std::string(name) + ": expected one element");
    return tensor;
}

// Elements in front of the first multiple of 16 bytes, the same in all buffers; -1 where they differ.
int64_t until_vector(const SgdPiece& piece, int64_t at) {
    const auto until = [&](const float* buffer) -> int64_t {
        return (16 - reinterpret_cast<uintptr_t>(buffer + at) % 16) % 16 / 4;
    };
    const int64_t result = until(piece.w);
    return until(piece.gradient) == result && (!piece.m || until(piece.m) == result) ? result : -1;
}

// `updates` as pieces, each a block's work. What it was built of has to outlive it.
class SgdTable {
  public:
    // Each update: (parameter, gradient, momentum buffer or None, offset, rows, length, stride, momentum,
    // weight_decay, nesterov, index of its learning rate, choice or None, chosen, row count or None, rows of one,
    // column count or None, columns of one).
    SgdTable(const py::list& updates, int64_t rates) : rates_(rates) {
        for (const py::handle item : updates) add(py::cast<py::tuple>(item));
        if (pieces_.size() >= size_t{1} << 31) throw py::value_error("updates: expected less than 2^31 pieces");
    }

    py::bytes data() const {
        return {reinterpret_cast<const char*>(pieces_.data()), pieces_.size() * sizeof(SgdPiece)};
    }

    int64_t size() const { return static_cast<int64_t>(pieces_.size()); }

    // table: data() in the memory of the device. rates: learning rates. scale: of the gradients, or None for 1.
    void run(py::handle table_object, py::handle rates_object, py::handle scale_object, uintptr_t stream) const {
        const Tensor rates = read_tensor_of({Dtype::float32}, rates_object, "rates");
        check_shape(rates, "rates", {rates_});
        check_contiguous(rates, "rates");
        Tensor scale{};
        if (!scale_object.is_none()) {
            scale = read_tensor_of({Dtype::float32}, scale_object, "scale");
            check_shape(scale, "scale", {1});
        }
        CudaCall call = call_;
        const SgdPiece* const table = read_table(table_object, call);
        call.reads(rates, "rates").reads(scale, "scale").run(stream, [&](void* stream) {
            return cuda::sgd_step(table, size(), rates.as<float>(), scale.as<float>(), stream);
        });
    }

    // parts: float64 for each piece. counter: int32, zero. scale: what to multiply the gradients by.
    void clip(py::handle table_object, double most, py::handle parts_object, py::handle counter_object,
              py::handle scale_object, uintptr_t stream) const {
        const Tensor parts = read_tensor_of({Dtype::float64}, parts_object, "parts");
        const Tensor counter = read_tensor_of({Dtype::int32}, counter_object, "counter");
        const Tensor scale = read_tensor_of({Dtype::float32}, scale_object, "scale");
        check_shape(parts, "parts", {size()});
        check_contiguous(parts, "parts");
        check_shape(counter, "counter", {1});
        check_shape(scale, "scale", {1});
        CudaCall call = call_;
        const SgdPiece* const table = read_table(table_object, call);
        call.writes(parts, "parts").writes(counter, "counter").writes(scale, "scale").run(stream, [&](void* stream) {
            const cuda::SgdClip clip{static_cast<float>(most), parts.as<double>(), static_cast<uint32_t*>(counter.data),
                                     scale.as<float>()};
            return cuda::sgd_clip(table, size(), clip, stream);
        });
    }

  private:
    const SgdPiece* read_table(py::handle object, CudaCall& call) const {
        const Tensor table = read_tensor_of({Dtype::uint8}, object, "table");
        check_shape(table, "table", {static_cast<int64_t>(pieces_.size() * sizeof(SgdPiece))});
        check_contiguous(table, "table");
        if (reinterpret_cast<uintptr_t>(table.data) % alignof(SgdPiece) != 0)
            throw py::value_error("table: expected an address that is a multiple of 8");
        call.reads(table, "table");
        return table.as<const SgdPiece>();
    }

    void add(const py::tuple& update) {
        if (update.size() != 17) throw py::value_error("updates: expected tuples of 17");
        const Tensor parameter = read_tensor_of({Dtype::float32}, update[0], "parameter");
        const Tensor gradient = read_tensor_of({Dtype::float32}, update[1], "gradient");
        check_same_layout(gradient, "gradient", parameter);
        Tensor buffer{};
        if (!update[2].is_none()) {
            buffer = read_tensor_of({Dtype::float32}, update[2], "momentum_buffer");
            check_same_layout(buffer, "momentum_buffer", parameter);
        }
        const auto integer = [&](int index) { return py::cast<int64_t>(update[index]); };
        const int64_t offset = integer(3), rows = integer(4), length = integer(5), stride = integer(6);
        if (offset < 0 || rows < 0 || length < 0 || stride < 0)
            throw py::value_error("updates: expected offsets, rows, lengths and strides from 0");
        if (rows == 0 || length == 0) return;
        if (offset + (rows - 1) * stride + length > reach(parameter))
            throw py::value_error("updates: expected extents within their parameter");
        SgdPiece piece{};
        piece.w = parameter.as<float>() + offset;
        piece.gradient = gradient.as<float>() + offset;
        piece.m = buffer.data ? buffer.as<float>() + offset : nullptr;
        piece.stride = stride;
        piece.momentum = py::cast<float>(update[7]);
        piece.weight_decay = py::cast<float>(update[8]);
        piece.nesterov = py::cast<bool>(update[9]);
        check_range("rate", integer(10), 0, rates_ - 1);
        piece.rate = static_cast<int32_t>(integer(10));
        const Tensor choice = read_number(update[11], "choice"), row_count = read_number(update[13], "row_count");
        const Tensor column_count = read_number(update[15], "column_count");
        piece.choice = choice.as<int32_t>();
        check_range("chosen", integer(12), INT32_MIN, INT32_MAX);
        piece.chosen = static_cast<int32_t>(integer(12));
        piece.row_count = row_count.as<int32_t>();
        piece.column_count = column_count.as<int32_t>();
        constexpr int64_t most_units = int64_t{1} << 31;  // times an int32 it is an int64
        check_range("rows of one", piece.row_unit = integer(14), 1, most_units);
        check_range("columns of one", piece.column_unit = integer(16), 1, most_units);
        call_.writes(parameter, "parameter").reads(gradient, "gradient").writes(buffer, "momentum_buffer");
        call_.reads(choice, "choice").reads(row_count, "row_count").reads(column_count, "column_count");
        cut(piece, rows, length);
    }

    // Adds the pieces of rows * length elements from where `whole` begins.
    void cut(const SgdPiece& whole, int64_t rows, int64_t length) {
        const bool vectors = whole.stride % 4 == 0 && until_vector(whole, 0) == 0;
        const int64_t accesses = vectors ? (length + 3) / 4 : length;
        if (rows > 1 && accesses <= SgdPiece::threads) {
            int bits = 0;
            while (1 << bits < accesses) ++bits;
            const int64_t most = SgdPiece::accesses * (SgdPiece::threads >> bits);
            for (int64_t row = 0; row < rows; row += most)
                push(whole, vectors, bits, {row, std::min(most, rows - row)}, {0, length});
            return;
        }
        constexpr int all = 8;
        static_assert(1 << all == SgdPiece::threads, "threads side by side in a single row");
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t column = 0; column < length;) {
                const int64_t until = until_vector(whole, row * whole.stride + column);
                const int64_t most = until > 0 ? until : SgdPiece::most_accesses * (until == 0 ? 4 : 1);
                const int64_t count = std::min(most, length - column);
                push(whole, until == 0, all, {row, 1}, {column, count});
                column += count;
            }
    }

    using Range = std::pair<int64_t, int64_t>;  // first, count
    void push(const SgdPiece& whole, bool vectors, int lane_bits, const Range& rows, const Range& columns) {
        SgdPiece piece = whole;
        const int64_t at = rows.first * whole.stride + columns.first;
        piece.w += at;
        piece.gradient += at;
        if (piece.m) piece.m += at;
        piece.first_row = rows.first;
        piece.rows = static_cast<int32_t>(rows.second);
        piece.first_column = columns.first;
        piece.columns = static_cast<int32_t>(columns.second);
        piece.lane_bits = static_cast<int16_t>(lane_bits);
        piece.vectors = vectors;
        pieces_.push_back(piece);
    }

    int64_t rates_;
    std::vector<SgdPiece> pieces_;
    CudaCall call_;
};

}  // namespace

void bind_cuda_sgd(py::module_& module) {
    py::class_<SgdTable>(module, "SgdTable", py::module_local())
        .def(py::init<const py::list&, int64_t>(), py::arg("updates"), py::arg("rates"))
        .def("data", &SgdTable::data)
        .def("size", &SgdTable::size)
        .def("run", &SgdTable::run, py::arg("table"), py::arg("rates"), py::arg("scale"), py::arg("stream"))
        .def("clip", &SgdTable::clip, py::arg("table"), py::arg("most"), py::arg("parts"), py::arg("counter"),
             py::arg("scale"), py::arg("stream"));
}

}  // namespace spos
