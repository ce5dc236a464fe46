// The vectors and masks of AVX-512 as pairs of AVX2 registers, and what reads and writes them. The functions here and
// in floats.h and integers.h are named like Intel's intrinsics, without the first underscore, and do what the Intel 64
// and IA-32 Architectures Software Developer's Manual says of their instructions: to the bit, except which NaN a NaN
// is. Memory of lanes that a mask leaves out is not touched; an address that has to be aligned and is not ends the
// process.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace spos {
namespace twins {

struct alignas(64) Floats {
    __m256 half[2];
};
struct alignas(64) Doubles {
    __m256d half[2];
};
struct alignas(64) Integers {
    __m256i half[2];
};

// A vector's lanes, lowest first.
template <typename T, typename Vector>
struct Lanes {
    static constexpr int count = static_cast<int>(sizeof(Vector) / sizeof(T));
    T at[count];

    Lanes() = default;
    explicit Lanes(const Vector& from) { std::memcpy(at, &from, sizeof at); }
    Vector vector() const {
        Vector to;
        std::memcpy(&to, at, sizeof at);
        return to;
    }
};

template <typename T, typename Vector>
Vector read(const void* from) {
    Vector to;
    std::memcpy(&to, from, sizeof to);
    return to;
}

inline bool has(uint64_t mask, int lane) { return (mask >> lane & 1) != 0; }

inline void require_aligned(const void* address, const char* intrinsic) {
    if (reinterpret_cast<uintptr_t>(address) % 64 == 0) return;
    std::fprintf(stderr, "%s: address %p is no multiple of 64\n", intrinsic, address);
    std::abort();
}

// Lanes of `yes` where the mask has a bit, else of `no`.
template <typename T, typename Vector>
Vector choose(uint64_t mask, const Vector& yes, const Vector& no) {
    const Lanes<T, Vector> a(yes), b(no);
    Lanes<T, Vector> to;
    for (int i = 0; i < to.count; ++i) to.at[i] = has(mask, i) ? a.at[i] : b.at[i];
    return to.vector();
}

template <typename T, typename Vector>
Vector load_some(uint64_t mask, const void* from) {
    Lanes<T, Vector> to;
    for (int i = 0; i < to.count; ++i) {
        to.at[i] = 0;
        if (has(mask, i)) std::memcpy(&to.at[i], static_cast<const char*>(from) + i * sizeof(T), sizeof(T));
    }
    return to.vector();
}

template <typename T, typename Vector>
void store_some(void* to, uint64_t mask, const Vector& value) {
    const Lanes<T, Vector> lanes(value);
    for (int i = 0; i < lanes.count; ++i)
        if (has(mask, i)) std::memcpy(static_cast<char*>(to) + i * sizeof(T), &lanes.at[i], sizeof(T));
}

inline Floats mm512_loadu_ps(const void* from) { return read<float, Floats>(from); }
inline Doubles mm512_loadu_pd(const void* from) { return read<double, Doubles>(from); }
inline Integers mm512_loadu_si512(const void* from) { return read<int64_t, Integers>(from); }
inline Integers mm512_load_si512(const void* from) {
    require_aligned(from, "_mm512_load_si512");
    return mm512_loadu_si512(from);
}
inline void mm512_storeu_ps(void* to, Floats value) { std::memcpy(to, &value, sizeof value); }
inline void mm512_storeu_pd(void* to, Doubles value) { std::memcpy(to, &value, sizeof value); }
inline void mm512_storeu_si512(void* to, Integers value) { std::memcpy(to, &value, sizeof value); }
inline void mm512_stream_ps(void* to, Floats value) {
    require_aligned(to, "_mm512_stream_ps");
    mm512_storeu_ps(to, value);
}

inline Floats mm512_maskz_loadu_ps(__mmask16 mask, const void* from) { return load_some<float, Floats>(mask, from); }
inline Integers mm512_maskz_loadu_epi8(__mmask64 mask, const void* from) {
    return load_some<uint8_t, Integers>(mask, from);
}
inline __m128i mm_maskz_loadu_epi32(__mmask8 mask, const void* from) { return load_some<int32_t, __m128i>(mask, from); }
inline void mm512_mask_storeu_ps(void* to, __mmask16 mask, Floats value) { store_some<float>(to, mask, value); }
inline void mm512_mask_storeu_epi8(void* to, __mmask64 mask, Integers value) { store_some<uint8_t>(to, mask, value); }
inline void mm_mask_storeu_epi32(void* to, __mmask8 mask, __m128i value) { store_some<int32_t>(to, mask, value); }

inline Floats mm512_setzero_ps() { return {{_mm256_setzero_ps(), _mm256_setzero_ps()}}; }
inline Doubles mm512_setzero_pd() { return {{_mm256_setzero_pd(), _mm256_setzero_pd()}}; }
inline Integers mm512_setzero_si512() { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
inline Floats mm512_set1_ps(float value) { return {{_mm256_set1_ps(value), _mm256_set1_ps(value)}}; }
inline Doubles mm512_set1_pd(double value) { return {{_mm256_set1_pd(value), _mm256_set1_pd(value)}}; }
inline Integers mm512_set1_epi8(char value) { return {{_mm256_set1_epi8(value), _mm256_set1_epi8(value)}}; }
inline Integers mm512_set1_epi32(int value) { return {{_mm256_set1_epi32(value), _mm256_set1_epi32(value)}}; }
inline Integers mm512_set1_epi64(long long value) { return {{_mm256_set1_epi64x(value), _mm256_set1_epi64x(value)}}; }
template <typename... Values>
Integers mm512_setr_epi32(Values... values) {
    static_assert(sizeof...(values) == 16, "sixteen lanes");
    const int32_t lanes[16] = {values...};
    return mm512_loadu_si512(lanes);
}

inline Integers mm512_castps_si512(Floats a) {
    return {{_mm256_castps_si256(a.half[0]), _mm256_castps_si256(a.half[1])}};
}
inline Floats mm512_castsi512_ps(Integers a) {
    return {{_mm256_castsi256_ps(a.half[0]), _mm256_castsi256_ps(a.half[1])}};
}
inline __m256i mm512_castsi512_si256(Integers a) { return a.half[0]; }
template <int Half>
__m256i mm512_extracti64x4_epi64(Integers a) {
    return a.half[Half & 1];
}

}  // namespace twins
}  // namespace spos
