// Sliced convolution, rearranging memory for the matrix products: one body for every vector type V, included by the
// per-instruction-set files.
//
// gather    im2row. Each element of a map is copied once a tap and then met by as many multiply-adds as the other side
//           has channels: a sixteenth of an instruction against n / lanes of them.
// pack      A weight in torch's layout [o, c, kh, kw] has its taps together. Forward, where the panels' columns are o,
// a
//           row of it is turned in squares of registers like any matrix, and the turned rows are dealt out by tap.
//           dgrad, where the columns are c, picks every (kh * kw)-th element. In channels_last layout [o, kh, kw, c]
//           the one is a transposition a tap, the other a copy.
// scatter   The way back, for the gradient.
#pragma once

#include "cpu/gemm.inl"
#include "cpu/sliced_conv2d_body.h"

namespace spos {
namespace {

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

template <class V>
void gather(const Gather<typename V::Scalar>& call) {
    using T = typename V::Scalar;
    const Map<const T>& source = call.source;
    const int64_t channels = call.channels, row_size = call.columns.taps * channels;
    int64_t column = call.first % call.columns.count, flat = call.first / call.columns.count;
    int64_t row = flat % call.rows.count, n = flat / call.rows.count;
    T* to = call.to;
    for (int64_t r = call.first; r < call.end; ++r, to += call.to_stride) {
        const int64_t top = row * call.rows.step + call.rows.start;
        const int64_t left = column * call.columns.step + call.columns.start;
        const bool inside = left >= 0 && left + call.columns.taps <= source.width;
        for (int th = 0; th < call.rows.taps; ++th) {
            T* const at = to + th * row_size;
            if (static_cast<uint64_t>(top + th) >= static_cast<uint64_t>(source.height)) {
                zero_run<V>(at, row_size);
                continue;
            }
            const T* const from = source.data + n * source.n + (top + th) * source.h + left * source.w;
            if (inside && source.w == channels) {
                copy_run<V>(at, from, row_size);
                continue;
            }
            for (int tw = 0; tw < call.columns.taps; ++tw) {
                if (static_cast<uint64_t>(left + tw) < static_cast<uint64_t>(source.width))
                    copy_run<V>(at + tw * channels, from + tw * source.w, channels);
                else
                    zero_run<V>(at + tw * channels, channels);
            }
        }
        if (++column < call.columns.count) continue;
        column = 0;
        if (++row < call.rows.count) continue;
        row = 0;
        ++n;
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

// One vector of columns, all of which exist, of a weight with adjacent taps.
template <class V>
void pack_turned(const PackWeight<typename V::Scalar>& call, int64_t column, typename V::Scalar* to, int64_t width) {
    using T = typename V::Scalar;
    const T* const from = call.weight + column * call.stride_n;
    const int64_t length = call.channels * call.taps, tap_size = call.channels * width;
    int64_t c = 0, tap = 0, i = 0;
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
            V::store(to + tap * tap_size + c * width, rows[j]);
            next();
        }
    }
    for (; i < length; ++i, next())
        for (int lane = 0; lane < V::lanes; ++lane)
            to[tap * tap_size + c * width + lane] = from[lane * call.stride_n + i];
}

template <class V>
void pack_picked(const PackWeight<typename V::Scalar>& call, int64_t column, int count, typename V::Scalar* to,
                 int64_t width) {
    using T = typename V::Scalar;
    for (int64_t c = 0; c < call.channels; ++c) {
        const T* const from = call.weight + column * call.stride_n + c * call.stride_c;
        for (int tap = 0; tap < call.taps; ++tap) {
            T* const at = to + (tap * call.channels + c) * width;
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
    const int64_t depth = call.taps * call.channels;
    const bool turn = has_adjacent_taps(call);
    for_panels<V>(call.n, [&](int64_t column, int vectors, int count) {
        const int64_t width = vectors * V::lanes;
        for (int64_t j = 0; j < width; j += V::lanes) {
            typename V::Scalar* const to = call.packed + column * depth + j;
            if (turn && count == V::lanes)
                pack_turned<V>(call, column + j, to, width);
            else
                pack_picked<V>(call, column + j, count, to, width);
        }
    });
}

template <class V>
void scatter_weight(const ScatterWeight<typename V::Scalar>& call) {
    using T = typename V::Scalar;
    const int64_t row_size = call.taps * call.channels;
    for (int64_t o = call.first_row; o < call.end_row; ++o) {
        const T* const row = call.partial + o * row_size;
        T* const to = call.dweight + o * call.stride_o;
        for (int64_t c = 0; c < call.channels; c += V::lanes) {
            const int count = static_cast<int>(call.channels - c < V::lanes ? call.channels - c : V::lanes);
            for (int tap = 0; tap < call.taps; ++tap) {
                const T* from = row + tap * call.channels + c;
                typename V::Value sum = V::load_first(from, count);
                for (int64_t part = 1; part < call.parts; ++part) {
                    from += call.part_stride;
                    sum = V::add(sum, V::load_first(from, count));
                }
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
    return {gather<V>, pack_weight<V>, scatter_weight<V>};
}

}  // namespace
}  // namespace spos
