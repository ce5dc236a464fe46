// wgrad, one body for each vector type V; included in the per-instruction-set files after depthwise_conv2d_rows.inl.
namespace spos {
namespace {

// One tile: Width columns of one row of dy, in registers, against the rows of x that they meet.
template <class V, int K, Reach R, int Width, bool Edge>
SPOS_INLINE void wgrad_tile(const typename V::Scalar* x_row, int64_t x_h, int64_t x_w, int64_t x_width, int64_t window,
                            const typename V::Scalar* dy, int64_t dy_w, int64_t first_tap, int64_t end_tap,
                            typename V::Scalar* partial) {
    using T = typename V::Scalar;
    constexpr int window_size = window_columns<K, R, Width>(0);
    typename V::Value gradient[Width];
    SPOS_UNROLL
    for (int t = 0; t < Width; ++t) gradient[t] = V::load(dy + t * dy_w);
    const T* x = x_row + window * x_w;
    T* accumulator = partial + first_tap * K * V::lanes;
    for (int64_t kh = first_tap; kh < end_tap; ++kh) {
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

template <class V, int K, Reach R, int Width>
SPOS_INLINE void wgrad_tiles(const WgradPass<typename V::Scalar>& pass, const typename V::Scalar* x_row,
                             const typename V::Scalar* dy_row, int64_t first_tap, int64_t end_tap, int64_t& column,
                             typename V::Scalar* partial) {
    for (; column + Width <= pass.dy.width; column += Width) {
        const int64_t window = window_start<K, R>(column, pass.padding);
        const typename V::Scalar* const dy = dy_row + column * pass.dy.w;
        if (window >= 0 && window + window_columns<K, R, Width>(0) <= pass.x.width)
            wgrad_tile<V, K, R, Width, false>(x_row, pass.x.h, pass.x.w, pass.x.width, window, dy, pass.dy.w, first_tap,
                                              end_tap, partial);
        else
            wgrad_tile<V, K, R, Width, true>(x_row, pass.x.h, pass.x.w, pass.x.width, window, dy, pass.dy.w, first_tap,
                                             end_tap, partial);
    }
}

// The rows [begin, end) of all images' rows of dy, one vector of channels from `channel` on.
template <class V, int K, Reach R, int Width>
void wgrad_block(const WgradPass<typename V::Scalar>& pass, int64_t channel, int64_t begin, int64_t end,
                 typename V::Scalar* partial) {
    using T = typename V::Scalar;
    for (int64_t flat = begin; flat < end; ++flat) {
        const int64_t n = flat / pass.dy.height, row = flat % pass.dy.height;
        const int64_t top = (R == Reach::down ? 2 * row : row) - pass.padding;
        const int64_t first_tap = larger(0, -top), end_tap = smaller(K, pass.x.height - top);
        const T* const x_row = pass.x.data + n * pass.x.n + (top + first_tap) * pass.x.h + channel;
        const T* const dy_row = pass.dy.data + n * pass.dy.n + row * pass.dy.h + channel;
        int64_t column = 0;
        // No tile may repeat a column, so narrower ones end the row.
        wgrad_tiles<V, K, R, Width>(pass, x_row, dy_row, first_tap, end_tap, column, partial);
        if constexpr (Width > 8) wgrad_tiles<V, K, R, 8>(pass, x_row, dy_row, first_tap, end_tap, column, partial);
        if constexpr (Width > 4) wgrad_tiles<V, K, R, 4>(pass, x_row, dy_row, first_tap, end_tap, column, partial);
        if constexpr (Width > 2) wgrad_tiles<V, K, R, 2>(pass, x_row, dy_row, first_tap, end_tap, column, partial);
        if constexpr (Width > 1) wgrad_tiles<V, K, R, 1>(pass, x_row, dy_row, first_tap, end_tap, column, partial);
    }
}

template <class V>
using WgradBlock = void (*)(const WgradPass<typename V::Scalar>&, int64_t, int64_t, int64_t, typename V::Scalar*);

template <class V, int K, Reach R>
WgradBlock<V> choose_wgrad_block(int64_t width) {
    if constexpr (V::registers == 32) {
        if (width % 16 == 0) return wgrad_block<V, K, R, 16>;
        if (width % 14 == 0) return wgrad_block<V, K, R, 14>;
    }
    if (width % 8 == 7) return wgrad_block<V, K, R, 7>;
    return wgrad_block<V, K, R, 8>;
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
    const int64_t groups = (blocks + pass.blocks_task - 1) / pass.blocks_task;
    parallel_for(pass.parts * groups, threads, [&](int64_t begin_task, int64_t end_task) {
        for (int64_t task = begin_task; task < end_task; ++task) {
            const int64_t part = task / groups, group = task % groups;
            const int64_t first = group * pass.blocks_task, last = smaller(first + pass.blocks_task, blocks);
            const int64_t begin = rows * part / pass.parts, end = rows * (part + 1) / pass.parts;
            T* const partial = pass.partial + part * blocks * block_size;
            for (int64_t i = first * block_size; i < last * block_size; i += V::lanes) V::store(partial + i, V::zero());
            for (int64_t row = begin; row < end; row += rows_per_block)
                for (int64_t b = first; b < last; ++b)
                    block(pass, smaller(b * V::lanes, pass.channels - V::lanes), row, smaller(row + rows_per_block, end),
                          partial + b * block_size);
        }
    });
}

}  // namespace
}  // namespace spos
