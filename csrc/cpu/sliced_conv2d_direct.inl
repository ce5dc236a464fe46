// Sliced convolution of k x k windows without im2row: one body for every vector type V, included by sliced_conv2d.inl.
//
// Shapes    A band of the source [rows, pitch, channels], zero columns at its borders, in blocks of channels that lie
//           one after the other; a block's packed weight [(tap, channel), n]; destination pixels in place.
// Work      taps * channels * n multiply-adds a pixel. Taps that look above or below the map are left out. Those beside
//           it meet zeros, but for 3 x 3 windows on narrow maps, where they would be up to a tenth of all.
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

// `rows` runs of `length` elements. Short ones of whole vectors, the common case, are unrolled.
template <class V, int Vectors>
SPOS_INLINE void copy_vectors(const typename V::Scalar* from, int64_t from_stride, typename V::Scalar* to,
                              int64_t to_stride, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r, from += from_stride, to += to_stride) {
        SPOS_UNROLL
        for (int i = 0; i < Vectors; ++i) V::store(to + i * V::lanes, V::load(from + i * V::lanes));
    }
}

template <class V>
void copy_runs(const typename V::Scalar* from, int64_t from_stride, typename V::Scalar* to, int64_t to_stride,
               int64_t rows, int64_t length) {
    if (length == V::lanes) return copy_vectors<V, 1>(from, from_stride, to, to_stride, rows);
    if (length == 2 * V::lanes) return copy_vectors<V, 2>(from, from_stride, to, to_stride, rows);
    if (length == 3 * V::lanes) return copy_vectors<V, 3>(from, from_stride, to, to_stride, rows);
    if (length == 4 * V::lanes) return copy_vectors<V, 4>(from, from_stride, to, to_stride, rows);
    if (length == 6 * V::lanes) return copy_vectors<V, 6>(from, from_stride, to, to_stride, rows);
    for (int64_t r = 0; r < rows; ++r) copy_run<V>(to + r * to_stride, from + r * from_stride, length);
}

// Adds k elements of the windows of the pixels First .. Last - 1 to their sums.
template <class V, int First, int Last, int MR, int NV>
SPOS_INLINE void add_pixels(const typename V::Scalar* a, int64_t a_m, const typename V::Scalar* b, int64_t k,
                            typename V::Value (&sum)[MR][NV]) {
    using T = typename V::Scalar;
    using Value = typename V::Value;
    // Three pixels a pointer: see gemm.inl.
    constexpr int pointers = (MR + 2) / 3;
    const T* at[pointers];
    SPOS_UNROLL
    for (int i = 0; i < pointers; ++i) at[i] = a + 3 * i * a_m;
    for (int64_t index = 0; index < k; ++index, b += NV * V::lanes) {
        Value column[NV];
        SPOS_UNROLL
        for (int j = 0; j < NV; ++j) column[j] = V::load(b + j * V::lanes);
        SPOS_UNROLL
        for (int r = First; r < Last; ++r) {
            const Value value = V::broadcast(at[r / 3] + r % 3 * a_m);
            SPOS_UNROLL
            for (int j = 0; j < NV; ++j) sum[r][j] = V::multiply_add(value, column[j], sum[r][j]);
        }
        SPOS_UNROLL
        for (int i = 0; i < pointers; ++i) ++at[i];
    }
}

// Pixels of one row, from `a` on; `rows` rows of taps, whose part of the weight begins at b. Edges: the whole row, of
// windows of three taps, of which the first looks at the zeros in front of it and the last at those behind it.
template <class V, int MR, int NV, bool Full, bool Edges>
void direct_tile(const DirectRows<typename V::Scalar>& call, const typename V::Scalar* a, int64_t rows,
                 const typename V::Scalar* b, typename V::Scalar* c, const typename V::Scalar* bias, int count) {
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
        if constexpr (Edges) {
            const int64_t k = call.k / 3, size = k * NV * V::lanes;
            add_pixels<V, 1, MR>(a, a_m, b, k, sum);
            add_pixels<V, 0, MR>(a + k, a_m, b + size, k, sum);
            add_pixels<V, 0, MR - 1>(a + 2 * k, a_m, b + 2 * size, k, sum);
        } else {
            add_pixels<V, 0, MR>(a, a_m, b, call.k, sum);
        }
        b += call.k * NV * V::lanes;
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
template <class V, int NV, bool Full, bool Edges, int... Index>
constexpr std::array<DirectTile<V>, sizeof...(Index)> direct_tiles(std::integer_sequence<int, Index...>) {
    return {direct_tile<V, Index + 1, NV, Full, Edges>...};
}

// All rows for one panel of columns.
template <class V, int NV, bool Full>
void direct_panel(const DirectRows<typename V::Scalar>& call, int64_t column, int count) {
    using T = typename V::Scalar;
    constexpr int most = direct_pixels<V>(NV);
    constexpr std::make_integer_sequence<int, most> sizes{};
    static constexpr auto inner = direct_tiles<V, NV, Full, false>(sizes),
                          whole = direct_tiles<V, NV, Full, true>(sizes);
    const int64_t taps = call.rows.taps, segments = (call.count + most - 1) / most;
    const auto& tiles = call.edges && segments == 1 ? whole : inner;
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
    // Columns of the band that lie in the map.
    const int64_t first = std::clamp<int64_t>(-call.start, 0, call.pitch);
    const int64_t end = std::clamp<int64_t>(call.width - call.start, first, call.pitch);
    for (int64_t row = 0; row < call.rows; ++row) {
        const T* const from = call.source + row * call.source_row + (call.start + first) * call.source_pixel;
        T* plane = call.to;
        for (int64_t c = 0; c < call.channels; c += call.block, plane += call.block * call.pixels) {
            const int64_t count = std::min(call.block, call.channels - c), size = call.padded ? call.block : count;
            T* const to = plane + (call.first + row * call.pitch) * size;
            zero_run<V>(to, first * size);
            zero_run<V>(to + end * size, (call.pitch - end) * size);
            if (count < size) zero_run<V>(to + first * size, (end - first) * size);
            if (call.source_pixel == count && count == size)
                copy_run<V>(to + first * size, from, (end - first) * size);
            else
                copy_runs<V>(from + c, call.source_pixel, to + first * size, size, end - first, count);
        }
    }
}

// Adds the products of one pixel for the taps First .. Last - 1.
template <class V, int First, int Last, int MR, int NV>
SPOS_INLINE void add_taps(const typename V::Scalar* a, const typename V::Scalar* b, typename V::Value (&sum)[MR][NV]) {
    using Value = typename V::Value;
    Value column[NV];
    SPOS_UNROLL
    for (int j = First; j < Last; ++j) column[j] = V::load(b + j * V::lanes);
    SPOS_UNROLL
    for (int r = 0; r < MR; ++r) {
        const Value value = V::broadcast(a + r);
        SPOS_UNROLL
        for (int j = First; j < Last; ++j) sum[r][j] = V::multiply_add(value, column[j], sum[r][j]);
    }
}

// Some output channels, from sums on; NV taps of one row, from those of x on; the destination rows [first, end). Edges:
// all taps are three, the first of which looks at the zeros in front of a row and the last at those behind it.
template <class V, int MR, int NV, bool Edges = false>
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
            const T* a = call.dy + image * call.dy_image + (row - call.first) * call.dy_row;
            const T* b = x + image * call.x_image + (row - first) * call.rows.step * call.x_row;
            int64_t pixels = call.count;
            if constexpr (Edges) {
                add_taps<V, 1, NV>(a, b, sum);
                pixels -= 2;
                a += call.dy_pixel;
                b += call.x_pixel;
            }
            for (int64_t pixel = 0; pixel < pixels; ++pixel, a += call.dy_pixel, b += call.x_pixel)
                add_taps<V, 0, NV>(a, b, sum);
            if constexpr (Edges) add_taps<V, 0, NV - 1>(a, b, sum);
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
                if (call.edges)
                    wgrad_tile<V, MR, wgrad_vectors, true>(call, from, first, end, to);
                else
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
