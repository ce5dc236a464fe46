// Elementwise passes over rows of channels: one body for every vector type V, included by the per-instruction-set
// files.
//
// Work      One to four operations an element: bound by the cache that the rows are in. Callers hand over pieces that a
//           neighbouring kernel has just written or is about to read.
// Order     Some rows at a time, and within them one vector of channels after another: per-channel coefficients and
//           sums then stay in registers for those rows instead of being loaded for each. Fewer rows where they are
//           long: the processor asks memory ahead for lines that follow each other, not for those a row apart.
// Source    Batch normalisation and its gradient: Ioffe and Szegedy, arXiv 1502.03167, section 3.
#pragma once

#include "core/unroll.h"
#include "cpu/channel_ops_body.h"

namespace spos {
namespace {

constexpr int64_t rows_in_block(int64_t channels) { return channels <= 64 ? 16 : channels <= 160 ? 8 : 4; }

template <class V, bool Full>
SPOS_INLINE typename V::Value load_some(const typename V::Scalar* from, int count) {
    return Full ? V::load(from) : V::load_first(from, count);
}

template <class V, bool Full>
SPOS_INLINE void store_some(typename V::Scalar* to, typename V::Value value, int count) {
    if (Full)
        V::store(to, value);
    else
        V::store_first(to, value, count);
}

template <bool Value>
struct Flag {
    static constexpr bool value = Value;
};

// Calls visit(channel, count, full) for each vector of channels; full.value says that count is a whole vector.
template <class V, typename Visit>
SPOS_INLINE void for_vectors(int64_t channels, const Visit& visit) {
    int64_t channel = 0;
    for (; channel + V::lanes <= channels; channel += V::lanes) visit(channel, V::lanes, Flag<true>{});
    if (channel < channels) visit(channel, static_cast<int>(channels - channel), Flag<false>{});
}

// Calls visit(first row, end row, channel, count, full) for blocks of rows and, within them, vectors of channels.
template <class V, typename Visit>
SPOS_INLINE void for_blocks(int64_t rows, int64_t channels, const Visit& visit) {
    const int64_t most = rows_in_block(channels);
    for (int64_t first = 0; first < rows; first += most) {
        const int64_t end = first + most < rows ? first + most : rows;
        for_vectors<V>(channels,
                       [&](int64_t channel, int count, auto full) { visit(first, end, channel, count, full); });
    }
}

template <class V, typename T = typename V::Scalar>
void affine_pass(Pixels<const T> x, Pixels<T> to, int64_t rows, int64_t channels, Affine<T> norm, bool relu) {
    for_blocks<V>(rows, channels, [&](int64_t first, int64_t end, int64_t c, int count, auto full) {
        constexpr bool whole = decltype(full)::value;
        const auto scale = load_some<V, whole>(norm.scale + c, count);
        const auto shift = load_some<V, whole>(norm.shift + c, count);
        for (int64_t row = first; row < end; ++row) {
            auto value = V::multiply_add(load_some<V, whole>(x.data + row * x.stride + c, count), scale, shift);
            if (relu) value = V::relu(value);
            store_some<V, whole>(to.data + row * to.stride + c, value, count);
        }
    });
}

template <class V, typename T = typename V::Scalar>
void sums_pass(Pixels<const T> x, int64_t rows, int64_t channels, ColumnSums<T> sums, bool start) {
    for_blocks<V>(rows, channels, [&](int64_t first, int64_t end, int64_t c, int count, auto full) {
        constexpr bool whole = decltype(full)::value;
        typename V::Value shift, sum, square;
        if (start && first == 0) {
            // Their mean, since any one may be a corner of the map, far from all others.
            const T share = T(1) / static_cast<T>(rows);
            shift = V::zero();
            for (int64_t row = 0; row < rows; ++row)
                shift = V::add(load_some<V, whole>(x.data + row * x.stride + c, count), shift);
            shift = V::multiply_add(shift, V::broadcast(&share), V::zero());
            sum = square = V::zero();
            store_some<V, whole>(sums.shift + c, shift, count);
        } else {
            shift = load_some<V, whole>(sums.shift + c, count);
            sum = load_some<V, whole>(sums.sum + c, count);
            square = load_some<V, whole>(sums.square + c, count);
        }
        for (int64_t row = first; row < end; ++row) {
            const auto difference = V::subtract(load_some<V, whole>(x.data + row * x.stride + c, count), shift);
            sum = V::add(sum, difference);
            square = V::multiply_add(difference, difference, square);
        }
        store_some<V, whole>(sums.sum + c, sum, count);
        store_some<V, whole>(sums.square + c, square, count);
    });
}

template <class V, typename T = typename V::Scalar>
void relu_backward_pass(Pixels<const T> dy, Pixels<const T> z, Pixels<T> to, int64_t rows, int64_t channels,
                        Affine<T> norm, T* sums, T* products) {
    for_blocks<V>(rows, channels, [&](int64_t first, int64_t end, int64_t c, int count, auto full) {
        constexpr bool whole = decltype(full)::value;
        const auto scale = load_some<V, whole>(norm.scale + c, count);
        const auto shift = load_some<V, whole>(norm.shift + c, count);
        const auto mean = load_some<V, whole>(norm.mean + c, count);
        // Sums of one block first: a running sum of thousands would swallow the last digits of each element.
        auto sum = V::zero(), product = V::zero();
        for (int64_t row = first; row < end; ++row) {
            const auto value = load_some<V, whole>(z.data + row * z.stride + c, count);
            const auto gradient = V::where_positive(V::multiply_add(value, scale, shift),
                                                    load_some<V, whole>(dy.data + row * dy.stride + c, count));
            sum = V::add(sum, gradient);
            product = V::multiply_add(gradient, V::subtract(value, mean), product);
            if (to.data) store_some<V, whole>(to.data + row * to.stride + c, gradient, count);
        }
        store_some<V, whole>(sums + c, V::add(load_some<V, whole>(sums + c, count), sum), count);
        store_some<V, whole>(products + c, V::add(load_some<V, whole>(products + c, count), product), count);
    });
}

template <class V, bool Masked, typename T = typename V::Scalar>
void norm_backward_rows(Pixels<const T> dy, Pixels<const T> z, Pixels<T> to, int64_t rows, int64_t channels,
                        Affine<T> norm, NormGradient<T> coefficients, T* sums) {
    for_blocks<V>(rows, channels, [&](int64_t first, int64_t end, int64_t c, int count, auto full) {
        constexpr bool whole = decltype(full)::value;
        const auto scale = load_some<V, whole>(norm.scale + c, count);
        const auto shift = load_some<V, whole>(norm.shift + c, count);
        const auto mean = load_some<V, whole>(norm.mean + c, count);
        const auto alpha = load_some<V, whole>(coefficients.alpha + c, count);
        const auto beta = load_some<V, whole>(coefficients.beta + c, count);
        const auto gamma = load_some<V, whole>(coefficients.gamma + c, count);
        auto sum = V::zero();
        for (int64_t row = first; row < end; ++row) {
            const auto value = load_some<V, whole>(z.data + row * z.stride + c, count);
            auto gradient = load_some<V, whole>(dy.data + row * dy.stride + c, count);
            if (Masked) gradient = V::where_positive(V::multiply_add(value, scale, shift), gradient);
            const auto result =
                V::multiply_add(alpha, gradient, V::multiply_add(beta, V::subtract(value, mean), gamma));
            sum = V::add(sum, result);
            store_some<V, whole>(to.data + row * to.stride + c, result, count);
        }
        if (sums) store_some<V, whole>(sums + c, V::add(load_some<V, whole>(sums + c, count), sum), count);
    });
}

template <class V, typename T = typename V::Scalar>
void norm_backward_pass(Pixels<const T> dy, Pixels<const T> z, Pixels<T> to, int64_t rows, int64_t channels,
                        Affine<T> norm, NormGradient<T> coefficients, bool masked, T* sums) {
    if (masked)
        norm_backward_rows<V, true>(dy, z, to, rows, channels, norm, coefficients, sums);
    else
        norm_backward_rows<V, false>(dy, z, to, rows, channels, norm, coefficients, sums);
}

template <class V, typename T = typename V::Scalar>
void split_pass(Pixels<const T> x, Pixels<T> even, Pixels<T> odd, int64_t rows, int64_t channels) {
    for (int64_t row = 0; row < rows; ++row) {
        const T* const from = x.data + row * x.stride;
        T* const to_even = even.data ? even.data + row * even.stride : nullptr;
        T* const to_odd = odd.data ? odd.data + row * odd.stride : nullptr;
        int64_t c = 0;
        for (; c + V::lanes <= channels; c += V::lanes) {
            typename V::Value first, second;
            V::deinterleave(V::load(from + 2 * c), V::load(from + 2 * c + V::lanes), first, second);
            if (to_even) V::store(to_even + c, first);
            if (to_odd) V::store(to_odd + c, second);
        }
        for (; c < channels; ++c) {
            if (to_even) to_even[c] = from[2 * c];
            if (to_odd) to_odd[c] = from[2 * c + 1];
        }
    }
}

template <class V, typename T = typename V::Scalar>
void join_pass(Pixels<const T> even, Pixels<const T> odd, Pixels<T> x, int64_t rows, int64_t channels) {
    for (int64_t row = 0; row < rows; ++row) {
        const T* const from_even = even.data + row * even.stride;
        const T* const from_odd = odd.data + row * odd.stride;
        T* const to = x.data + row * x.stride;
        int64_t c = 0;
        for (; c + V::lanes <= channels; c += V::lanes) {
            typename V::Value low, high;
            V::interleave(V::load(from_even + c), V::load(from_odd + c), low, high);
            V::store(to + 2 * c, low);
            V::store(to + 2 * c + V::lanes, high);
        }
        for (; c < channels; ++c) {
            to[2 * c] = from_even[c];
            to[2 * c + 1] = from_odd[c];
        }
    }
}

template <class V, typename T = typename V::Scalar>
void add_pass(Pixels<const T> x, Pixels<T> to, int64_t rows, int64_t channels) {
    for (int64_t row = 0; row < rows; ++row) {
        for_vectors<V>(channels, [&](int64_t c, int count, auto full) {
            constexpr bool whole = decltype(full)::value;
            T* const at = to.data + row * to.stride + c;
            store_some<V, whole>(
                at, V::add(load_some<V, whole>(at, count), load_some<V, whole>(x.data + row * x.stride + c, count)),
                count);
        });
    }
}

template <class V, typename T = typename V::Scalar>
void matrix_vector_pass(Pixels<const T> matrix, const T* vector, T* to, int64_t rows, int64_t channels) {
    for (int64_t row = 0; row < rows; ++row) {
        auto sum = V::zero();
        for_vectors<V>(channels, [&](int64_t c, int count, auto full) {
            constexpr bool whole = decltype(full)::value;
            sum = V::multiply_add(load_some<V, whole>(matrix.data + row * matrix.stride + c, count),
                                  load_some<V, whole>(vector + c, count), sum);
        });
        T lanes[V::lanes], total = 0;
        V::store(lanes, sum);
        for (int i = 0; i < V::lanes; ++i) total += lanes[i];
        to[row] = total;
    }
}

template <class V, typename T = typename V::Scalar>
void combine_wgrad_pass(const CombineWgrad<T>& call) {
    for_vectors<V>(call.end_input - call.first_input, [&](int64_t offset, int count, auto full) {
        constexpr bool whole = decltype(full)::value;
        const int64_t c = call.first_input + offset;
        const T one = 1;
        const auto scale = call.scale ? load_some<V, whole>(call.scale + c, count) : V::broadcast(&one);
        const auto shift = call.shift ? load_some<V, whole>(call.shift + c, count) : V::zero();
        auto product = V::zero(), total = V::zero();
        for (int64_t o = 0; o < call.outputs; ++o) {
            const T* from = call.partial + o * call.inputs + c;
            auto gradient = load_some<V, whole>(from, count);
            for (int64_t part = 1; part < call.parts; ++part) {
                from += call.part_stride;
                gradient = V::add(gradient, load_some<V, whole>(from, count));
            }
            const auto dz_sum = V::broadcast(call.dz_sum + o);
            if (call.product) {
                const auto weight = load_some<V, whole>(call.weight + o * call.weight_stride + c, count);
                product = V::multiply_add(weight, gradient, product);
                total = V::multiply_add(weight, dz_sum, total);
            }
            if (call.dweight)
                store_some<V, whole>(call.dweight + o * call.inputs + c,
                                     V::multiply_add(shift, dz_sum, V::multiply_add(scale, gradient, V::zero())),
                                     count);
        }
        if (call.product) {
            store_some<V, whole>(call.product + c, product, count);
            store_some<V, whole>(call.total + c, total, count);
        }
    });
}

template <class V>
ChannelOps<typename V::Scalar> make_channel_ops() {
    return {V::lanes,      affine_pass<V>, sums_pass<V>, relu_backward_pass<V>, norm_backward_pass<V>,
            split_pass<V>, join_pass<V>,   add_pass<V>,  matrix_vector_pass<V>, combine_wgrad_pass<V>};
}

}  // namespace
}  // namespace spos
