// Twins of AVX-512's arithmetic of integers, VNNI, VBMI and VPOPCNTDQ among it.
#pragma once

#include "avx512_twins/vector.h"

namespace spos {
namespace twins {

inline Integers mm512_and_si512(Integers a, Integers b) {
    return {{_mm256_and_si256(a.half[0], b.half[0]), _mm256_and_si256(a.half[1], b.half[1])}};
}
inline Integers mm512_add_epi32(Integers a, Integers b) {
    return {{_mm256_add_epi32(a.half[0], b.half[0]), _mm256_add_epi32(a.half[1], b.half[1])}};
}
inline Integers mm512_add_epi64(Integers a, Integers b) {
    return {{_mm256_add_epi64(a.half[0], b.half[0]), _mm256_add_epi64(a.half[1], b.half[1])}};
}
inline Integers mm512_sub_epi8(Integers a, Integers b) {
    return {{_mm256_sub_epi8(a.half[0], b.half[0]), _mm256_sub_epi8(a.half[1], b.half[1])}};
}
inline Integers mm512_sll_epi16(Integers a, __m128i count) {
    return {{_mm256_sll_epi16(a.half[0], count), _mm256_sll_epi16(a.half[1], count)}};
}
inline Integers mm512_srai_epi32(Integers a, unsigned count) {
    return {
        {_mm256_srai_epi32(a.half[0], static_cast<int>(count)), _mm256_srai_epi32(a.half[1], static_cast<int>(count))}};
}
inline Integers mm512_maskz_max_epi32(__mmask16 mask, Integers a, Integers b) {
    const Integers larger = {{_mm256_max_epi32(a.half[0], b.half[0]), _mm256_max_epi32(a.half[1], b.half[1])}};
    return choose<int32_t>(mask, larger, mm512_setzero_si512());
}
inline Integers mm512_sad_epu8(Integers a, Integers b) {
    return {{_mm256_sad_epu8(a.half[0], b.half[0]), _mm256_sad_epu8(a.half[1], b.half[1])}};
}

// In each group of four 32-bit lanes, as in AVX2's of 128 bits.
inline Integers mm512_unpacklo_epi32(Integers a, Integers b) {
    return {{_mm256_unpacklo_epi32(a.half[0], b.half[0]), _mm256_unpacklo_epi32(a.half[1], b.half[1])}};
}
inline Integers mm512_unpackhi_epi32(Integers a, Integers b) {
    return {{_mm256_unpackhi_epi32(a.half[0], b.half[0]), _mm256_unpackhi_epi32(a.half[1], b.half[1])}};
}
inline Integers mm512_unpacklo_epi64(Integers a, Integers b) {
    return {{_mm256_unpacklo_epi64(a.half[0], b.half[0]), _mm256_unpacklo_epi64(a.half[1], b.half[1])}};
}
inline Integers mm512_unpackhi_epi64(Integers a, Integers b) {
    return {{_mm256_unpackhi_epi64(a.half[0], b.half[0]), _mm256_unpackhi_epi64(a.half[1], b.half[1])}};
}

// Bytes of a, unsigned, times bytes of b, signed: four products to each lane of the sum, modular. AVX2 has one that
// saturates at 16 bits, so bytes are widened first.
inline __m256i add_byte_products(__m256i sum, __m256i a, __m256i b) {
    const __m256i low_byte = _mm256_set1_epi16(0xff);
    const __m256i even =
        _mm256_madd_epi16(_mm256_and_si256(a, low_byte), _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}
inline Integers mm512_dpbusd_epi32(Integers sum, Integers a, Integers b) {
    return {
        {add_byte_products(sum.half[0], a.half[0], b.half[0]), add_byte_products(sum.half[1], a.half[1], b.half[1])}};
}

inline Integers mm512_popcnt_epi64(Integers a) {
    Lanes<uint64_t, Integers> lanes(a);
    for (uint64_t& lane : lanes.at) lane = static_cast<uint64_t>(__builtin_popcountll(lane));
    return lanes.vector();
}

inline long long mm512_reduce_add_epi64(Integers a) {
    uint64_t sum = 0;
    for (const uint64_t lane : Lanes<uint64_t, Integers>(a).at) sum += lane;
    return static_cast<long long>(sum);
}

// The low halves.
inline __m256i mm512_cvtepi64_epi32(Integers a) {
    const Lanes<uint64_t, Integers> lanes(a);
    Lanes<uint32_t, __m256i> to;
    for (int i = 0; i < 8; ++i) to.at[i] = static_cast<uint32_t>(lanes.at[i]);
    return to.vector();
}

// The low byte of each lane that the mask has.
inline void mm512_mask_cvtepi32_storeu_epi8(void* to, __mmask16 mask, Integers a) {
    const Lanes<uint32_t, Integers> lanes(a);
    Lanes<uint8_t, __m128i> bytes;
    for (int i = 0; i < 16; ++i) bytes.at[i] = static_cast<uint8_t>(lanes.at[i]);
    store_some<uint8_t>(to, mask, bytes.vector());
}

inline __mmask64 mm512_test_epi8_mask(Integers a, Integers b) {
    const Lanes<uint8_t, Integers> lanes(mm512_and_si512(a, b));
    __mmask64 mask = 0;
    for (int i = 0; i < 64; ++i) mask |= static_cast<__mmask64>(lanes.at[i] != 0) << i;
    return mask;
}

// Bytes of a by the low six bits of each index.
inline Integers mm512_permutexvar_epi8(Integers index, Integers a) {
    const Lanes<uint8_t, Integers> from(index), bytes(a);
    Lanes<uint8_t, Integers> to;
    for (int i = 0; i < 64; ++i) to.at[i] = bytes.at[from.at[i] & 63];
    return to.vector();
}

// Byte by byte of each 64-bit lane: the eight bits of the lane of `a` that start where the index says, round and round.
inline Integers mm512_multishift_epi64_epi8(Integers index, Integers a) {
    const Lanes<uint8_t, Integers> from(index);
    const Lanes<uint64_t, Integers> lanes(a);
    Lanes<uint8_t, Integers> to;
    for (int i = 0; i < 64; ++i) {
        const unsigned by = from.at[i] & 63;
        const uint64_t lane = lanes.at[i / 8];
        to.at[i] = static_cast<uint8_t>(lane >> by | lane << (-by & 63));
    }
    return to.vector();
}

}  // namespace twins
}  // namespace spos
