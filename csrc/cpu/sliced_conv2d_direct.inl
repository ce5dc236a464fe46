// Sliced convolution of k x k windows without im2row: one body for every vector type V, included by sliced_conv2d.inl.
//
// Shapes    A band of the source [rows, pitch, channels], zero columns at its borders, in blocks of channels that lie
//           one after the other; a block's packed weight [(tap, channel), n]; destination pixels in place.
// Work      taps * channels * n multiply-adds a pixel. Taps that look above or below the map are left out; those beside
//           it meet zeros: 2 / (3 * width) of a 3 x 3 window's.
// Method    Direct convolution as in Georganas et al., "Anatomy of High-Performance Deep Learning Convolutions on SIMD
//           Architectures" (2018): the register tile is pixels of one row times vectors of channels, and all taps of a
//           block of channels are added up in it. The window's taps of one row are adjacent in the band, so each row
//           of taps is one loop over (tap, channel).
// Blocks    The weight of a block of channels for one panel stays in L1 and every pixel of the band passes by it: the
//           lines of the band that a tile meets are adjacent, and each is used up.
// wgrad     The tile is output channels times the taps of one row for one vector of input channels; the sum runs over
//           pixels. A new line of x meets all taps of its row, and both operands are read from front to back.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "cpu/gemm.inl"
#include "cpu/sliced_conv2d_body.h"

namespace spos {
namespace {

constexpr int direct_vectors = 2, wgrad_vectors = 3;

template <class V>
constexpr int direct_pixels(int vectors) {
    return V::registers == 32 ? 14 : vectors == 1 ? 12 : 6;
}

template <class V>
constexpr int wgrad_rows = V::registers == 32 ? 8 : 4;

template <class V>
SPOS_INLINE void copy_run(typename V::Scalar* to, const typename V::Scalar* from, int64_t count) {
    int64_t i = 0;
    for (; i + V::lanes <= count; i += V::lanes) V::store(to + i, V::load(from + i));
    const int rest = static_cast<int>(count - i);
    if (rest) V::store_first(to + i, V::load_first(from + i, rest), rest);
}

template <class V>
SPOS_INLINE void zero_run(typename V::Scalar* to, int64_t count) {
    int64_t i = 0;
    for (; i + V::lanes <= count; i += V::lanes) V::store(to + i, V::zero());
    const int rest = static_cast<int>(count - i);
    if (rest) V::store_first(to + i, V::zero(), rest);
}

// Pixels of one row, from `a` on; `rows` rows of taps, whose part of the weight begins at b.
template <class V, int MR, int NV, bool Full>
void direct_tile(const DirectRows<typename V::Scalar>& call, const typename V::Scalar* a, int64_t rows,
                 const typename V::Scalar* b, typename V::Scalar* c, const typename V::Scalar* bias, int count) {
    using T = typename V::Scalar;
    using Value = typename V::Value;
    const int64_t a_m = call.band_pixel, c_m = call.c_pixel;
    Value sum[MR][NV];
    SPOS_UNROLL
    for (int r = 0; r < MR; ++r) {
        SPOS_UNROLL
        for (int j = 0; j < NV; ++j)
            sum[r][j] = call.accumulate ? load_columns<V, Full>(c + r * c_m + j * V::lanes, count) : V::zero();
    }
    for (int64_t row = 0; row < rows; ++row, a += call.band_row) {
        // Three pixels a pointer: see gemm.inl.
        constexpr int pointers = (MR + 2) / 3;
        const T* at[pointers];
        SPOS_UNROLL
        for (int i = 0; i < pointers; ++i) at[i] = a + 3 * i * a_m;
        for (int64_t k = 0; k < call.k; ++k, b += NV * V::lanes) {
            Value column[NV];
            SPOS_UNROLL
            for (int j = 0; j < NV; ++j) column[j] = V::load(b + j * V::lanes);
            SPOS_UNROLL
            for (int r = 0; r < MR; ++r) {
                const Value value = V::broadcast(at[r / 3] + r % 3 * a_m);
                SPOS_UNROLL
                for (int j = 0; j < NV; ++j) sum[r][j] = V::multiply_add(value, column[j], sum[r][j]);
            }
            SPOS_UNROLL
            for (int i = 0; i < pointers; ++i) ++at[i];
        }
    }
    if (bias) {
        SPOS_UNROLL
        for (int j = 0; j < NV; ++j) {
            const Value value = load_columns<V, Full>(bias + j * V::lanes, count);
            SPOS_UNROLL
            for (int r = 0; r < MR; ++r) sum[r][j] = V::add(sum[r][j], value);
        }
    }
    SPOS_UNROLL
    for (int r = 0; r < MR; ++r) {
        SPOS_UNROLL
        for (int j = 0; j < NV; ++j) store_columns<V, Full>(c + r * c_m + j * V::lanes, sum[r][j], count);
    }
}

template <class V>
using DirectTile = void (*)(const DirectRows<typename V::Scalar>&, const typename V::Scalar*, int64_t,
                            const typename V::Scalar*, typename V::Scalar*, const typename V::Scalar*, int);

// The tile of i + 1 pixels at index i.
template <class V, int NV, bool Full, int... Index>
constexpr std::array<DirectTile<V>, sizeof...(Index)> direct_tiles(std::integer_sequence<int, Index...>) {
    return {direct_tile<V, Index + 1, NV, Full>...};
}

// All rows for one panel of columns.
template <class V, int NV, bool Full>
void direct_panel(const DirectRows<typename V::Scalar>& call, int64_t column, int count) {
    using T = typename V::Scalar;
    constexpr int most = direct_pixels<V>(NV);
    static constexpr auto tiles = direct_tiles<V, NV, Full>(std::make_integer_sequence<int, most>{});
    const int64_t taps = call.rows.taps, segments = (call.count + most - 1) / most;
    const T* const packed = call.packed + column * taps * call.k;
    const T* const bias = call.bias ? call.bias + column : nullptr;
    for (int64_t row = call.first; row < call.end; ++row) {
        const int64_t top = row * call.rows.step + call.rows.start;
        const int64_t first = std::min(std::max<int64_t>(-top, 0), taps);
        const int64_t end = std::max(std::min(call.height - top, taps), first);
        const T* const a = call.band + (top + first - call.band_first) * call.band_row;
        T* const c = call.c + (row - call.first) * call.c_row + column;
        for (int64_t segment = 0; segment < segments; ++segment) {
            const int64_t pixel = call.count * segment / segments;
            const int64_t pixels = call.count * (segment + 1) / segments - pixel;
            tiles[pixels - 1](call, a + pixel * call.band_pixel, end - first, packed + first * call.k * NV * V::lanes,
                              c + pixel * call.c_pixel, bias, count);
        }
    }
}

template <class V>
void direct_rows(const DirectRows<typename V::Scalar>& call) {
    for_panels<V>(call.n, [&](int64_t column, int vectors, int count) {
        if (count != V::lanes) return direct_panel<V, 1, false>(call, column, count);
        if (vectors == direct_vectors) return direct_panel<V, direct_vectors, true>(call, column, count);
        direct_panel<V, 1, true>(call, column, count);
    });
}

template <class V>
void direct_fill(const DirectFill<typename V::Scalar>& call) {
    using T = typename V::Scalar;
    for (int64_t row = 0; row < call.rows; ++row) {
        for (int64_t column = 0; column < call.pitch; ++column) {
            const int64_t at = column + call.start;
            const bool inside = static_cast<uint64_t>(at) < static_cast<uint64_t>(call.width);
            const T* const from = call.source + row * call.source_row + (inside ? at * call.source_pixel : 0);
            T* plane = call.to;
            for (int64_t c = 0; c < call.channels; c += call.block, plane += call.block * call.pixels) {
                const int64_t count = std::min(call.block, call.channels - c), size = call.padded ? call.block : count;
                T* const to = plane + (call.first + row * call.pitch + column) * size;
                if (!inside) {
                    zero_run<V>(to, size);
                    continue;
                }
                copy_run<V>(to, from + c, count);
                if (count < size) zero_run<V>(to + count, size - count);
            }
        }
    }
}

// Some output channels, from sums on; NV taps of one row, from those of x on; the destination rows [first, end).
template <class V, int MR, int NV>
void wgrad_tile(const DirectWgrad<typename V::Scalar>& call, const typename V::Scalar* x, int64_t first, int64_t end,
                typename V::Scalar* sums) {
    using T = typename V::Scalar;
    using Value = typename V::Value;
    Value sum[MR][NV];
    SPOS_UNROLL
    for (int r = 0; r < MR; ++r) {
        SPOS_UNROLL
        for (int j = 0; j < NV; ++j)
            sum[r][j] = call.accumulate ? V::load(sums + r * call.sums_row + j * call.sums_tap) : V::zero();
    }
    for (int64_t image = 0; image < call.images; ++image) {
        for (int64_t row = first; row < end; ++row) {
            const T* a = call.dy + ((image * (call.end - call.first) + row - call.first) * call.count) * MR;
            const T* b = x + image * call.x_image + (row - first) * call.rows.step * call.x_row;
            for (int64_t pixel = 0; pixel < call.count; ++pixel, a += MR, b += call.x_pixel) {
                Value column[NV];
                SPOS_UNROLL
                for (int j = 0; j < NV; ++j) column[j] = V::load(b + j * V::lanes);
                SPOS_UNROLL
                for (int r = 0; r < MR; ++r) {
                    const Value value = V::broadcast(a + r);
                    SPOS_UNROLL
                    for (int j = 0; j < NV; ++j) sum[r][j] = V::multiply_add(value, column[j], sum[r][j]);
                }
            }
        }
    }
    SPOS_UNROLL
    for (int r = 0; r < MR; ++r) {
        SPOS_UNROLL
        for (int j = 0; j < NV; ++j) V::store(sums + r * call.sums_row + j * call.sums_tap, sum[r][j]);
    }
}

template <class V, int MR>
void wgrad_taps(const DirectWgrad<typename V::Scalar>& call) {
    using T = typename V::Scalar;
    const Window &rows = call.rows, &columns = call.columns;
    for (int tap = 0; tap < rows.taps; ++tap) {
        // The destination rows whose tap lies inside the map.
        int64_t first = call.first, end = call.end;
        while (first < end && first * rows.step + rows.start + tap < 0) ++first;
        while (first < end && (end - 1) * rows.step + rows.start + tap >= call.height) --end;
        const T* const x = call.x + (first * rows.step + rows.start + tap - call.x_first) * call.x_row;
        T* const sums = call.sums + tap * columns.taps * call.sums_tap;
        for (int w = 0; w < columns.taps;) {
            const T* const from = x + w * V::lanes;
            T* const to = sums + w * call.sums_tap;
            const int rest = columns.taps - w;
            if (rest == 1) {
                wgrad_tile<V, MR, 1>(call, from, first, end, to);
            } else if (rest == 2 || rest == 4) {
                wgrad_tile<V, MR, 2>(call, from, first, end, to);
                ++w;
            } else {
                wgrad_tile<V, MR, wgrad_vectors>(call, from, first, end, to);
                w += 2;
            }
            ++w;
        }
    }
}

template <class V, int MR = wgrad_rows<V>>
void direct_wgrad(const DirectWgrad<typename V::Scalar>& call) {
    if constexpr (MR > 1) {
        if (call.outputs < MR) return direct_wgrad<V, MR - 1>(call);
    }
    wgrad_taps<V, MR>(call);
}

}  // namespace
}  // namespace spos
