// The body of stem_conv2d.h for a vector type V of doubles, included by the per-instruction-set files.
//
// Work      pixels * outputs * kernel rows * taps multiply-adds, V::lanes an instruction.
// Method    A register tile of V::tile pixels x two vectors of outputs, over the whole window: two vectors of weights
//           meet one number of each pixel. A panel of weights, 16 outputs with AVX-512, stays in L1 for a row of
//           pixels.
#pragma once

#include "core/unroll.h"
#include "cpu/stem_conv2d_body.h"

namespace spos {
namespace {

constexpr int stem_vectors = 2;

template <class V, int Pixels>
inline void stem_tile(const StemRow& row, const double* a, int64_t panel, double* to) {
    using Value = typename V::Value;
    constexpr int64_t outputs = stem_vectors * V::lanes;
    const int64_t step = row.a_pixel;
    const double* weight = row.weight + panel * row.kernel_rows * row.taps * outputs;
    Value sum[Pixels][stem_vectors];
    SPOS_UNROLL
    for (int p = 0; p < Pixels; ++p) {
        SPOS_UNROLL
        for (int j = 0; j < stem_vectors; ++j) sum[p][j] = V::zero();
    }
    // Three pixels a pointer: an address is then base + {0, 1, 2} * step, which needs no register of its own.
    constexpr int pointers = (Pixels + 2) / 3;
    for (int64_t i = 0; i < row.kernel_rows; ++i) {
        const double* from[pointers];
        SPOS_UNROLL
        for (int g = 0; g < pointers; ++g) from[g] = a + i * row.a_row + 3 * g * step;
        for (int64_t tap = 0; tap < row.taps; ++tap) {
            Value w[stem_vectors];
            SPOS_UNROLL
            for (int j = 0; j < stem_vectors; ++j) w[j] = V::load(weight + j * V::lanes);
            weight += outputs;
            SPOS_UNROLL
            for (int p = 0; p < Pixels; ++p) {
                const Value x = V::broadcast(from[p / 3] + p % 3 * step + tap);
                SPOS_UNROLL
                for (int j = 0; j < stem_vectors; ++j) sum[p][j] = V::multiply_add(x, w[j], sum[p][j]);
            }
        }
    }
    to += panel * outputs;
    SPOS_UNROLL
    for (int j = 0; j < stem_vectors; ++j) {
        const Value scale = V::load(row.scale + panel * outputs + j * V::lanes);
        const Value bias = V::load(row.bias + panel * outputs + j * V::lanes);
        SPOS_UNROLL
        for (int p = 0; p < Pixels; ++p) {
            const Value y = V::add(V::multiply(sum[p][j], scale), bias);
            V::store(to + p * row.panels * outputs + j * V::lanes, row.relu ? V::relu(y) : y);
        }
    }
}

template <class V, int Pixels>
inline void stem_tiles(const StemRow& row, int64_t pixel, int64_t panel) {
    for (; pixel + Pixels <= row.pixels; pixel += Pixels)
        stem_tile<V, Pixels>(row, row.a + pixel * row.a_pixel, panel,
                             row.to + pixel * row.panels * stem_vectors * V::lanes);
    if constexpr (Pixels > 1) stem_tiles<V, Pixels / 2>(row, pixel, panel);
}

template <class V>
void stem_row(const StemRow& row) {
    for (int64_t panel = 0; panel < row.panels; ++panel) stem_tiles<V, V::tile>(row, 0, panel);
}

// NaN, once met, stays.
inline double stem_maximum(double a, double b) { return (b > a) | (b != b) ? b : a; }

inline void stem_pool(const StemPool& call) {
    for (int64_t column = 0; column < call.columns; ++column) {
        double* __restrict const y = call.y + column * call.outputs;
        const double* __restrict const middle = call.from + 2 * column * call.width;
        const double* __restrict const left = column ? middle - call.width : middle;
        const double* __restrict const right = 2 * column + 1 < call.pixels ? middle + call.width : middle;
        for (int64_t n = 0; n < call.outputs; ++n) {
            const double most = stem_maximum(stem_maximum(left[n], middle[n]), right[n]);
            y[n] = call.first ? most : stem_maximum(y[n], most);
        }
    }
}

template <class V>
StemBody make_stem_body() {
    return {stem_vectors * V::lanes, stem_row<V>, stem_pool};
}

}  // namespace
}  // namespace spos
