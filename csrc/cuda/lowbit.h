// Convolution of codes by packed codes on a GPU, exact in integers: what cpu/lowbit_conv2d.h says. A matrix product is
// the 1x1 convolution of one image, one row high, whose pixels are the rows.
//
//     S[p, n] = m * sum over taps and channels of (x[p, ...] - x_zero) * (weight[n, ...] - zero[n])       exact
//     y = relu(float(S) * multiplier[n] + bias[n] + residual)                    each step rounded to fp32
//     code = clamp(round(y / out_scale) + out_zero, 0, out_most)                 half to even
//
// with taps outside of the map giving nothing; m is 1, or 2 where zeros are odd multiples of 1/2 (DoReFa's are).
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/element.h"

#if defined(__CUDACC__)
#define ON_BOTH_SIDES __host__ __device__
#else
#define ON_BOTH_SIDES
#endif

namespace spos::cuda {

struct Extent {
    int height, width;
};

// Sizes of maps, and how pixels of the result lie on pixels of x.
struct LowbitMap {
    int batch, in_height, in_width, out_height, out_width;
    Extent kernel, stride, padding, dilation;

    ON_BOTH_SIDES int64_t in_pixels() const { return int64_t{batch} * in_height * in_width; }
    ON_BOTH_SIDES int64_t pixels() const { return int64_t{batch} * out_height * out_width; }
    ON_BOTH_SIDES int taps() const { return kernel.height * kernel.width; }
    // Is the window of a pixel that pixel?
    ON_BOTH_SIDES bool plain() const {
        return taps() == 1 && stride.height == 1 && stride.width == 1 && padding.height == 0 && padding.width == 0;
    }
    ON_BOTH_SIDES bool padded() const { return padding.height > 0 || padding.width > 0; }
};

struct LowbitX {
    const uint8_t* codes;  // [pixels, groups * inputs], pixels `stride` apart
    const void* floats;    // instead: quantized on the way, code = clamp(round(x / scale) + zero, 0, 2^bits - 1)
    Element element;
    int64_t stride;
    float scale;
    int bits, zero;
};

struct LowbitWeight {
    const uint8_t* packed;  // rows of (kernel row, kernel column, input), streams of bits (packing.py)
    int64_t row_bytes;
    int bits;
    int scale_groups;           // parts of a matrix product's k, each with its own sums, zero and multiplier
    const int32_t* sums;        // [scale_groups, groups * outputs]: of the codes
    const int32_t* twice_zero;  // [scale_groups, groups * outputs]
    const float* multiplier;    // [scale_groups, groups * outputs], null where the result is S
    bool doubled;               // m is 2
    bool centred;               // all zeros are 2^(bits - 1)
};

// What is made of S. Pointers are null where something is not wanted; all are rows of pixels, groups * outputs each.
struct LowbitResult {
    const float* bias;
    const void* residual;
    Element residual_element;
    const uint8_t* residual_codes;  // instead: residual_scale * (code - residual_zero)
    float residual_scale;
    int residual_zero;
    bool relu;
    int64_t* sums;
    void* y;
    Element y_element;
    uint8_t* codes;
    float out_scale;
    int out_zero, out_most;
};

// Preconditions, which the callers check: codes are below 2^bits; output sizes follow from the others; pixels of x and
// of the result are fewer than 2^31, so are groups * outputs and k * w_bits; scale_groups > 1 only where map.plain(),
// groups is 1 and k / scale_groups a multiple of 8; k * (2^x_bits - 1) * 2^(w_bits - 1) < 2^31.
struct LowbitConv2d {
    LowbitMap map;
    int groups, inputs, outputs;  // channels of one group
    LowbitX x;
    LowbitWeight weight;
    LowbitResult result;

    ON_BOTH_SIDES int64_t k() const { return int64_t{map.taps()} * inputs; }
    ON_BOTH_SIDES int64_t columns() const { return int64_t{groups} * outputs; }
};

// How products are computed.
enum class LowbitBody {
    s8,      // mma.sync of bytes, for every pair of widths
    s4,      // mma.sync of nibbles, up to 4 by 4 bits, on sm_80 to sm_89
    b1,      // mma.sync of bit planes, weights of 1 and 2 bits, on sm_80 to sm_90
    rows,    // dp4a, for matrix products of up to 4 rows
    direct,  // dp4a without tiles, for depthwise convolutions and groups of few channels
};

// How x gets to the tensor cores.
enum class LowbitForm {
    in_place,  // codes, as they are
    pixels,    // its pixels packed beforehand: 16, 32 or 128 codes to a chunk of 16 bytes
    windows,   // the same for whole windows (im2row), where a pixel's few channels would leave chunks empty
};

struct LowbitPlan {
    LowbitBody body;
    LowbitForm form;
    int tile;                 // rows and columns that a block computes: 64 or 128; of rows columns, of direct pixels
    int splits;               // blocks that share a tile's k
    int64_t input_bytes;      // of the workspace: x in its form
    int64_t workspace_bytes;  // 16-byte aligned, uninitialised
};

struct LowbitDevice {
    int capability;  // 80, 90 ...
    int multiprocessors;
};
LowbitDevice lowbit_device(int device);  // by its number

// Blocks that share a tile count on ints that are zero before and after; so many of them are enough.
constexpr int lowbit_counters = 1024;

bool lowbit_can(LowbitBody body, const LowbitConv2d& call, LowbitDevice device);

// What is chosen for a call; of `wanted`, body (-1), tile (0) and splits (0) may be open, the rest is not read.
struct LowbitWanted {
    int body = -1, tile = 0, splits = 0;
};
LowbitPlan lowbit_plan(const LowbitConv2d& call, LowbitDevice device, LowbitWanted wanted);

// Returns a cudaError_t, and leaves the work to `stream`.
int lowbit_conv2d(const LowbitConv2d& call, const LowbitPlan& plan, void* workspace, int* counters, void* stream);

}  // namespace spos::cuda

#undef ON_BOTH_SIDES
