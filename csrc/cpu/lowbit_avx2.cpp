// The avx2 body of lowbit_body.h.
#if defined(__x86_64__)

#include <immintrin.h>

#include "cpu/lowbit_bits.inl"
#include "cpu/lowbit_dots.inl"
#include "cpu/lowbit_parts.inl"

namespace spos {
namespace {

struct LowbitAvx2 : LowbitScalarParts {
    static constexpr int lanes = 8, panel = 2;
    static constexpr bool saturates = true;  // vpmaddubsw, at 16 bits with a sign
    static constexpr int tile_rows(int) { return 3; }
    using Sum = __m256i;
    using Bytes = __m256i;

    static Sum zero() { return _mm256_setzero_si256(); }
    static Sum load(const int32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
    static void store(int32_t* to, Sum value) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value); }
    static Bytes bytes(const int8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
    static Bytes quad(const uint8_t* from) {
        int32_t four;
        std::memcpy(&four, from, sizeof four);
        return _mm256_set1_epi32(four);
    }
    // The highest bit of a apart: two products of 7 bits by 8, or of 128 by 8 bits, fit.
    template <bool Large>
    static Sum dot(Sum sum, Bytes a, Bytes b) {
        if constexpr (!Large) return add_pairs(sum, _mm256_maddubs_epi16(a, b));
        const __m256i low = _mm256_set1_epi8(127);
        sum = add_pairs(sum, _mm256_maddubs_epi16(_mm256_and_si256(a, low), b));
        return add_pairs(sum, _mm256_maddubs_epi16(_mm256_andnot_si256(low, a), b));
    }
    static void pack(const PackedRows& rows, int64_t n0, int64_t count, int vectors, SignedCodes how, uint8_t* scratch,
                     int8_t* to) {
        pack_through<LowbitAvx2>(rows, n0, count, vectors, how, scratch, to);
    }

  private:
    static Sum add_pairs(Sum sum, __m256i products) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
    }
};

}  // namespace

LowbitBody lowbit_body_avx2() { return make_lowbit_body<LowbitAvx2>(); }

}  // namespace spos

#endif
