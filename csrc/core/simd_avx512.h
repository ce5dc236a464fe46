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

    static Value broadcast(const float* from) { return _mm512_set1_ps(*from); }
    static Value subtract(Value a, Value b) { return _mm512_sub_ps(a, b); }
    // The first `count` lanes, 1 to 16 of them; the others are zero and their memory is not touched.
    static Value load_first(const float* from, int count) { return _mm512_maskz_loadu_ps(first(count), from); }
    static void store_first(float* to, Value value, int count) { _mm512_mask_storeu_ps(to, first(count), value); }
    // max(value, 0), NaN stays NaN.
    static Value relu(Value value) { return _mm512_mask_max_ps(value, 0xffff, _mm512_setzero_ps(), value); }
    // value where condition > 0, else 0.
    static Value where_positive(Value condition, Value value) {
        return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(condition, _mm512_setzero_ps(), _CMP_GT_OQ), value);
    }
    // a[0] a[2] .. a[14] b[0] b[2] .. b[14], and the odd ones.
    static void deinterleave(Value a, Value b, Value& even, Value& odd) {
        const __m512i index = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        even = _mm512_permutex2var_ps(a, index, b);
        odd = _mm512_permutex2var_ps(a, _mm512_add_epi32(index, _mm512_set1_epi32(1)), b);
    }
    // even[0] odd[0] even[1] .. odd[7], and the rest.
    static void interleave(Value even, Value odd, Value& low, Value& high) {
        const __m512i index = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        low = _mm512_permutex2var_ps(even, index, odd);
        high = _mm512_permutex2var_ps(even, _mm512_add_epi32(index, _mm512_set1_epi32(8)), odd);
    }

  private:
    static __mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1); }
};

}  // namespace
}  // namespace spos
