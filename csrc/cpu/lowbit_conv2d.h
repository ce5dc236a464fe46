// Convolution of codes by packed codes, exact in integers: plain data, no allocation. A matrix product is the 1x1
// convolution of one image, one row high, whose pixels are the rows.
//
//     S[p, n] = m * sum over taps and channels of (x[p, ...] - x_zero) * (weight[n, ...] - zero[n])
//
// with taps outside of the map giving nothing; m is 1, or 2 where zeros are odd multiples of 1/2 (DoReFa's are). What
// is made of S is LowbitFinish's business (lowbit_body.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/lowbit_body.h"

namespace spos {

enum class LowbitMethod {
    dots,  // bytes, unpacked for each call
    bits,  // bit planes
    row,   // matrix products of a few rows: unpacked in registers
};

struct Pair {
    int height, width;
};

// Preconditions, which the callers check: codes are below 2^bits; the output sizes follow from the others; with
// groups > 1 or kernel sizes above 1, scale_groups is 1; k / scale_groups is a multiple of 8 where scale_groups > 1;
// row needs a 1x1 convolution without padding, stride and groups; k * (2^x_bits - 1) * 2^(w_bits - 1) <
// 2^31, with (2^w_bits - 1) for the last factor where the method is not dots.
struct LowbitSums {
    int64_t batch, in_height, in_width, out_height, out_width;
    int64_t groups, inputs, outputs;  // channels of one group
    Pair kernel, stride, padding, dilation;
    const uint8_t* codes;  // NHWC, pixels x_stride apart
    int64_t x_stride;
    int x_zero, x_bits;
    const uint8_t* weight;  // rows of (kernel row, kernel column, input), one after another
    int w_bits;
    int64_t scale_groups;       // of k, each with its own sums, zero and multiplier
    const int32_t* sums;        // [scale_groups, groups * outputs]: of the codes
    const int32_t* twice_zero;  // [scale_groups, groups * outputs]
    LowbitMethod method;

    int64_t k() const { return int64_t{kernel.height} * kernel.width * inputs; }
    int64_t pixels() const { return batch * out_height * out_width; }
};

// Real is float or double.
template <typename Real>
struct LowbitConv2d : LowbitSums {
    const Real* floats;  // instead of codes: quantized on the way, code = clamp(round(x / x_scale) + x_zero)
    Real x_scale;
    const Real* multiplier;     // [scale_groups, groups * outputs]
    LowbitFinish<Real> finish;  // the fields that the kernel cannot know: the others are made here
};

// Bytes of scratch, 64-byte aligned, uninitialised.
template <typename Real>
size_t lowbit_conv2d_workspace(Isa isa, const LowbitConv2d<Real>& call, int threads);

template <typename Real>
void lowbit_conv2d(Isa isa, const LowbitConv2d<Real>& call, void* workspace, int threads);

}  // namespace spos
