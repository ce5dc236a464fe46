// Sixteen floats in a zmm register. Include only from files built with -mavx512f.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "core/simd_tanh.h"

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
    static Value relu(Value value) { return _mm512_mask_max_ps(value, all, _mm512_setzero_ps(), value); }
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

    using Mask = __mmask16;
    static constexpr bool fused = true;  // multiply_add rounds once
    static Value multiply(Value a, Value b) { return _mm512_mul_ps(a, b); }
    static Value divide(Value a, Value b) { return _mm512_div_ps(a, b); }
    // Of two equal values, and where either is NaN: b.
    static Value minimum(Value a, Value b) { return _mm512_mask_min_ps(b, all, a, b); }
    static Value maximum(Value a, Value b) { return _mm512_mask_max_ps(b, all, a, b); }
    // To the nearest integer, half to even; |value| below 2^22. NaN stays NaN.
    static Value round(Value value) {
        return _mm512_mask_roundscale_ps(value, all, value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    }
    // False where either is NaN.
    static Mask less(Value a, Value b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
    static Mask less_equal(Value a, Value b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
    static Mask both(Mask a, Mask b) { return a & b; }
    static Value select(Mask mask, Value yes, Value no) { return _mm512_mask_mov_ps(no, mask, yes); }
    static Value absolute(Value value) { return _mm512_abs_ps(value); }
    static Value with_sign_of(Value magnitude, Value sign) {
        return _mm512_or_ps(magnitude, _mm512_and_ps(sign, _mm512_set1_ps(-0.0f)));
    }
    // max(largest, |value|) for largest >= 0; NaN, once met, stays. As integers, magnitudes have the same order.
    static Value largest_magnitude(Value largest, Value value) {
        return _mm512_castsi512_ps(
            _mm512_maskz_max_epi32(all, _mm512_castps_si512(largest), _mm512_castps_si512(_mm512_abs_ps(value))));
    }
    static Value tanh(Value value) { return tanh_polynomial<Avx512F32>(value); }
    // value * 2^exponent for an integral exponent and a result that is a normal number.
    static Value times_power_of_two(Value value, Value exponent) {
        return _mm512_mask_scalef_ps(value, all, value, exponent);
    }
    // Past the caches, to an address that is a multiple of the vector; fence() before others read it.
    static void stream(float* to, Value value) { _mm512_stream_ps(to, value); }
    static void fence() { _mm_sfence(); }
    // Integral values of which each fits into 8 bits, signed or not: the first `count`.
    static void store_bytes(uint8_t* to, Value value, int count) {
        _mm512_mask_cvtepi32_storeu_epi8(to, first(count), _mm512_maskz_cvtps_epi32(all, value));
    }

  private:
    // GCC 12 warns of uninitialised values inside of the forms without a mask.
    static constexpr __mmask16 all = 0xffff;
    static __mmask16 first(int count) { return static_cast<__mmask16>((1u << count) - 1); }
};

}  // namespace
}  // namespace spos
