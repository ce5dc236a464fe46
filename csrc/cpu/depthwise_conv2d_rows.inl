// Forward and dgrad, one body for each vector type V; included in the per-instruction-set files.
namespace spos {
namespace {

constexpr int64_t rows_per_block = 8;

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
    const int64_t height = pass.source.height, weight_row = K * V::lanes;
    int64_t first, end, source_row, direction = 1, stride = 1;  // taps first, first + stride, ... < end
    if (R == Reach::up) {
        const int64_t shifted = row + pass.padding, odd = shifted & 1, half = shifted >> 1;  // source row = half - i
        const int64_t taps = (K - odd + 1) / 2;
        const int64_t low = larger(0, half - height + 1), high = smaller(taps, half + 1);
        first = odd + 2 * low, end = odd + 2 * high, source_row = half - low, direction = -1, stride = 2;
    } else {
        const int64_t top = (R == Reach::down ? 2 * row : row) - pass.padding;
        first = larger(0, -top), end = smaller(K, height - top), source_row = top + first;
    }
    return {larger(0, (end - first) / stride), image + source_row * pass.source.h, direction * pass.source.h,
            weight + first * weight_row, stride * weight_row};
}

// One tile: Width destination columns of one row, one vector of channels. Each source vector is loaded once for a tap
// row and meets up to K taps, whose weights are registers.
template <class V, int K, Reach R, int Width, int Odd, bool Edge>
SPOS_INLINE void rows_tile(const TapRows<typename V::Scalar>& taps, int64_t window, int64_t source_w, int64_t source_width,
                           typename V::Scalar* destination, int64_t destination_w, int64_t columns) {
    using T = typename V::Scalar;
    constexpr int window_size = window_columns<K, R, Width>(Odd);
    typename V::Value sum[Width];
    SPOS_UNROLL
    for (int t = 0; t < Width; ++t) sum[t] = V::zero();
    const T* source = taps.source + window * source_w;
    const T* weight = taps.weight;
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

// The rows [begin, end) of all images' rows, one vector of channels from `channel` on.
template <class V, int K, Reach R, int Width>
void rows_block(const RowsPass<typename V::Scalar>& pass, int64_t channel, const typename V::Scalar* weight, int64_t begin,
                int64_t end) {
    using T = typename V::Scalar;
    const Plane<const T> source = pass.source;
    const Plane<T> destination = pass.destination;
    const int64_t columns = smaller(Width, destination.width);
    for (int64_t flat = begin; flat < end; ++flat) {
        const int64_t n = flat / destination.height, row = flat % destination.height;
        const TapRows<T> taps = tap_rows<V, K, R>(pass, source.data + n * source.n + channel, weight, row);
        T* const to = destination.data + n * destination.n + row * destination.h + channel;
        for (int64_t next = 0; next < destination.width; next += Width) {
            // The last tile is moved back to end with the row: it repeats columns, with the same bits.
            const int64_t column = smaller(next, destination.width - columns);
            const int64_t window = window_start<K, R>(column, pass.padding);
            T* const tile = to + column * destination.w;
            const bool odd = R == Reach::up && ((column + pass.padding) & 1);
            const bool inside = window >= 0 && window + window_columns<K, R, Width>(0) <= source.width && columns == Width;
            if (odd && inside)
                rows_tile<V, K, R, Width, R == Reach::up, false>(taps, window, source.w, source.width, tile, destination.w, columns);
            else if (odd)
                rows_tile<V, K, R, Width, R == Reach::up, true>(taps, window, source.w, source.width, tile, destination.w, columns);
            else if (inside)
                rows_tile<V, K, R, Width, 0, false>(taps, window, source.w, source.width, tile, destination.w, columns);
            else
                rows_tile<V, K, R, Width, 0, true>(taps, window, source.w, source.width, tile, destination.w, columns);
        }
    }
}

template <class V>
using RowsBlock = void (*)(const RowsPass<typename V::Scalar>&, int64_t, const typename V::Scalar*, int64_t, int64_t);

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
    consider(8, rows_block<V, K, R, 8>);
    consider(4, rows_block<V, K, R, 4>);
    consider(2, rows_block<V, K, R, 2>);
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
    const int64_t weight_block = static_cast<int64_t>(pass.kernel) * pass.kernel * V::lanes;
    parallel_for(pass.batch * pass.destination.height, threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row += rows_per_block)
            for (int64_t b = 0; b < blocks; ++b)
                block(pass, smaller(b * V::lanes, pass.channels - V::lanes), pass.packed_weight + b * weight_block, row,
                      smaller(row + rows_per_block, end));
    });
}

}  // namespace
}  // namespace spos
