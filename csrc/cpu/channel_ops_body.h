// Elementwise passes and reductions over rows of channels, the parts of batch normalisation and of the channel shuffle:
// plain data shared by the instruction sets' bodies and their callers, no code.
//
// A matrix is `rows` pixels of `channels` adjacent elements, its pixels `stride` elements apart; per-channel vectors
// are dense. Everything runs on the calling thread, meant for pieces that stay in L1 or L2.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "cpu/gemm_body.h"

namespace spos {

template <typename T>
struct Pixels {
    T* data;
    int64_t stride;
};

// Batch normalisation as it is applied: scale * x + shift, with the mean that scale and shift were made from.
template <typename T>
struct Affine {
    const T* scale;
    const T* shift;
    const T* mean;
};

// The gradient of batch normalisation's input: alpha * g + beta * (z - mean) + gamma. beta and gamma are zero where the
// statistics were not those of the batch.
template <typename T>
struct NormGradient {
    const T* alpha;
    const T* beta;
    const T* gamma;
};

// Sums of a pointwise convolution's weight gradient over parts, and what the gradient of the batch normalisation in
// front of it needs. With G = sum over parts of partial, [outputs, inputs]:
//     dweight = scale * G + shift * dz_sum       scale, shift [inputs] (null: 1 and 0), dz_sum [outputs]
//     product = sum over outputs of weight * G;  total = sum over outputs of weight * dz_sum       (null: not wanted)
template <typename T>
struct CombineWgrad {
    const T* partial;
    int64_t parts, part_stride, outputs, inputs;
    const T* weight;
    int64_t weight_stride;
    const T* scale;
    const T* shift;
    const T* dz_sum;
    T* dweight;  // rows of `inputs`, dense
    T* product;
    T* total;
    int64_t first_input, end_input;  // the columns to do, whole vectors but for the last
};

template <typename T>
struct ChannelOps {
    int lanes;
    // to = x * scale + shift, then max(., 0) if relu.
    void (*affine)(Pixels<const T> x, Pixels<T> to, int64_t rows, int64_t channels, Affine<T>, bool relu);
    // Adds the rows to the sums; `start` clears them and makes the mean of the rows the shift.
    void (*sums)(Pixels<const T> x, int64_t rows, int64_t channels, ColumnSums<T>, bool start);
    // g = dy where scale * z + shift > 0, else 0, written to `to` unless that is null (may be dy);
    // sum += g, product += g * (z - mean).
    void (*relu_backward)(Pixels<const T> dy, Pixels<const T> z, Pixels<T> to, int64_t rows, int64_t channels,
                          Affine<T>, T* sum, T* product);
    // to = alpha * g + beta * (z - mean) + gamma; masked: g as in relu_backward, from dy. sum += to unless it is null.
    void (*norm_backward)(Pixels<const T> dy, Pixels<const T> z, Pixels<T> to, int64_t rows, int64_t channels,
                          Affine<T>, NormGradient<T>, bool masked, T* sum);
    // x [rows, 2 * channels] -> even and odd channels; either may be null.
    void (*split)(Pixels<const T> x, Pixels<T> even, Pixels<T> odd, int64_t rows, int64_t channels);
    // The inverse of split.
    void (*join)(Pixels<const T> even, Pixels<const T> odd, Pixels<T> x, int64_t rows, int64_t channels);
    void (*add)(Pixels<const T> x, Pixels<T> to, int64_t rows, int64_t channels);  // to += x
    // to[n] = sum over k of matrix[n, k] * vector[k].
    void (*matrix_vector)(Pixels<const T> matrix, const T* vector, T* to, int64_t rows, int64_t channels);
    void (*combine_wgrad)(const CombineWgrad<T>&);
};

ChannelOps<float> channel_ops_avx512();
ChannelOps<float> channel_ops_avx2();

// The body for `isa`; double has a portable one only.
template <typename T>
ChannelOps<T> channel_ops(Isa isa);

}  // namespace spos
