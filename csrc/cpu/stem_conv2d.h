// Convolution of an image in double precision, with what follows a network's first convolution: plain data, no
// allocation.
//
//     sum = 0, then sum += x * weight for one (kernel row, kernel column, channel) after another, x 0 outside of the
//     map y = sum * scale[n] + bias[n], then max(., 0) if relu, then the maximum over windows if max_pool
//
// A product of two floats is exact in double precision, so that it makes no difference whether it is rounded before it
// is added; the sums, the product with the scale and the sum with the bias are rounded one by one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.h"

namespace spos {

// Preconditions, which the callers check: sizes of at least 1, batch of 0; out = (in + 2 * padding - kernel) / stride +
// 1 in both directions. Windows of the maximum are 3 x 3, 2 apart, with one row and column around the map.
struct StemConv2d {
    int64_t batch, channels, in_height, in_width, out_height, out_width, outputs;
    int64_t kernel_height, kernel_width, stride, padding;
    const float* x;
    int64_t x_n, x_c, x_h, x_w;  // strides in elements
    const float* weight;         // [outputs, channels, kernel_height, kernel_width]
    int64_t weight_n, weight_c, weight_h, weight_w;
    const double* scale;  // [outputs]
    const double* bias;   // [outputs]
    bool relu, max_pool;
    double* y;  // [batch, rows, columns, outputs]

    int64_t rows() const { return max_pool ? (out_height - 1) / 2 + 1 : out_height; }
    int64_t columns() const { return max_pool ? (out_width - 1) / 2 + 1 : out_width; }
};

// Bytes of scratch, 64-byte aligned, uninitialised.
size_t stem_conv2d_workspace(Isa isa, const StemConv2d& call, int threads);

void stem_conv2d(Isa isa, const StemConv2d& call, void* workspace, int threads);

}  // namespace spos
