// One path through a choice block of convolutions, each followed by batch normalisation, on the CPU: forward and
// backward.
//
// Tensors are NHWC with adjacent channels. A branch is a chain of depthwise (k x k, then batch normalisation) and
// pointwise (1 x 1, then batch normalisation and ReLU) convolutions. Stride 1: x's even channels pass, the odd ones are
// the input of `main`, y = [passed, main]. Stride 2: y = [proj(x), main(x)]. (ShuffleNet V2, arXiv 1807.11164, as in
// arXiv 1904.00420.)
//
// Kept for backward are the convolutions' outputs before batch normalisation (z) and its statistics; everything in
// between is recomputed on load.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.h"

namespace spos {

// A convolution and its batch normalisation. depthwise: weight [channels, 1, kernel, kernel] dense; pointwise: weight
// [outputs, inputs] with rows weight_stride apart.
template <typename T>
struct ConvNorm {
    bool depthwise;
    int kernel;
    int64_t inputs, outputs;
    const T* weight;
    int64_t weight_stride;
    const T* gamma;  // [outputs], or null for 1
    const T* beta;   // [outputs], or null for 0
    T* z;            // [pixels, outputs] dense: written by forward, read by backward
    T* mean;         // [outputs] each: of the batch, written by forward, if training; else given
    T* variance;     // biased
    T* dweight;      // backward writes these in full, dense; null if not wanted
    T* dgamma;
    T* dbeta;
};

// Preconditions, which the callers check: the chains fit together and to the shapes; kernels are 3, 5 or 7 with padding
// kernel / 2; the first depthwise convolution of a chain has the block's stride, all else stride 1; proj_count is 2 at
// stride 2 unless whole, else 0; both chains end in a pointwise convolution; batch >= 1, all sizes >= 1.
template <typename T>
struct ChoiceBlock {
    static constexpr int most_main = 6, most_proj = 2;
    int64_t batch, in_height, in_width, out_height, out_width, inputs;
    int stride;
    bool whole;  // instead: y = main(x), with nothing beside it
    bool training;
    double eps;
    const T* x;
    int64_t x_stride;  // of pixels, in elements; rows and images follow each other
    ConvNorm<T> main[most_main];
    ConvNorm<T> proj[most_proj];
    int main_count, proj_count;

    bool halves() const { return stride == 1 && !whole; }
    int64_t passed() const { return whole ? 0 : stride == 1 ? inputs / 2 : inputs; }  // y's channels beside main's
};

// Bytes of scratch, 64-byte aligned, uninitialised.
template <typename T>
size_t choice_block_forward_workspace(Isa isa, const ChoiceBlock<T>& block, int threads);
template <typename T>
size_t choice_block_backward_workspace(Isa isa, const ChoiceBlock<T>& block, T* dx, int threads);

// y [batch, out_height, out_width, outputs] dense. Outputs are overwritten in full and never read. Same bits for every
// thread count. T is float with any supported Isa, or double with Isa::portable.
template <typename T>
void choice_block_forward(Isa isa, const ChoiceBlock<T>& block, T* y, void* workspace, int threads);

// The same where nothing is kept for backward and the statistics are given (training is false, z is null): y alone.
template <typename T>
size_t choice_block_inference_workspace(Isa isa, const ChoiceBlock<T>& block, int threads);
template <typename T>
void choice_block_inference(Isa isa, const ChoiceBlock<T>& block, T* y, void* workspace, int threads);

// Whether there is enough for every thread to do: otherwise choice_block_forward is faster.
template <typename T>
bool choice_block_inference_fits(const ChoiceBlock<T>& block);

// dy with pixels dy_stride apart; dx dense like x, or null if not wanted.
template <typename T>
void choice_block_backward(Isa isa, const ChoiceBlock<T>& block, const T* dy, int64_t dy_stride, T* dx, void* workspace,
                           int threads);

}  // namespace spos
