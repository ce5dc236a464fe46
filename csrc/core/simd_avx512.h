// Sixteen floats in a zmm register. Include only from files built with -mavx512f.
#pragma once

#include <immintrin.h>

namespace spos {
namespace {

struct Avx512F32 {
    using Scalar = float;
    static constexpr int lanes = 16;
    static constexpr int registers = 32;
    using Value = __m512;

    static Value zero() { return _mm512_setzero_ps(); }
    static Value load(const float* from) { return _mm512_loadu_ps(from); }
    static void store(float* to, Value value) { _mm512_storeu_ps(to, value); }
    static Value add(Value a, Value b) { return _mm512_add_ps(a, b); }
    static Value multiply_add(Value a, Value b, Value c) { return _mm512_fmadd_ps(a, b, c); }
};

}  // namespace
}  // namespace spos
