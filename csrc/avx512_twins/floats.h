// Twins of AVX-512's arithmetic of floats and doubles.
#pragma once

#include <cmath>
#include <limits>

#include "avx512_twins/vector.h"

namespace spos {
namespace twins {

inline Floats mm512_add_ps(Floats a, Floats b) {
    return {{_mm256_add_ps(a.half[0], b.half[0]), _mm256_add_ps(a.half[1], b.half[1])}};
}
inline Floats mm512_sub_ps(Floats a, Floats b) {
    return {{_mm256_sub_ps(a.half[0], b.half[0]), _mm256_sub_ps(a.half[1], b.half[1])}};
}
inline Floats mm512_mul_ps(Floats a, Floats b) {
    return {{_mm256_mul_ps(a.half[0], b.half[0]), _mm256_mul_ps(a.half[1], b.half[1])}};
}
inline Floats mm512_div_ps(Floats a, Floats b) {
    return {{_mm256_div_ps(a.half[0], b.half[0]), _mm256_div_ps(a.half[1], b.half[1])}};
}
inline Floats mm512_fmadd_ps(Floats a, Floats b, Floats c) {
    return {{_mm256_fmadd_ps(a.half[0], b.half[0], c.half[0]), _mm256_fmadd_ps(a.half[1], b.half[1], c.half[1])}};
}
inline Doubles mm512_add_pd(Doubles a, Doubles b) {
    return {{_mm256_add_pd(a.half[0], b.half[0]), _mm256_add_pd(a.half[1], b.half[1])}};
}
inline Doubles mm512_mul_pd(Doubles a, Doubles b) {
    return {{_mm256_mul_pd(a.half[0], b.half[0]), _mm256_mul_pd(a.half[1], b.half[1])}};
}
inline Doubles mm512_fmadd_pd(Doubles a, Doubles b, Doubles c) {
    return {{_mm256_fmadd_pd(a.half[0], b.half[0], c.half[0]), _mm256_fmadd_pd(a.half[1], b.half[1], c.half[1])}};
}

inline Floats mm512_and_ps(Floats a, Floats b) {
    return {{_mm256_and_ps(a.half[0], b.half[0]), _mm256_and_ps(a.half[1], b.half[1])}};
}
inline Floats mm512_or_ps(Floats a, Floats b) {
    return {{_mm256_or_ps(a.half[0], b.half[0]), _mm256_or_ps(a.half[1], b.half[1])}};
}
inline Floats mm512_abs_ps(Floats a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {{_mm256_andnot_ps(sign, a.half[0]), _mm256_andnot_ps(sign, a.half[1])}};
}

inline Floats mm512_mask_mov_ps(Floats kept, __mmask16 mask, Floats a) { return choose<float>(mask, a, kept); }
inline Floats mm512_maskz_mov_ps(__mmask16 mask, Floats a) { return choose<float>(mask, a, mm512_setzero_ps()); }

// The second operand of two zeros, and where either is NaN; so does AVX.
inline Floats mm512_mask_max_ps(Floats kept, __mmask16 mask, Floats a, Floats b) {
    return choose<float>(mask, Floats{{_mm256_max_ps(a.half[0], b.half[0]), _mm256_max_ps(a.half[1], b.half[1])}},
                         kept);
}
inline Floats mm512_mask_min_ps(Floats kept, __mmask16 mask, Floats a, Floats b) {
    return choose<float>(mask, Floats{{_mm256_min_ps(a.half[0], b.half[0]), _mm256_min_ps(a.half[1], b.half[1])}},
                         kept);
}
inline Doubles mm512_mask_max_pd(Doubles kept, __mmask8 mask, Doubles a, Doubles b) {
    return choose<double>(mask, Doubles{{_mm256_max_pd(a.half[0], b.half[0]), _mm256_max_pd(a.half[1], b.half[1])}},
                          kept);
}

// Any of the 32 predicates.
template <int Predicate>
__mmask16 mm512_cmp_ps_mask(Floats a, Floats b) {
    const int low = _mm256_movemask_ps(_mm256_cmp_ps(a.half[0], b.half[0], Predicate));
    const int high = _mm256_movemask_ps(_mm256_cmp_ps(a.half[1], b.half[1], Predicate));
    return static_cast<__mmask16>(high << 8 | low);
}

// Rounded to integers, not to binary digits behind the point.
template <int Control>
Floats mm512_mask_roundscale_ps(Floats kept, __mmask16 mask, Floats a) {
    static_assert(Control >> 4 == 0, "no digits behind the point");
    const Floats rounded = {{_mm256_round_ps(a.half[0], Control), _mm256_round_ps(a.half[1], Control)}};
    return choose<float>(mask, rounded, kept);
}

// a * 2^floor(b), rounded once.
inline float scale_by_power(float a, float b) {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    if (std::isnan(a)) {
        uint32_t bits;
        std::memcpy(&bits, &a, sizeof bits);
        const bool quiet = (bits >> 22 & 1) != 0;
        return quiet && std::isinf(b) ? (b > 0 ? infinity : 0.0f) : a + 0.0f;
    }
    if (std::isnan(b)) return b + 0.0f;
    if (std::isinf(b)) {
        const bool undefined = b > 0 ? a == 0 : std::isinf(a);
        return undefined ? -std::numeric_limits<float>::quiet_NaN() : std::copysign(b > 0 ? infinity : 0.0f, a);
    }
    const float whole = std::floor(b);
    return std::ldexp(a, static_cast<int>(whole < -1000 ? -1000 : whole > 1000 ? 1000 : whole));
}

inline Floats mm512_mask_scalef_ps(Floats kept, __mmask16 mask, Floats a, Floats b) {
    const Lanes<float, Floats> values(a), exponents(b);
    Lanes<float, Floats> to;
    for (int i = 0; i < 16; ++i) to.at[i] = scale_by_power(values.at[i], exponents.at[i]);
    return choose<float>(mask, to.vector(), kept);
}

// In the current rounding mode; -2^31 for what does not fit, and NaN.
inline Integers mm512_maskz_cvtps_epi32(__mmask16 mask, Floats a) {
    const Integers whole = {{_mm256_cvtps_epi32(a.half[0]), _mm256_cvtps_epi32(a.half[1])}};
    return choose<int32_t>(mask, whole, mm512_setzero_si512());
}

// Lanes of a (0 to 15) and b (16 to 31) by the low five bits of each index.
inline Floats mm512_permutex2var_ps(Floats a, Integers index, Floats b) {
    const Lanes<float, Floats> low(a), high(b);
    const Lanes<uint32_t, Integers> from(index);
    Lanes<float, Floats> to;
    for (int i = 0; i < 16; ++i) to.at[i] = (from.at[i] & 16 ? high : low).at[from.at[i] & 15];
    return to.vector();
}

}  // namespace twins
}  // namespace spos
