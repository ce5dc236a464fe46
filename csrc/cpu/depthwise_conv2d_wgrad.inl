// Depthwise convolution, wgrad: one body for every vector type V, included by the per-instruction-set files.
//
// Shapes    x [N, H, W, C], dy [N, H', W', C], C unit stride -> partial [part][block][kh][kw][lane]; the dispatcher
// sums
//           the parts and writes dw [C, 1, k, k].
// Work      k*k multiply-adds an element of dy; x and dy cross memory once: 4 * (N*H*W*C + N*H'*W'*C) bytes in fp32.
// Method    The tile of depthwise_conv2d_rows.inl turned round: up to 16 columns of dy stay in registers, and for one
//           tap row the K sums are registers while the source columns pass by, each loaded once for up to K taps. Sums
//           rest in L1 between tiles: 2K loads and stores for Width * K multiply-adds.
// Order     A part is a fixed range of rows, so the sums do not depend on the thread count. No column may be added
//           twice, so a row that is no multiple of the tile ends in narrower tiles.
// Tile      Each sum is a chain of Width multiply-adds; k chains (x 4 cycles) do not fill 2 units for k = 3, but the k
// tap
//           rows are independent and out-of-order execution overlaps them.
#pragma once

#include "cpu/depthwise_conv2d_rows.inl"

namespace spos {
namespace {

// The tap rows [first_tap, end_tap) of one dy row, the x row that first_tap meets, and the channel blocks to do.
template <typename T>
struct WgradRow {
    const T* x;
    const T* dy;
    // The next row of dy, and the row of x that it is the first to meet, which are asked for in time: the hardware does
    // not follow the strided reads.
    const T* dy_to_come;
    const T* x_to_come;
    int64_t first_tap, end_tap;
    int64_t first_block, end_block;
};

template <class V, int K, Reach R, int Width, bool Edge>
SPOS_INLINE void wgrad_tile(const WgradPass<typename V::Scalar>& pass, const WgradRow<typename V::Scalar>& row,
                            int64_t column, int64_t window, int64_t channel, typename V::Scalar* partial) {
    constexpr int window_size = window_columns<K, R, Width>(0);
    const int64_t x_w = pass.x.w, x_h = pass.x.h, dy_w = pass.dy.w, x_width = pass.x.width;
    const typename V::Scalar* const dy = row.dy + column * dy_w + channel;
    typename V::Value gradient[Width];
    SPOS_UNROLL
    for (int t = 0; t < Width; ++t) gradient[t] = V::load(dy + t * dy_w);
    const typename V::Scalar* x = row.x + window * x_w + channel;
    typename V::Scalar* accumulator = partial + row.first_tap * K * V::lanes;
    for (int64_t kh = row.first_tap; kh < row.end_tap; ++kh) {
        typename V::Value sum[K];
        SPOS_UNROLL
        for (int kw = 0; kw < K; ++kw) sum[kw] = V::load(accumulator + kw * V::lanes);
        SPOS_UNROLL
        for (int j = 0; j < window_size; ++j) {
            if (Edge && static_cast<uint64_t>(window + j) >= static_cast<uint64_t>(x_width)) continue;
            const typename V::Value value = V::load(x + j * x_w);
            SPOS_UNROLL
            for (int kw = 0; kw < K; ++kw) {
                const int t = reached_column<K, R, Width>(j, kw, 0);
                if (t >= 0) sum[kw] = V::multiply_add(value, gradient[t], sum[kw]);
            }
        }
        SPOS_UNROLL
        for (int kw = 0; kw < K; ++kw) V::store(accumulator + kw * V::lanes, sum[kw]);
        x += x_h;
        accumulator += K * V::lanes;
    }
}

// As many whole tiles as the row has left from `column` on.
template <class V, int K, Reach R, int Width>
SPOS_INLINE void wgrad_tiles(const WgradPass<typename V::Scalar>& pass, const WgradRow<typename V::Scalar>& row,
                             int64_t& column, typename V::Scalar* partial) {
    for (; column + Width <= pass.dy.width; column += Width) {
        const int64_t window = window_start<K, R>(column, pass.padding);
        const bool inside = window >= 0 && window + window_columns<K, R, Width>(0) <= pass.x.width;
        for (int64_t b = row.first_block; b < row.end_block; ++b) {
            const int64_t channel = smaller(b * V::lanes, pass.channels - V::lanes);
            typename V::Scalar* const sums = partial + b * K * K * V::lanes;
            if (inside)
                wgrad_tile<V, K, R, Width, false>(pass, row, column, window, channel, sums);
            else
                wgrad_tile<V, K, R, Width, true>(pass, row, column, window, channel, sums);
            const typename V::Scalar* const next = row.dy_to_come + channel;
            for (int64_t t = column; t < column + Width; ++t) __builtin_prefetch(next + t * pass.dy.w);
            ask_for_source<R>(row.x_to_come + channel, pass.x.w, pass.x.width, column, Width);
        }
    }
}

template <class V, int K, Reach R, int Width>
void wgrad_block(const WgradPass<typename V::Scalar>& pass, const RowsRange& range, typename V::Scalar* partial) {
    for (int64_t flat = range.first_row; flat < range.end_row; ++flat) {
        const int64_t n = flat / pass.dy.height, h = flat % pass.dy.height;
        const int64_t top = (R == Reach::down ? 2 * h : h) - pass.padding;
        const int64_t first_tap = larger(0, -top), end_tap = smaller(K, pass.x.height - top);
        const WgradRow<typename V::Scalar> row{
            pass.x.data + n * pass.x.n + (top + first_tap) * pass.x.h,
            pass.dy.data + n * pass.dy.n + h * pass.dy.h,
            pass.dy.data + n * pass.dy.n + smaller(h + 1, pass.dy.height - 1) * pass.dy.h,
            pass.x.data + n * pass.x.n + row_to_come<K, R>(h, pass.padding, pass.x.height) * pass.x.h,
            first_tap,
            end_tap,
            range.first_block,
            range.end_block};
        int64_t column = 0;
        wgrad_tiles<V, K, R, Width>(pass, row, column, partial);
        if constexpr (Width > 8) wgrad_tiles<V, K, R, 8>(pass, row, column, partial);
        if constexpr (Width > 4) wgrad_tiles<V, K, R, 4>(pass, row, column, partial);
        if constexpr (Width > 2) wgrad_tiles<V, K, R, 2>(pass, row, column, partial);
        if constexpr (Width > 1) wgrad_tiles<V, K, R, 1>(pass, row, column, partial);
    }
}

template <class V>
using WgradBlock = void (*)(const WgradPass<typename V::Scalar>&, const RowsRange&, typename V::Scalar*);

template <class V, int K, Reach R>
WgradBlock<V> choose_wgrad_block([[maybe_unused]] int64_t width) {
    if constexpr (V::lanes == 1) {
        return wgrad_block<V, K, R, 4>;
    } else {
        if constexpr (V::registers == 32) {
            if (width % 16 == 0) return wgrad_block<V, K, R, 16>;
            if (width % 14 == 0) return wgrad_block<V, K, R, 14>;
        }
        return width % 8 == 7 ? wgrad_block<V, K, R, 7> : wgrad_block<V, K, R, 8>;
    }
}

template <class V, int K>
WgradBlock<V> choose_wgrad_block(int stride, int64_t width) {
    return stride == 1 ? choose_wgrad_block<V, K, Reach::same>(width) : choose_wgrad_block<V, K, Reach::down>(width);
}

template <class V>
void wgrad_pass(const WgradPass<typename V::Scalar>& pass, int threads) {
    using T = typename V::Scalar;
    const WgradBlock<V> block = pass.kernel == 3   ? choose_wgrad_block<V, 3>(pass.stride, pass.dy.width)
                                : pass.kernel == 5 ? choose_wgrad_block<V, 5>(pass.stride, pass.dy.width)
                                                   : choose_wgrad_block<V, 7>(pass.stride, pass.dy.width);
    const int64_t blocks = (pass.channels + V::lanes - 1) / V::lanes;
    const int64_t block_size = static_cast<int64_t>(pass.kernel) * pass.kernel * V::lanes;
    const int64_t rows = pass.batch * pass.dy.height;
    parallel_for(pass.parts * pass.groups, threads, [&](int64_t begin_task, int64_t end_task) {
        for (int64_t task = begin_task; task < end_task; ++task) {
            const int64_t part = task / pass.groups, group = task % pass.groups;
            const int64_t first = blocks * group / pass.groups, last = blocks * (group + 1) / pass.groups;
            const int64_t begin = rows * part / pass.parts, end = rows * (part + 1) / pass.parts;
            T* const partial = pass.partial + part * blocks * block_size;
            if (!pass.accumulate)
                for (int64_t i = first * block_size; i < last * block_size; i += V::lanes)
                    V::store(partial + i, V::zero());
            block(pass, {begin, end, first, last}, partial);
        }
    });
}

}  // namespace
}  // namespace spos
