// choice_block on a GPU with the choice in device memory: all branches of a block at once, checked when the table is
// made.
#include "bindings/cuda/bindings.h"
#include "bindings/cuda/choice_block_reading.h"

namespace spos {
namespace {

class ChoiceTable {
  public:
    // branches: of each choice (layers, how many of them are main's, gradients of the layers). x: of the shape and the
    // type that the table is for.
    ChoiceTable(py::handle x, py::tuple branches, int stride, bool whole)
        : branches_(branches), stride_(stride), whole_(whole) {
        if (branches.size() < 1) throw py::value_error("branches: expected at least one");
        for (const py::handle object : branches) {
            const auto branch = py::cast<py::tuple>(object);
            if (branch.size() != 3) throw py::value_error("branches: expected tuples of 3");
            ChoiceBlockReading reading =
                read_choice_block({x, branch[0], py::cast<int>(branch[1]), stride, whole}, true);
            read_choice_block_gradients(reading, branch[2]);
            if (!rows_.empty()) {
                const cuda::ChoiceBlock& first = first_.block;
                if (reading.block.out_channels != first.out_channels)
                    throw py::value_error("branches: expected the same number of outputs of each");
                first_.call.append(reading.call);
                first_.kept = std::max(first_.kept, reading.kept);
                first_.statistics = std::max(first_.statistics, reading.statistics);
            }
            rows_.push_back(reading.block.branch);
            if (rows_.size() == 1) first_ = reading;
        }
    }

    py::bytes rows() const {
        return py::bytes(reinterpret_cast<const char*>(rows_.data()), rows_.size() * sizeof(cuda::Branch));
    }

    // Elements of `kept` and `statistics`, bytes of the workspaces of forward and backward, for any choice.
    py::tuple sizes() const {
        cuda::ChoiceBlock block = first_.block;
        block.table = block.choices = rows_.data();
        block.choice_count = static_cast<int32_t>(rows_.size());
        return py::make_tuple(first_.kept, first_.statistics, cuda::choice_block_forward_workspace(block),
                              cuda::choice_block_backward_workspace(block, element_of(first_.x)));
    }

    // rows: rows() on the device. choice: int32, one element, from 0 to the number of branches less one.
    void forward(py::handle x, py::handle rows, py::handle choice, py::handle y, py::handle kept, py::handle statistics,
                 py::handle workspace, py::handle counters, double momentum, double eps, bool tf32,
                 uintptr_t stream) const {
        ChoiceBlockReading reading = read(x, rows, choice, eps);
        reading.block.track = true, reading.block.momentum = static_cast<float>(momentum);
        place_output(reading, y);
        place_memory(reading, {kept, statistics, workspace, counters}, false);
        reading.call.run(stream, [&](void* stream) {
            return cuda::choice_block_forward(reading.block, element_of(reading.x), reading.product(tf32), stream);
        });
    }

    // With the running statistics, nothing kept but maps between convolutions.
    void evaluate(py::handle x, py::handle rows, py::handle choice, py::handle y, py::handle kept, py::handle workspace,
                  py::handle counters, double eps, bool tf32, uintptr_t stream) const {
        for (const cuda::Branch& branch : rows_)
            for (int i = 0; i < branch.main + branch.proj; ++i)
                if (!branch.layer[i].running_mean)
                    throw py::value_error("branches: expected running statistics of all layers");
        ChoiceBlockReading reading = read(x, rows, choice, eps);
        reading.block.training = reading.block.keep = false;
        place_output(reading, y);
        place_memory(reading, {kept, py::none(), workspace, counters}, false);
        reading.call.run(stream, [&](void* stream) {
            return cuda::choice_block_forward(reading.block, element_of(reading.x), reading.product(tf32), stream);
        });
    }

    void backward(py::handle dy, py::handle x, py::handle rows, py::handle choice, py::handle kept,
                  py::handle statistics, py::handle dx, py::handle workspace, py::handle counters, double eps,
                  bool tf32, uintptr_t stream) const {
        ChoiceBlockReading reading = read(x, rows, choice, eps);
        place_gradients_of_maps(reading, dy, dx);
        place_memory(reading, {kept, statistics, workspace, counters}, true);
        reading.call.run(stream, [&](void* stream) {
            return cuda::choice_block_backward(reading.block, element_of(reading.x), reading.product(tf32), stream);
        });
    }

  private:
    ChoiceBlockReading read(py::handle x, py::handle rows_object, py::handle choice_object, double eps) const {
        const auto branch = py::cast<py::tuple>(branches_[0]);
        const ChoiceBlockReading given =
            read_choice_block({x, branch[0], py::cast<int>(branch[1]), stride_, whole_}, true);
        check_shape(given.x, "x", {first_.x.shape[0], first_.x.shape[1], first_.x.shape[2], first_.x.shape[3]});
        check_same_dtype(given.x, "x", first_.x, "the table's x");
        ChoiceBlockReading reading = first_;
        reading.x = given.x;
        reading.call.reads(given.x, "x");
        cuda::ChoiceBlock& block = reading.block;
        block.x = given.block.x, block.x_pixel = given.block.x_pixel;
        const Tensor rows = read_tensor_of({Dtype::uint8}, rows_object, "rows");
        check_shape(rows, "rows", {static_cast<int64_t>(rows_.size() * sizeof(cuda::Branch))});
        check_contiguous(rows, "rows");
        const Tensor choice = read_tensor_of({Dtype::int32}, choice_object, "choice");
        check_shape(choice, "choice", {1});
        reading.call.reads(rows, "rows").reads(choice, "choice");
        block.table = static_cast<const cuda::Branch*>(rows.data);
        block.choice = choice.as<int32_t>();
        block.choices = rows_.data(), block.choice_count = static_cast<int32_t>(rows_.size());
        block.training = block.keep = true, block.eps = static_cast<float>(eps);
        return reading;
    }

    py::tuple branches_;  // keeps the tensors alive
    int stride_;
    bool whole_;
    ChoiceBlockReading first_;
    std::vector<cuda::Branch> rows_;
};

}  // namespace

void bind_cuda_choice_table(py::module_& module) {
    py::class_<ChoiceTable>(module, "ChoiceTable")
        .def(py::init<py::handle, py::tuple, int, bool>())
        .def("rows", &ChoiceTable::rows)
        .def("sizes", &ChoiceTable::sizes)
        .def("forward", &ChoiceTable::forward)
        .def("evaluate", &ChoiceTable::evaluate)
        .def("backward", &ChoiceTable::backward);
}

}  // namespace spos
