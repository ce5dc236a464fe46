// choice_block on a GPU: one branch, given by value. Sizes are told by choice_block_sizes.
#include "cuda/choice_block.h"

#include "bindings/cuda/bindings.h"
#include "bindings/cuda/choice_block_reading.h"

namespace spos {
namespace {

void forward(py::handle x, py::tuple layers, int main, int stride, bool whole, py::handle y, py::handle kept,
             py::handle statistics, py::handle workspace, py::handle counters, bool training, bool keep, bool track,
             double momentum, double eps, bool tf32, uintptr_t stream) {
    ChoiceBlockReading reading = read_choice_block({x, layers, main, stride, whole}, track);
    cuda::ChoiceBlock& block = reading.block;
    block.training = training, block.keep = keep || training, block.track = track && training;
    block.momentum = static_cast<float>(momentum), block.eps = static_cast<float>(eps);
    place_output(reading, y);
    place_memory(reading, {kept, statistics, workspace, counters}, false);
    reading.call.run(stream, [&](void* stream) {
        return cuda::choice_block_forward(block, element_of(reading.x), reading.product(tf32), stream);
    });
}

void backward(py::handle dy, py::handle x, py::tuple layers, int main, int stride, bool whole, py::handle kept,
              py::handle statistics, py::handle dx, py::tuple gradients, py::handle workspace, py::handle counters,
              bool training, double eps, bool tf32, uintptr_t stream) {
    ChoiceBlockReading reading = read_choice_block({x, layers, main, stride, whole}, false);
    cuda::ChoiceBlock& block = reading.block;
    block.training = training, block.keep = true, block.eps = static_cast<float>(eps);
    place_gradients_of_maps(reading, dy, dx);
    read_choice_block_gradients(reading, gradients);
    place_memory(reading, {kept, statistics, workspace, counters}, true);
    reading.call.run(stream, [&](void* stream) {
        return cuda::choice_block_backward(block, element_of(reading.x), reading.product(tf32), stream);
    });
}

// Elements of `kept` and `statistics`, bytes of the workspaces of forward and backward.
py::tuple sizes(py::handle x, py::tuple layers, int main, int stride, bool whole) {
    ChoiceBlockReading reading = read_choice_block({x, layers, main, stride, whole}, false);
    cuda::ChoiceBlock& block = reading.block;
    return py::make_tuple(reading.kept, reading.statistics, cuda::choice_block_forward_workspace(block),
                          cuda::choice_block_backward_workspace(block, element_of(reading.x)));
}

}  // namespace

void bind_cuda_choice_block(py::module_& module) {
    module.attr("CHOICE_BLOCK_COUNTERS") = cuda::choice_block_counters;
    module.def("choice_block_sizes", &sizes);
    module.def("choice_block_forward", &forward);
    module.def("choice_block_backward", &backward);
}

}  // namespace spos
