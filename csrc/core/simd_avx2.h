// Eight floats in a ymm register. Include only from files built with -mavx2 -mfma.
#pragma once

#include <immintrin.h>

namespace spos {
namespace {

struct Avx2F32 {
    using Scalar = float;
    static constexpr int lanes = 8;
    static constexpr int registers = 16;
    using Value = __m256;

    static Value zero() { return _mm256_setzero_ps(); }
    static Value load(const float* from) { return _mm256_loadu_ps(from); }
    static void store(float* to, Value value) { _mm256_storeu_ps(to, value); }
    static Value add(Value a, Value b) { return _mm256_add_ps(a, b); }
    static Value multiply_add(Value a, Value b, Value c) { return _mm256_fmadd_ps(a, b, c); }
};

}  // namespace
}  // namespace spos
