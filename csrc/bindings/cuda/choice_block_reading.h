// choice_block on a GPU: how the tensors of a block become what the kernels take. Everything is allocated by the
// caller.
#pragma once

#include "bindings/cuda/call.h"
#include "cuda/choice_block.h"

namespace spos {

// What forward and backward are given alike: the input, of each layer (weight, gamma, beta, running_mean, running_var,
// count) with None for what is missing, how many of the layers are main's, and the block's kind.
struct ChoiceBlockArguments {
    py::handle x;
    py::tuple layers;
    int main, stride;
    bool whole;
};

struct ChoiceBlockReading {
    cuda::ChoiceBlock block{};
    Tensor x{};
    CudaCall call;
    int64_t kept = 0, statistics = 0;  // elements

    cuda::Product product(bool tf32) const { return tf32 ? cuda::Product::tf32 : cuda::Product::ffma; }
};

// tracks: the running statistics will be moved.
ChoiceBlockReading read_choice_block(const ChoiceBlockArguments& arguments, bool tracks);

// gradients: of each layer (dweight, dgamma, dbeta), None for those not wanted.
void read_choice_block_gradients(ChoiceBlockReading& reading, const py::tuple& gradients);

void place_output(ChoiceBlockReading& reading, py::handle y);
// dx may be None.
void place_gradients_of_maps(ChoiceBlockReading& reading, py::handle dy, py::handle dx);

struct ChoiceBlockMemory {
    py::handle kept, statistics, workspace, counters;
};
// statistics may be None where all layers have running ones.
void place_memory(ChoiceBlockReading& reading, const ChoiceBlockMemory& memory, bool backward);

}  // namespace spos
