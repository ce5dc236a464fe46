// Eight floats in a ymm register. Include only from files built with -mavx2 -mfma.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "core/simd_tanh.h"

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

    using Mask = __m256;
    static constexpr bool fused = true;  // multiply_add rounds once
    static Value multiply(Value a, Value b) { return _mm256_mul_ps(a, b); }
    static Value divide(Value a, Value b) { return _mm256_div_ps(a, b); }
    // Of two equal values, and where either is NaN: b.
    static Value minimum(Value a, Value b) { return _mm256_min_ps(a, b); }
    static Value maximum(Value a, Value b) { return _mm256_max_ps(a, b); }
    // To the nearest integer, half to even; |value| below 2^22. NaN stays NaN.
    static Value round(Value value) { return _mm256_round_ps(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    // False where either is NaN.
    static Mask less(Value a, Value b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
    static Mask less_equal(Value a, Value b) { return _mm256_cmp_ps(a, b, _CMP_LE_OQ); }
    static Mask both(Mask a, Mask b) { return _mm256_and_ps(a, b); }
    static Value select(Mask mask, Value yes, Value no) { return _mm256_blendv_ps(no, yes, mask); }
    static Value absolute(Value value) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), value); }
    static Value with_sign_of(Value magnitude, Value sign) {
        return _mm256_or_ps(magnitude, _mm256_and_ps(sign, _mm256_set1_ps(-0.0f)));
    }
    // max(largest, |value|) for largest >= 0; NaN, once met, stays. As integers, magnitudes have the same order.
    static Value largest_magnitude(Value largest, Value value) {
        return _mm256_castsi256_ps(
            _mm256_max_epi32(_mm256_castps_si256(largest), _mm256_castps_si256(absolute(value))));
    }
    static Value tanh(Value value) { return tanh_polynomial<Avx2F32>(value); }
    // value * 2^exponent for an integral exponent and a result that is a normal number.
    static Value times_power_of_two(Value value, Value exponent) {
        const __m256i shifted = _mm256_slli_epi32(_mm256_cvtps_epi32(exponent), 23);
        return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(value), shifted));
    }
    // Past the caches, to an address that is a multiple of the vector; fence() before others read it.
    static void stream(float* to, Value value) { _mm256_stream_ps(to, value); }
    static void fence() { _mm_sfence(); }
    // Integral values of which each fits into 8 bits, signed or not: the first `count`.
    static void store_bytes(uint8_t* to, Value value, int count) {
        const __m256i lowest = _mm256_and_si256(_mm256_cvtps_epi32(value), _mm256_set1_epi32(0xff));
        const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(lowest), _mm256_extracti128_si256(lowest, 1));
        const int64_t bytes = _mm_cvtsi128_si64(_mm_packus_epi16(words, words));
        std::memcpy(to, &bytes, static_cast<size_t>(count));
    }

  private:
    static __m256i first(int count) {
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    }
};

}  // namespace
}  // namespace spos
