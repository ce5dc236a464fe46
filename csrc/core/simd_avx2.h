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

    static Value broadcast(const float* from) { return _mm256_broadcast_ss(from); }
    static Value subtract(Value a, Value b) { return _mm256_sub_ps(a, b); }
    // The first `count` lanes, 1 to 8 of them; the others are zero and their memory is not touched.
    static Value load_first(const float* from, int count) { return _mm256_maskload_ps(from, first(count)); }
    static void store_first(float* to, Value value, int count) { _mm256_maskstore_ps(to, first(count), value); }
    // max(value, 0), NaN stays NaN.
    static Value relu(Value value) { return _mm256_max_ps(_mm256_setzero_ps(), value); }
    // value where condition > 0, else 0.
    static Value where_positive(Value condition, Value value) {
        return _mm256_and_ps(_mm256_cmp_ps(condition, _mm256_setzero_ps(), _CMP_GT_OQ), value);
    }
    // a[0] a[2] a[4] a[6] b[0] .. b[6], and the odd ones.
    static void deinterleave(Value a, Value b, Value& even, Value& odd) {
        even = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88)), 0xd8));
        odd = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xdd)), 0xd8));
    }
    // even[0] odd[0] even[1] .. odd[3], and the rest.
    static void interleave(Value even, Value odd, Value& low, Value& high) {
        const __m256 a = _mm256_unpacklo_ps(even, odd), b = _mm256_unpackhi_ps(even, odd);
        low = _mm256_permute2f128_ps(a, b, 0x20);
        high = _mm256_permute2f128_ps(a, b, 0x31);
    }

  private:
    static __m256i first(int count) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
};

}  // namespace
}  // namespace spos
