// Sliced convolution, rearranging memory for the matrix products: one body for every vector type V, included by the
// per-instruction-set files.
//
// gather    im2row. Each element of a map is copied once a tap and then met by as many multiply-adds as the other side
//           has channels: 5 / n of the time. Also what pads a band, with windows of one tap.
// pack      A weight in torch's layout [o, c, kh, kw] has its taps together. Forward, where the panels' columns are o,
// a
//           row of it is turned in squares of registers like any matrix, and the turned rows are dealt out by tap.
//           dgrad, where the columns are c, turns a vector of channels with their taps. In channels_last layout
//           [o, kh, kw, c] the one is a transposition a tap, the other a copy.
// scatter   The way back, for the gradient.
#pragma once

#include "cpu/gemm.inl"
#include "cpu/sliced_conv2d_body.h"
#include "cpu/sliced_conv2d_direct.inl"

namespace spos {
namespace {

// Columns [first, end) of one row of the destination and one row of taps, from a row of the source.
template <class V>
void gather_row(const Gather<typename V::Scalar>& call, const typename V::Scalar* source, int64_t first, int64_t end,
                typename V::Scalar* to) {
    const Window& window = call.columns;
    const int64_t channels = call.channels, source_w = call.source.w, width = call.source.width;
    const auto border = [&](int64_t column) {
        const int64_t left = column * window.step + window.start;
        for (int tap = 0; tap < window.taps; ++tap, to += channels) {
            if (static_cast<uint64_t>(left + tap) < static_cast<uint64_t>(width))
                copy_run<V>(to, source + (left + tap) * source_w, channels);
            else
                zero_run<V>(to, channels);
        }
        to += call.to_stride - window.taps * channels;
    };
    const auto is_inside = [&](int64_t column) {
        const int64_t left = column * window.step + window.start;
        return left >= 0 && left + window.taps <= width;
    };
    int64_t column = first, last = end;
    for (; column < end && !is_inside(column); ++column) border(column);
    while (last > column && !is_inside(last - 1)) --last;
    if (column < last) {
        const typename V::Scalar* const from = source + (column * window.step + window.start) * source_w;
        const int64_t stride = window.step * source_w;
        if (source_w == channels) {
            copy_runs<V>(from, stride, to, call.to_stride, last - column, window.taps * channels);
        } else {
            for (int tap = 0; tap < window.taps; ++tap)
                copy_runs<V>(from + tap * source_w, stride, to + tap * channels, call.to_stride, last - column,
                             channels);
        }
        to += (last - column) * call.to_stride;
    }
    for (column = last > column ? last : column; column < end; ++column) border(column);
}

template <class V>
void gather(const Gather<typename V::Scalar>& call) {
    using T = typename V::Scalar;
    const Map<const T>& source = call.source;
    const int64_t width = call.columns.count, row_size = call.columns.taps * call.channels;
    T* to = call.to;
    for (int64_t at = call.first; at < call.end;) {
        const int64_t column = at % width, row = at / width % call.rows.count, n = at / width / call.rows.count;
        const int64_t count = call.end - at < width - column ? call.end - at : width - column;
        const int64_t top = row * call.rows.step + call.rows.start;
        for (int tap = 0; tap < call.rows.taps; ++tap) {
            T* const rows = to + tap * row_size;
            if (static_cast<uint64_t>(top + tap) < static_cast<uint64_t>(source.height))
                gather_row<V>(call, source.data + n * source.n + (top + tap) * source.h, column, column + count, rows);
            else
                for (int64_t r = 0; r < count; ++r) zero_run<V>(rows + r * call.to_stride, row_size);
        }
        to += count * call.to_stride;
        at += count;
    }
}

// The weight's elements c * taps + tap of a row are adjacent, in that order (with one tap: the c are).
template <typename T>
bool has_adjacent_taps(const PackWeight<T>& call) {
    if (call.stride_c != call.taps) return false;
    for (int tap = 0; tap < call.taps; ++tap)
        if (call.offset[tap] != tap) return false;
    return true;
}

// Where a vector of columns of one panel goes: tap and c at place[tap] + c * width.
template <typename T>
struct PackedColumn {
    T* place[most_taps];
    int64_t width;
};

// One vector of columns, all of which exist, of a weight with adjacent taps.
template <class V>
void pack_turned(const PackWeight<typename V::Scalar>& call, int64_t column,
                 const PackedColumn<typename V::Scalar>& to) {
    const typename V::Scalar* const from = call.weight + column * call.stride_n;
    const int64_t length = call.channels * call.taps;
    int64_t c = 0, i = 0;
    int tap = 0;
    const auto next = [&] {
        if (++tap == call.taps) {
            tap = 0;
            ++c;
        }
    };
    for (; i + V::lanes <= length; i += V::lanes) {
        typename V::Value rows[V::lanes];
        SPOS_UNROLL
        for (int j = 0; j < V::lanes; ++j) rows[j] = V::load(from + j * call.stride_n + i);
        transpose<V>(rows);
        SPOS_UNROLL
        for (int j = 0; j < V::lanes; ++j) {
            V::store(to.place[tap] + c * to.width, rows[j]);
            next();
        }
    }
    for (; i < length; ++i, next())
        for (int lane = 0; lane < V::lanes; ++lane) to.place[tap][c * to.width + lane] = from[lane * call.stride_n + i];
}

// The weight's elements n * taps + tap are adjacent: with a vector of them transposed, each tap's are. The taps of a
// call may be some of those.
template <class V>
bool has_adjacent_columns(const PackWeight<typename V::Scalar>& call) {
    if (call.stride_n > V::lanes || call.stride_n < 2) return false;
    for (int tap = 0; tap < call.taps; ++tap)
        if (call.offset[tap] < 0 || call.offset[tap] >= call.stride_n) return false;
    return true;
}

// One vector of columns, all of which exist, of a weight with adjacent columns.
template <class V>
void pack_dealt(const PackWeight<typename V::Scalar>& call, int64_t column,
                const PackedColumn<typename V::Scalar>& to) {
    const int taps = static_cast<int>(call.stride_n);
    for (int64_t c = 0; c < call.channels; ++c) {
        const typename V::Scalar* const from = call.weight + column * call.stride_n + c * call.stride_c;
        typename V::Value rows[V::lanes];
        SPOS_UNROLL
        for (int j = 0; j < V::lanes; ++j) rows[j] = V::load_first(from + j * taps, taps);
        transpose<V>(rows);
        typename V::Scalar turned[V::lanes * V::lanes];
        SPOS_UNROLL
        for (int j = 0; j < V::lanes; ++j) V::store(turned + j * V::lanes, rows[j]);
        for (int tap = 0; tap < call.taps; ++tap)
            V::store(to.place[tap] + c * to.width, V::load(turned + call.offset[tap] * V::lanes));
    }
}

template <class V>
void pack_picked(const PackWeight<typename V::Scalar>& call, int64_t column, int count,
                 const PackedColumn<typename V::Scalar>& to) {
    using T = typename V::Scalar;
    for (int64_t c = 0; c < call.channels; ++c) {
        const T* const from = call.weight + column * call.stride_n + c * call.stride_c;
        for (int tap = 0; tap < call.taps; ++tap) {
            T* const at = to.place[tap] + c * to.width;
            const T* const element = from + call.offset[tap];
            if (call.stride_n == 1) {
                V::store(at, count == V::lanes ? V::load(element) : V::load_first(element, count));
                continue;
            }
            for (int lane = 0; lane < V::lanes; ++lane) at[lane] = lane < count ? element[lane * call.stride_n] : T(0);
        }
    }
}

template <class V>
void pack_weight(const PackWeight<typename V::Scalar>& call) {
    const int64_t depth = call.together * call.channels;
    const bool turn = has_adjacent_taps(call), deal = has_adjacent_columns<V>(call);
    for_panels<V>(call.n, [&](int64_t column, int vectors, int count) {
        PackedColumn<typename V::Scalar> to;
        to.width = vectors * V::lanes;
        for (int64_t j = 0; j < to.width; j += V::lanes) {
            for (int tap = 0; tap < call.taps; ++tap)
                to.place[tap] = call.packed + tap / call.together * call.matrix_size + column * depth +
                                tap % call.together * call.channels * to.width + j;
            if (turn && count == V::lanes)
                pack_turned<V>(call, column + j, to);
            else if (deal && count == V::lanes)
                pack_dealt<V>(call, column + j, to);
            else
                pack_picked<V>(call, column + j, count, to);
        }
    });
}

// The sums of one vector of channels of one tap, over all parts.
template <class V>
SPOS_INLINE typename V::Value sum_of_parts(const ScatterWeight<typename V::Scalar>& call,
                                           const typename V::Scalar* from, int count) {
    typename V::Value sum = V::load_first(from, count);
    for (int64_t part = 1; part < call.parts; ++part) {
        from += call.part_stride;
        sum = V::add(sum, V::load_first(from, count));
    }
    return sum;
}

// All taps of one vector of channels, which lie channel after channel: a transposition.
template <class V>
void scatter_dealt(const ScatterWeight<typename V::Scalar>& call, const typename V::Scalar* from, int count,
                   typename V::Scalar* to) {
    typename V::Value rows[V::lanes];
    SPOS_UNROLL
    for (int tap = 0; tap < V::lanes; ++tap)
        rows[tap] = tap < call.taps ? sum_of_parts<V>(call, from + tap * call.channel_stride, count) : V::zero();
    transpose<V>(rows);
    typename V::Scalar turned[V::lanes * V::lanes];
    SPOS_UNROLL
    for (int j = 0; j < V::lanes; ++j) V::store(turned + j * V::lanes, rows[j]);
    for (int j = 0; j < count; ++j) {
        typename V::Scalar* const at = to + j * call.stride_c;
        typename V::Value gradient = V::load(turned + j * V::lanes);
        if (call.accumulate) gradient = V::add(gradient, V::load_first(at, call.taps));
        // A whole vector is stored faster, and what it writes too much the next ones overwrite.
        if (!call.accumulate && (count - j) * call.taps >= V::lanes)
            V::store(at, gradient);
        else
            V::store_first(at, gradient, call.taps);
    }
}

template <class V>
void scatter_weight(const ScatterWeight<typename V::Scalar>& call) {
    using T = typename V::Scalar;
    bool deal = call.stride_c == call.taps && call.taps > 1 && call.taps <= V::lanes;
    for (int tap = 0; tap < call.taps; ++tap) deal = deal && call.offset[tap] == tap;
    for (int64_t o = call.first_row; o < call.end_row; ++o) {
        const T* const row = call.partial + o * call.taps * call.channel_stride;
        T* const to = call.dweight + o * call.stride_o;
        for (int64_t c = 0; c < call.channels; c += V::lanes) {
            const int count = static_cast<int>(call.channels - c < V::lanes ? call.channels - c : V::lanes);
            if (deal) {
                scatter_dealt<V>(call, row + c, count, to + c * call.stride_c);
                continue;
            }
            for (int tap = 0; tap < call.taps; ++tap) {
                typename V::Value sum = sum_of_parts<V>(call, row + tap * call.channel_stride + c, count);
                T* const at = to + call.offset[tap] + c * call.stride_c;
                if (call.stride_c == 1) {
                    if (call.accumulate) sum = V::add(sum, V::load_first(at, count));
                    V::store_first(at, sum, count);
                    continue;
                }
                T element[V::lanes];
                V::store(element, sum);
                for (int lane = 0; lane < count; ++lane) {
                    T& gradient = at[lane * call.stride_c];
                    gradient = call.accumulate ? gradient + element[lane] : element[lane];
                }
            }
        }
    }
}

template <class V>
SlicedConv2dBody<typename V::Scalar> make_sliced_conv2d_body() {
    return {gather<V>,      copy_runs<V>,   pack_weight<V>,  scatter_weight<V>,
            direct_fill<V>, direct_rows<V>, direct_wgrad<V>, wgrad_rows<V>};
}

}  // namespace
}  // namespace spos
