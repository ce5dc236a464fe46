// Pieces of fake_quantize.h, for every vector type V; included by the per-instruction-set files.
//
// Bytes     8 an element in fp32 forward, 5 for codes, 12 backward. A division an element, which its own unit does
//           beside the loads, and for dorefa a tanh.
// Sums      A piece's sum is taken lane by lane in the elements' precision over some hundred terms (at most 2,048),
//           pieces are added in double precision, in their order.
// Rounding  The last elements of a run or a row go through a masked vector: they get the same bits as any other. x / s
//           is the same division everywhere, so forward, codes and backward agree on every element.
#pragma once

#include "core/unroll.h"
#include "cpu/fake_quantize_body.h"

namespace spos {
namespace {

template <class V>
struct QuantizeCoefficients {
    typename V::Value divisor, low, high, bound;
};

template <bool Value>
struct QuantizeFlag {
    static constexpr bool value = Value;
};

template <class V>
SPOS_INLINE typename V::Value quantize_constant(double value) {
    const auto scalar = static_cast<typename V::Scalar>(value);
    return V::broadcast(&scalar);
}

template <class V, bool Full>
SPOS_INLINE typename V::Value quantize_load(const typename V::Scalar* from, int count) {
    return Full ? V::load(from) : V::load_first(from, count);
}

template <class V, bool Full, bool Stream>
SPOS_INLINE void quantize_store(typename V::Scalar* to, typename V::Value value, int count) {
    if (!Full)
        V::store_first(to, value, count);
    else if (Stream)
        V::stream(to, value);
    else
        V::store(to, value);
}

// Visit(i, count, full, coefficients, sum) returns what becomes of the vector at element i, Store(i, count, full,
// result) writes it. Vectors are read four at a time before any is written: where input and output lie alike within
// their pages, a load would wait for a store that only looks like one to the same address.
template <class V, bool Sums, typename Visit, typename Store, typename Reduce, typename T = typename V::Scalar>
SPOS_INLINE void visit_run(const FakeQuantizeJob<T>& job, int64_t piece, const Visit& visit, const Store& store,
                           const Reduce& reduce) {
    const FakeQuantizePlan& plan = job.plan;
    const int64_t run = piece / plan.splits, start = piece % plan.splits * plan.run_piece;
    const int64_t length = plan.run - start < plan.run_piece ? plan.run - start : plan.run_piece;
    const int64_t channel = run % plan.channels, end = run * plan.run + start + length;
    const QuantizeCoefficients<V> k{V::broadcast(job.divisor + channel), V::broadcast(job.low + channel),
                                    V::broadcast(job.high + channel), V::broadcast(job.bound + channel)};
    typename V::Value sum = V::zero();
    int64_t i = end - length;
    constexpr int vectors = 4, together = vectors * V::lanes;
    for (; i + together <= end; i += together) {
        typename V::Value result[vectors];
        SPOS_UNROLL
        for (int v = 0; v < vectors; ++v) result[v] = visit(i + v * V::lanes, V::lanes, QuantizeFlag<true>{}, k, sum);
        SPOS_UNROLL
        for (int v = 0; v < vectors; ++v) store(i + v * V::lanes, V::lanes, QuantizeFlag<true>{}, result[v]);
    }
    for (; i + V::lanes <= end; i += V::lanes)
        store(i, V::lanes, QuantizeFlag<true>{}, visit(i, V::lanes, QuantizeFlag<true>{}, k, sum));
    if (i < end) {
        const int count = static_cast<int>(end - i);
        store(i, count, QuantizeFlag<false>{}, visit(i, count, QuantizeFlag<false>{}, k, sum));
    }
    if constexpr (Sums) {
        T lanes[V::lanes];
        V::store(lanes, sum);
        double total = 0;
        for (const T lane : lanes) total = reduce(total, static_cast<double>(lane));
        job.sums[piece] = total;
    }
}

// Some columns of `count` rows from `row` on: Vectors whole vectors, or one of `lanes` elements. Their coefficients and
// sums stay in registers.
template <class V, bool Sums, int Vectors, bool Full, typename Visit, typename Store, typename T = typename V::Scalar>
SPOS_INLINE void visit_columns(const FakeQuantizeJob<T>& job, int64_t row, int64_t count, int64_t column, int lanes,
                               T* sums, const Visit& visit, const Store& store) {
    QuantizeCoefficients<V> k[Vectors];
    typename V::Value sum[Vectors], result[Vectors];
    SPOS_UNROLL
    for (int v = 0; v < Vectors; ++v) {
        const int64_t at = column + v * V::lanes;
        k[v] = {V::load(job.divisor + at), V::load(job.low + at), V::load(job.high + at), V::load(job.bound + at)};
        sum[v] = V::zero();
        if constexpr (Sums) sum[v] = V::load(sums + v * V::lanes);
    }
    for (int64_t i = row * job.plan.columns + column; count > 0; --count, i += job.plan.columns) {
        SPOS_UNROLL
        for (int v = 0; v < Vectors; ++v)
            result[v] = visit(i + v * V::lanes, lanes, QuantizeFlag<Full>{}, k[v], sum[v]);
        SPOS_UNROLL
        for (int v = 0; v < Vectors; ++v) store(i + v * V::lanes, lanes, QuantizeFlag<Full>{}, result[v]);
    }
    SPOS_UNROLL
    for (int v = 0; v < Vectors; ++v)
        if constexpr (Sums) V::store(sums + v * V::lanes, sum[v]);
}

// Some rows at a time, and within them 4 vectors of columns after another, whose coefficients stay in registers. Fewer
// rows where they are long, and one where the tensor comes from far: the processor asks memory ahead for lines that
// follow each other.
template <class V, bool Sums, typename Visit, typename Store, typename T = typename V::Scalar>
SPOS_INLINE void visit_block(const FakeQuantizeJob<T>& job, int64_t piece, const Visit& visit, const Store& store) {
    constexpr int vectors = 4, together = vectors * V::lanes;
    const FakeQuantizePlan& plan = job.plan;
    const int64_t columns = plan.columns, first = piece % plan.splits * plan.most_columns;
    const int64_t width = columns - first < plan.most_columns ? columns - first : plan.most_columns;
    alignas(64) T sums[plan.most_columns + V::lanes];
    if constexpr (Sums)
        for (int64_t c = 0; c < width + V::lanes; ++c) sums[c] = 0;
    const bool far = plan.size * static_cast<int64_t>(sizeof(T)) > plan.near_bytes;
    const int64_t whole_rows = plan.size / columns;
    const int64_t most = width <= together ? plan.rows : far ? 1 : width <= 256 ? 16 : 4;
    int64_t row = piece / plan.splits * plan.rows;
    const int64_t end = row + plan.rows;
    while (row < end && row * columns + first < plan.size) {
        // The last row of all may be shorter, and comes alone.
        const int64_t left = (end < whole_rows ? end : whole_rows) - row;
        const int64_t count = left <= 0 ? 1 : left < most ? left : most;
        const int64_t rest = plan.size - row * columns - first, length = left <= 0 && rest < width ? rest : width;
        int64_t c = 0;
        for (; c + together <= length; c += together)
            visit_columns<V, Sums, vectors, true>(job, row, count, first + c, V::lanes, sums + c, visit, store);
        for (; c + V::lanes <= length; c += V::lanes)
            visit_columns<V, Sums, 1, true>(job, row, count, first + c, V::lanes, sums + c, visit, store);
        if (c < length)
            visit_columns<V, Sums, 1, false>(job, row, count, first + c, static_cast<int>(length - c), sums + c, visit,
                                             store);
        row += count;
    }
    if constexpr (Sums) {
        double* to = job.sums + piece / plan.splits * columns + first;
        for (int64_t c = 0; c < width; ++c) to[c] = static_cast<double>(sums[c]);
    }
}

template <class V, bool Sums, typename Visit, typename Store, typename Reduce, typename T = typename V::Scalar>
SPOS_INLINE void visit_pieces(const FakeQuantizeJob<T>& job, int64_t begin, int64_t end, const Visit& visit,
                              const Store& store, const Reduce& reduce) {
    if (job.plan.by_columns)
        for (int64_t piece = begin; piece < end; ++piece) visit_block<V, Sums>(job, piece, visit, store);
    else
        for (int64_t piece = begin; piece < end; ++piece) visit_run<V, Sums>(job, piece, visit, store, reduce);
}

constexpr auto add_up = [](double a, double b) { return a + b; };

// The integer that an element is rounded to: the code, less the zero point.
template <class V, QuantizeMethod method>
SPOS_INLINE typename V::Value rounded(typename V::Value x, const QuantizeCoefficients<V>& k, typename V::Value levels) {
    if constexpr (method == QuantizeMethod::dorefa) {
        const auto r = V::multiply_add(V::tanh(x), k.divisor, quantize_constant<V>(0.5));
        return V::round(V::multiply(levels, r));
    } else {
        return V::round(V::maximum(k.low, V::minimum(k.high, V::divide(x, k.divisor))));
    }
}

// a / b to the bit for the integers of dorefa, from b's reciprocal: the remainder of the first product corrects it.
template <class V>
SPOS_INLINE typename V::Value small_quotient(typename V::Value a, typename V::Value b, typename V::Value reciprocal) {
    if constexpr (!V::fused) return V::divide(a, b);
    const auto quotient = V::multiply(a, reciprocal);
    const auto rest = V::multiply_add(V::subtract(V::zero(), quotient), b, a);
    return V::multiply_add(rest, reciprocal, quotient);
}

template <class V, QuantizeMethod method, bool Stream, typename T = typename V::Scalar>
void forward_pieces(const FakeQuantizeJob<T>& job, int64_t begin, int64_t end) {
    const auto reciprocal = quantize_constant<V>(1.0 / job.levels);
    const auto levels = quantize_constant<V>(job.levels);
    visit_pieces<V, false>(
        job, begin, end,
        [&](int64_t i, int count, auto full, const QuantizeCoefficients<V>& k, typename V::Value&) {
            constexpr bool whole = decltype(full)::value;
            const auto code = rounded<V, method>(quantize_load<V, whole>(job.x + i, count), k, levels);
            if constexpr (method == QuantizeMethod::dorefa)
                return small_quotient<V>(V::subtract(V::add(code, code), levels), levels, reciprocal);
            else
                return V::multiply(code, k.divisor);
        },
        [&](int64_t i, int count, auto full, typename V::Value y) {
            quantize_store<V, decltype(full)::value, Stream>(job.y + i, y, count);
        },
        add_up);
    if (Stream) V::fence();
}

template <class V, QuantizeMethod method, typename T = typename V::Scalar>
void codes_pieces(const FakeQuantizeJob<T>& job, int64_t begin, int64_t end) {
    const auto levels = quantize_constant<V>(job.levels), lowest = quantize_constant<V>(job.lowest_code);
    visit_pieces<V, false>(
        job, begin, end,
        [&](int64_t i, int count, auto full, const QuantizeCoefficients<V>& k, typename V::Value&) {
            auto code = rounded<V, method>(quantize_load<V, decltype(full)::value>(job.x + i, count), k, levels);
            if constexpr (method == QuantizeMethod::lsq) code = V::add(code, V::subtract(lowest, k.low));
            return V::maximum(code, lowest);  // NaN: the lowest
        },
        [&](int64_t i, int count, auto, typename V::Value code) { V::store_bytes(job.codes + i, code, count); },
        add_up);
}

template <class V, QuantizeMethod method, bool Sums, bool Stream, typename T = typename V::Scalar>
void backward_pieces(const FakeQuantizeJob<T>& job, int64_t begin, int64_t end) {
    using Value = typename V::Value;
    const Value zero = V::zero(), one = quantize_constant<V>(1);
    const bool needs_dx = job.dx != nullptr;
    visit_pieces<V, Sums>(
        job, begin, end,
        [&](int64_t i, int count, auto full, const QuantizeCoefficients<V>& k, Value& sum) {
            constexpr bool whole = decltype(full)::value;
            const Value x = quantize_load<V, whole>(job.x + i, count), dy = quantize_load<V, whole>(job.dy + i, count);
            Value dx;
            if constexpr (method == QuantizeMethod::dorefa) {
                const Value tanh = V::tanh(x);
                const Value slope = V::multiply_add(V::subtract(zero, tanh), tanh, one);
                dx = V::multiply(V::multiply(dy, k.bound), slope);
            } else if constexpr (method == QuantizeMethod::pact) {
                dx = V::select(V::both(V::less(zero, x), V::less(x, k.bound)), dy, zero);
                if constexpr (Sums) sum = V::add(sum, V::select(V::less_equal(k.bound, x), dy, zero));
            } else {
                const Value v = V::divide(x, k.divisor);
                dx = V::select(V::both(V::less_equal(k.low, v), V::less_equal(v, k.high)), dy, zero);
                if constexpr (Sums) {
                    Value coefficient = V::subtract(V::round(v), v);
                    coefficient = V::select(V::less_equal(k.high, v), k.high, coefficient);
                    coefficient = V::select(V::less_equal(v, k.low), k.low, coefficient);
                    sum = V::multiply_add(dy, coefficient, sum);
                }
            }
            return dx;
        },
        [&](int64_t i, int count, auto full, Value dx) {
            if (needs_dx) quantize_store<V, decltype(full)::value, Stream>(job.dx + i, dx, count);
        },
        add_up);
    if (Stream) V::fence();
}

template <class V, typename T = typename V::Scalar>
void maximum_pieces(const FakeQuantizeJob<T>& job, int64_t begin, int64_t end) {
    visit_pieces<V, true>(
        job, begin, end,
        [&](int64_t i, int count, auto full, const QuantizeCoefficients<V>&, typename V::Value& largest) {
            largest = V::largest_magnitude(largest, quantize_load<V, decltype(full)::value>(job.x + i, count));
            return largest;
        },
        [](int64_t, int, auto, typename V::Value) {}, [](double a, double b) { return b > a || b != b ? b : a; });
}

template <class V, typename T = typename V::Scalar>
void tanh_values(T* values, int64_t count) {
    for (int64_t i = 0; i < count; i += V::lanes) {
        const int some = count - i < V::lanes ? static_cast<int>(count - i) : V::lanes;
        V::store_first(values + i, V::tanh(V::load_first(values + i, some)), some);
    }
}

// The bodies choose among their variants here, once for some pieces.
template <class V, typename T = typename V::Scalar>
FakeQuantizeBody<T> fake_quantize_body() {
    using Job = const FakeQuantizeJob<T>&;
    using Method = QuantizeMethod;
    FakeQuantizeBody<T> body;
    body.forward = [](Job job, int64_t begin, int64_t end) {
        if (job.method == Method::dorefa)
            (job.stream ? forward_pieces<V, Method::dorefa, true>
                        : forward_pieces<V, Method::dorefa, false>)(job, begin, end);
        else
            (job.stream ? forward_pieces<V, Method::lsq, true> : forward_pieces<V, Method::lsq, false>)(job, begin,
                                                                                                        end);
    };
    body.codes = [](Job job, int64_t begin, int64_t end) {
        (job.method == Method::dorefa ? codes_pieces<V, Method::dorefa> : codes_pieces<V, Method::lsq>)(job, begin,
                                                                                                        end);
    };
    body.backward = [](Job job, int64_t begin, int64_t end) {
        const auto choose = [&](auto sums, auto stream) {
            constexpr bool with_sums = decltype(sums)::value, past_caches = decltype(stream)::value;
            if (job.method == Method::dorefa)
                backward_pieces<V, Method::dorefa, false, past_caches>(job, begin, end);
            else if (job.method == Method::pact)
                backward_pieces<V, Method::pact, with_sums, past_caches>(job, begin, end);
            else
                backward_pieces<V, Method::lsq, with_sums, past_caches>(job, begin, end);
        };
        const QuantizeFlag<true> yes;
        const QuantizeFlag<false> no;
        if (job.sums)
            job.stream ? choose(yes, yes) : choose(yes, no);
        else
            job.stream ? choose(no, yes) : choose(no, no);
    };
    body.maximum = maximum_pieces<V>;
    body.tanh = tanh_values<V>;
    return body;
}

}  // namespace
}  // namespace spos
