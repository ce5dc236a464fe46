// One piece of sgd.h, for every vector type V; included by the per-instruction-set files.
//
// Bytes     20 an element in fp32 (w and m read and written, gradient read): bound by memory.
// Rounding  The last elements of a run go through a masked vector: they get the same bits as any other, wherever a
// slice
//           ends.
#pragma once

#include "core/unroll.h"
#include "cpu/sgd_body.h"

namespace spos {
namespace {

template <class V>
struct SgdFactors {
    typename V::Value lr, momentum, weight_decay;
};

template <class V>
typename V::Value filled(typename V::Scalar value) {
    return V::broadcast(&value);
}

template <class V, bool Full>
SPOS_INLINE void sgd_vector(const SgdPiece<typename V::Scalar>& piece, const SgdFactors<V>& factors, int64_t i,
                            int count) {
    using Value = typename V::Value;
    const auto load = [&](const typename V::Scalar* from) {
        return Full ? V::load(from + i) : V::load_first(from + i, count);
    };
    const auto store = [&](typename V::Scalar* to, Value value) {
        if (Full)
            V::store(to + i, value);
        else
            V::store_first(to + i, value, count);
    };
    const Value w = load(piece.w);
    Value gradient = load(piece.gradient);
    if (piece.weight_decay != 0) gradient = V::multiply_add(factors.weight_decay, w, gradient);
    Value step = gradient;
    if (piece.m) {
        const Value m = V::multiply_add(factors.momentum, load(piece.m), gradient);
        store(piece.m, m);
        step = piece.nesterov ? V::multiply_add(factors.momentum, m, gradient) : m;
    }
    store(piece.w, V::multiply_add(factors.lr, step, w));
}

template <class V>
void sgd_piece(const SgdPiece<typename V::Scalar>& piece) {
    const SgdFactors<V> factors{filled<V>(-piece.lr), filled<V>(piece.momentum), filled<V>(piece.weight_decay)};
    for (int64_t row = 0; row < piece.rows; ++row) {
        int64_t i = row * piece.stride;
        const int64_t end = i + piece.length;
        for (; i + V::lanes <= end; i += V::lanes) sgd_vector<V, true>(piece, factors, i, V::lanes);
        if (i < end) sgd_vector<V, false>(piece, factors, i, static_cast<int>(end - i));
    }
}

}  // namespace
}  // namespace spos
