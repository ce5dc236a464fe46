// A square of registers turned round, for any vector type of the simd_*.h.
#pragma once

#include "core/unroll.h"

namespace spos {
namespace {

// rows[i][j] becomes rows[j][i], by log2(lanes) perfect shuffles.
template <class V>
SPOS_INLINE void transpose(typename V::Value (&rows)[V::lanes]) {
    constexpr int half = V::lanes / 2;
    SPOS_UNROLL
    for (int step = 1; step < V::lanes; step *= 2) {
        typename V::Value shuffled[V::lanes];
        SPOS_UNROLL
        for (int i = 0; i < half; ++i) V::interleave(rows[i], rows[i + half], shuffled[2 * i], shuffled[2 * i + 1]);
        SPOS_UNROLL
        for (int i = 0; i < V::lanes; ++i) rows[i] = shuffled[i];
    }
}

}  // namespace
}  // namespace spos
