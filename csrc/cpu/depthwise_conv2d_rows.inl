// Depthwise convolution, forward and dgrad: one body for every vector type V, included by the per-instruction-set
// files.
//
// Shapes    source [N, H, W, C] -> destination [N, H', W', C], C unit stride; weight packed [block][kh][kw][lane].
// Work      k*k multiply-adds an output (fewer at the border); each tensor crosses memory once: 4 * (N*H*W*C +
// N*H'*W'*C)
//           bytes in fp32. k = 3 is bound by memory on anything that leaves L2, k = 7 by the multiply-add units.
// Method    Direct convolution with a register tile, as in the depthwise kernels of oneDNN and in Zhang, Franchetti and
//           Low, "High Performance Zero-Memory Overhead Direct Convolutions" (2018). dgrad at stride 1 is the forward
//           pass of dy with the taps turned round. dgrad at stride 2 keeps the same loop: a source column then reaches
//           every second destination column, and only tap rows of the row's parity meet it, so nothing is multiplied
//           by the zeros of an upsampled dy.
// Tile      One row x up to 16 columns x one vector. For one tap row, K weights stay in registers and every source
//           vector is loaded once and meets up to K taps: (Width + 2K - 1) loads for Width * K multiply-adds, far from
//           the load ports' limit; 16 sums + 7 weights + 1 source fit AVX-512's 32 registers, 8 + 7 + 1 AVX2's 16. At
//           least 8 sums are needed to hide 4 cycles of latency on 2 units; narrower maps rely on out-of-order overlap
//           of their independent tiles. Rows are not tiled: a tap row outside the source is simply not visited, and
//           rows that follow each other find those they share in L1 or L2.
// Order     Rows, then tiles, then the vectors of channels of a tile: whole pixels while their page is at hand. One
//           vector of all rows first was 10 to 25 % slower from memory. A tile's loads and stores are a pixel apart,
//           a stream that hardware prefetchers do not follow, so each asks for its lines of the next row: of the
//           destination, and of the source's row that comes into reach then (from memory: 1.4 to 1.7 times as fast).
// Border    Columns outside the source are skipped by a test per source column, only in tiles that touch the border.
#pragma once

#include "core/parallel.h"
#include "core/unroll.h"
#include "cpu/depthwise_conv2d_body.h"

namespace spos {
namespace {

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Which destination column of a tile the source column j of its window reaches through tap column kw, or -1.
// For Reach::up, `odd` is the parity of (first destination column + padding).
template <int K, Reach R, int Width>
constexpr int reached_column(int j, int kw, int odd) {
    int column = -1;
    if (R == Reach::same) column = j - kw;
    if (R == Reach::down) column = (j - kw) % 2 == 0 && j >= kw ? (j - kw) / 2 : -1;
    if (R == Reach::up) column = 2 * j + odd - K + 1 + kw;
    return column >= 0 && column < Width ? column : -1;
}

// Source columns in the window of a tile.
template <int K, Reach R, int Width>
constexpr int window_columns(int odd) {
    if (R == Reach::same) return Width + K - 1;
    if (R == Reach::down) return 2 * (Width - 1) + K;
    return (Width + K - 2 - odd) / 2 + 1;
}

// The first source column of the window of the tile that starts at destination column `column`.
template <int K, Reach R>
constexpr int64_t window_start(int64_t column, int64_t padding) {
    if (R == Reach::same) return column - padding;
    if (R == Reach::down) return 2 * column - padding;
    const int64_t shifted = column + padding;
    return (shifted - K + 1 + (shifted & 1)) / 2;
}

// The tap rows that fall inside the source for one destination row.
template <typename T>
struct TapRows {
    int64_t count;
    const T* source;  // the first tap row's source row, column 0
    int64_t source_step;
    const T* weight;
    int64_t weight_step;
};

template <class V, int K, Reach R>
TapRows<typename V::Scalar> tap_rows(const RowsPass<typename V::Scalar>& pass, const typename V::Scalar* image,
                                     const typename V::Scalar* weight, int64_t row) {
    const int64_t height = pass.source.height, source_h = pass.source.h, weight_row = K * V::lanes;
    if (R == Reach::up) {
        // Source row half - i meets tap row odd + 2 * i.
        const int64_t shifted = row + pass.padding, odd = shifted & 1, half = shifted / 2;
        const int64_t first = larger(0, half - height + 1), end = smaller((K - odd + 1) / 2, half + 1);
        if (first >= end) return {0, image, 0, weight, 0};
        return {end - first, image + (half - first) * source_h, -source_h, weight + (odd + 2 * first) * weight_row,
                2 * weight_row};
    }
    const int64_t top = (R == Reach::down ? 2 * row : row) - pass.padding;
    const int64_t first = larger(0, -top), end = smaller(K, height - top);
    if (first >= end) return {0, image, 0, weight, 0};
    return {end - first, image + (top + first) * source_h, source_h, weight + first * weight_row, weight_row};
}

// One tile of the destination. Odd: see reached_column. Edge: the window may leave the source, and only `columns` of
// the tile's columns exist.
template <class V, int K, Reach R, int Width, int Odd, bool Edge>
SPOS_INLINE void rows_tile(const TapRows<typename V::Scalar>& taps, int64_t window, int64_t source_w,
                           int64_t source_width, typename V::Scalar* destination, int64_t destination_w,
                           int64_t columns) {
    constexpr int window_size = window_columns<K, R, Width>(Odd);
    typename V::Value sum[Width];
    SPOS_UNROLL
    for (int t = 0; t < Width; ++t) sum[t] = V::zero();
    const typename V::Scalar* source = taps.source + window * source_w;
    const typename V::Scalar* weight = taps.weight;
    for (int64_t i = 0; i < taps.count; ++i) {
        typename V::Value w[K];
        SPOS_UNROLL
        for (int kw = 0; kw < K; ++kw) w[kw] = V::load(weight + kw * V::lanes);
        SPOS_UNROLL
        for (int j = 0; j < window_size; ++j) {
            if (Edge && static_cast<uint64_t>(window + j) >= static_cast<uint64_t>(source_width)) continue;
            const typename V::Value value = V::load(source + j * source_w);
            SPOS_UNROLL
            for (int kw = 0; kw < K; ++kw) {
                const int t = reached_column<K, R, Width>(j, kw, Odd);
                if (t >= 0) sum[t] = V::multiply_add(value, w[kw], sum[t]);
            }
        }
        source += taps.source_step;
        weight += taps.weight_step;
    }
    SPOS_UNROLL
    for (int t = 0; t < Width; ++t)
        if (!Edge || t < columns) V::store(destination + t * destination_w, sum[t]);
}

// A stretch of rows, counted through all images, and of channel blocks.
struct RowsRange {
    int64_t first_row, end_row, first_block, end_block;
};

// Asks for the pixels that a tile of destination columns starts from, in a row of the source.
template <Reach R, typename T>
SPOS_INLINE void ask_for_source(const T* row, int64_t w, int64_t width, int64_t column, int64_t columns) {
    const int64_t first = R == Reach::down ? 2 * column : R == Reach::up ? column / 2 : column;
    const int64_t count = R == Reach::down ? 2 * columns : R == Reach::up ? columns / 2 : columns;
    for (int64_t i = first; i < smaller(first + count, width); ++i) __builtin_prefetch(row + i * w);
}

// The source row that the destination row after `row` is the first to reach.
template <int K, Reach R>
SPOS_INLINE int64_t row_to_come(int64_t row, int64_t padding, int64_t height) {
    const int64_t next = row + 1;
    const int64_t last = R == Reach::same   ? next - padding + K - 1
                         : R == Reach::down ? 2 * next - padding + K - 1
                                            : (next + padding) / 2;
    return smaller(larger(last, 0), height - 1);
}

template <class V, int K, Reach R, int Width>
void rows_block(const RowsPass<typename V::Scalar>& pass, const RowsRange& range) {
    using T = typename V::Scalar;
    const Plane<const T> source = pass.source;
    const Plane<T> destination = pass.destination;
    const int64_t columns = smaller(Width, destination.width);
    constexpr int can_be_odd = R == Reach::up;
    for (int64_t flat = range.first_row; flat < range.end_row; ++flat) {
        const int64_t n = flat / destination.height, row = flat % destination.height;
        const TapRows<T> row_taps = tap_rows<V, K, R>(pass, source.data + n * source.n, pass.packed_weight, row);
        T* const to = destination.data + n * destination.n + row * destination.h;
        const int64_t to_next_row = row + 1 < destination.height ? destination.h : destination.n - row * destination.h;
        const int64_t ahead = flat + 1 < range.end_row ? to_next_row : 0;
        const T* const to_come =
            source.data + n * source.n + row_to_come<K, R>(row, pass.padding, source.height) * source.h;
        for (int64_t next = 0; next < destination.width; next += Width) {
            // The last tile is moved back to end with the row: it repeats columns, with the same bits.
            const int64_t column = smaller(next, destination.width - columns);
            const int64_t window = window_start<K, R>(column, pass.padding);
            const bool odd = can_be_odd && ((column + pass.padding) & 1);
            const bool inside =
                window >= 0 && window + window_columns<K, R, Width>(0) <= source.width && columns == Width;
            for (int64_t b = range.first_block; b < range.end_block; ++b) {
                const int64_t channel = smaller(b * V::lanes, pass.channels - V::lanes);
                T* const tile = to + column * destination.w + channel;
                TapRows<T> taps = row_taps;
                taps.source += channel;
                taps.weight += b * K * K * V::lanes;
                if (odd && inside)
                    rows_tile<V, K, R, Width, can_be_odd, false>(taps, window, source.w, source.width, tile,
                                                                 destination.w, columns);
                else if (odd)
                    rows_tile<V, K, R, Width, can_be_odd, true>(taps, window, source.w, source.width, tile,
                                                                destination.w, columns);
                else if (inside)
                    rows_tile<V, K, R, Width, 0, false>(taps, window, source.w, source.width, tile, destination.w,
                                                        columns);
                else
                    rows_tile<V, K, R, Width, 0, true>(taps, window, source.w, source.width, tile, destination.w,
                                                       columns);
                for (int64_t t = 0; t < columns; ++t) __builtin_prefetch(tile + ahead + t * destination.w, 1);
                ask_for_source<R>(to_come + channel, source.w, source.width, column, columns);
            }
        }
    }
}

template <class V>
using RowsBlock = void (*)(const RowsPass<typename V::Scalar>&, const RowsRange&);

template <class V, int K, Reach R>
RowsBlock<V> choose_rows_block(int64_t width) {
    RowsBlock<V> best = nullptr;
    int64_t best_cost = 0;
    // Columns computed; per tile and tap row also the weights and the overlap of the windows.
    const auto consider = [&](int64_t tile, RowsBlock<V> block) {
        const int64_t cost = (width + tile - 1) / tile * (tile * K + 2 * K + 8);
        if (best && cost >= best_cost) return;
        best = block;
        best_cost = cost;
    };
    if constexpr (V::registers == 32) {
        consider(16, rows_block<V, K, R, 16>);
        consider(14, rows_block<V, K, R, 14>);
    }
    if constexpr (V::lanes > 1) consider(8, rows_block<V, K, R, 8>);
    consider(4, rows_block<V, K, R, 4>);
    if constexpr (V::lanes > 1) consider(2, rows_block<V, K, R, 2>);
    return best;
}

template <class V, int K>
RowsBlock<V> choose_rows_block(Reach reach, int64_t width) {
    if (reach == Reach::same) return choose_rows_block<V, K, Reach::same>(width);
    if (reach == Reach::down) return choose_rows_block<V, K, Reach::down>(width);
    return choose_rows_block<V, K, Reach::up>(width);
}

template <class V>
void rows_pass(const RowsPass<typename V::Scalar>& pass, int threads) {
    const int64_t width = pass.destination.width;
    const RowsBlock<V> block = pass.kernel == 3   ? choose_rows_block<V, 3>(pass.reach, width)
                               : pass.kernel == 5 ? choose_rows_block<V, 5>(pass.reach, width)
                                                  : choose_rows_block<V, 7>(pass.reach, width);
    const int64_t blocks = (pass.channels + V::lanes - 1) / V::lanes;
    parallel_for(pass.batch * pass.destination.height, threads,
                 [&](int64_t begin, int64_t end) { block(pass, {begin, end, 0, blocks}); });
}

}  // namespace
}  // namespace spos
