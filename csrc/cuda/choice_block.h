// One path through a choice block of convolutions, each followed by batch normalisation, on a GPU.
//
// What a block computes, and what is kept for backward, says cpu/choice_block.h. Elements are fp32, fp16 or bf16; sums,
// statistics, normalisation and its parameters are fp32.
//
// Launches    Forward: one for each convolution (it normalises what it loads, and sums up the statistics of what it
//             stores), then one that normalises the ends of both chains into y and moves the running statistics: 4 for
//             a branch of three convolutions, 7 for one of six, 2 more at stride 2. Where nothing is kept,
//             a kernel does a pointwise, a depthwise and a pointwise convolution through shared memory, if they fit
//             there: 1 for a branch of three, 3 for one of six, 1 more at stride 2; otherwise the last convolutions
//             write y. Backward: one for the sums over y's gradient, then one for each convolution, with both of its
//             gradients.
// Choice      The branch is given by value, or in device memory: `table` has a branch for each choice, and each kernel
//             reads *choice. Then every call launches what the longest branch needs, and blocks without work exit at
//             once: one captured graph runs every choice.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/element.h"

namespace spos::cuda {

// A convolution and its batch normalisation. Depthwise: kernel 3, 5 or 7, weight [channels, kernel, kernel] dense.
// Pointwise: kernel 1, weight [outputs, inputs] with rows weight_stride apart.
struct ConvNorm {
    const void* weight;
    const float *gamma, *beta;          // [outputs], or null for 1 and 0
    float *running_mean, *running_var;  // [outputs]: read if not training, moved by forward if so; null: not tracked
    int64_t* count;                     // batches seen; null: not counted
    void* dweight;                      // backward writes these in full; null: not wanted. dweight is dense
    float *dgamma, *dbeta;
    int64_t kept, statistics;  // where its part of these begins, in elements
    int32_t kernel, stride, inputs, outputs, weight_stride;
    int32_t in_height, in_width, height, width;
};

// A branch: the layers of main, then those of proj. Padding is kernel / 2.
struct Branch {
    static constexpr int most_main = 6, most_proj = 2;
    int32_t main, proj;
    ConvNorm layer[most_main + most_proj];
};

struct ChoiceBlock {
    Branch branch;          // what runs where there is no table
    const Branch* table;    // on the device, a branch for each choice; or null
    const int32_t* choice;  // on the device
    const Branch* choices;  // the table's content, on the host: what launches are sized for
    int32_t choice_count;

    int32_t batch, channels, height, width;       // of x
    int32_t out_channels, out_height, out_width;  // of y, which is dense
    int64_t x_pixel, dy_pixel;                    // elements from one pixel to the next
    int32_t beside;                               // channels of y in front of main's: those that pass, or proj's
    bool passes;                                  // x's even channels pass, main has the odd ones
    bool training;
    bool keep;       // the last convolutions' outputs too: in training, and for backward
    bool track;      // move running statistics; only in training
    float momentum;  // share of the new value in them; negative: 1 / count
    float eps;
    const void* x;
    void* y;
    void* kept;         // the convolutions' outputs
    float* statistics;  // of each layer means, then biased variances; written in training, else read; null: the running
                        // ones
    const void* dy;
    void* dx;            // dense like x; null: not wanted
    void* workspace;     // of choice_block_workspace bytes, 16-byte aligned
    uint32_t* counters;  // choice_block_counters of them, zero before and after each call
};

constexpr int choice_block_counters = 1024;
constexpr int most_channels = 2048;  // of any layer: their coefficients are in shared memory

enum class Product { ffma, tf32 };  // how fp32 is multiplied

size_t choice_block_forward_workspace(const ChoiceBlock& block);
size_t choice_block_backward_workspace(const ChoiceBlock& block, Element element);

// Each returns a cudaError_t and leaves the work to `stream`. The same bits come out for the same sizes, whether the
// branch is given by value or by a choice.
int choice_block_forward(const ChoiceBlock& block, Element element, Product product, void* stream);
int choice_block_backward(const ChoiceBlock& block, Element element, Product product, void* stream);

}  // namespace spos::cuda
