// The body of lowbit_body.h for AVX-512 with VNNI, VBMI and VPOPCNTDQ.
#if defined(__x86_64__)

#include "core/simd_avx512.h"
#include "core/transpose.h"
#include "cpu/lowbit_bits.inl"
#include "cpu/lowbit_dots.inl"
#include "cpu/lowbit_parts.inl"

namespace spos {
namespace {

struct LowbitAvx512 {
    static constexpr int lanes = 16, panel = 4, bit_lanes = 8, bit_panel = 4, bit_tile_rows = 6;
    static constexpr bool saturates = false;
    static constexpr int tile_rows(int vectors) { return vectors == 4 ? 6 : 8; }
    using Sum = __m512i;
    using Bytes = __m512i;

    static Sum zero() { return _mm512_setzero_si512(); }
    static Sum load(const int32_t* from) { return _mm512_loadu_si512(from); }
    static void store(int32_t* to, Sum value) { _mm512_storeu_si512(to, value); }
    static Bytes bytes(const int8_t* from) { return _mm512_loadu_si512(from); }
    static Bytes quad(const uint8_t* from) {
        int32_t four;
        std::memcpy(&four, from, sizeof four);
        return _mm512_set1_epi32(four);
    }
    template <bool>
    static Sum dot(Sum sum, Bytes a, Bytes b) {
        return _mm512_dpbusd_epi32(sum, a, b);
    }
    using Counts = __m512i;
    static Counts no_counts() { return _mm512_setzero_si512(); }
    static Counts twice(Counts value) { return _mm512_add_epi64(value, value); }
    static Counts words(const uint64_t* from) { return _mm512_loadu_si512(from); }
    static Counts word(const uint64_t* from) { return _mm512_set1_epi64(static_cast<int64_t>(*from)); }
    static Counts count(Counts sum, Counts a, Counts b) {
        return _mm512_add_epi64(sum, _mm512_popcnt_epi64(_mm512_and_si512(a, b)));
    }
    static void store_counts(int32_t* to, Counts value) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi64_epi32(value));
    }

    // 64 codes from 8 * bits bytes: each 64-bit lane gets the bytes of its eight codes, of which a shift takes each.
    struct Unpacker {
        __m512i gather, shifts, mask;
        explicit Unpacker(int bits) {
            alignas(64) uint8_t from[64], by[64];
            for (int i = 0; i < 64; ++i) {
                from[i] = static_cast<uint8_t>(i / 8 * bits + i % 8);
                by[i] = static_cast<uint8_t>(i % 8 * bits);
            }
            gather = _mm512_load_si512(from);
            shifts = _mm512_load_si512(by);
            mask = _mm512_set1_epi8(static_cast<char>((1 << bits) - 1));
        }
        __m512i operator()(__m512i packed) const {
            const __m512i lanes = _mm512_permutexvar_epi8(gather, packed);
            return _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, lanes), mask);
        }
    };
    static __mmask64 first(int64_t count) { return count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1; }

    // Squares of 16 rows x 16 groups of four codes, unpacked in registers and turned round as if they were floats. A
    // step's columns are written together, so that the lines follow each other, and asked for before.
    static void pack(const PackedRows& rows, int64_t n0, int64_t count, int vectors, SignedCodes how, uint8_t*,
                     int8_t* to) {
        const Unpacker unpacker(rows.bits);
        const __m512i less = _mm512_set1_epi8(static_cast<char>(how.less));
        const __m128i shift =
            _mm_cvtsi32_si128(how.shift);  // codes of eight bits are not shifted: none meets its neighbour
        const int64_t steps = (rows.k + 3) / 4, width = int64_t{vectors} * lanes * 4, group = 8 * rows.bits;
        for (int64_t step = 0; step < steps; step += 16) {
            const int64_t offset = step / 16 * group, some = std::min<int64_t>(16, steps - step);
            // These rows' own bytes: they may be a part of longer ones, and end with the memory.
            const __mmask64 there = first(std::min(group, packed_bytes(rows.k, rows.bits) - offset));
            int8_t* const lines = to + step * width;
            for (int64_t line = 0; line < 16 * width; line += 64) __builtin_prefetch(lines + 16 * width + line, 1);
            for (int vector = 0; vector < vectors; ++vector) {
                const uint8_t* const from = rows.data + (n0 + vector * lanes) * rows.row_bytes + offset;
                const int64_t there_are = count - vector * lanes;
                __m512 square[16];
                SPOS_UNROLL
                for (int i = 0; i < 16; ++i) {
                    square[i] = _mm512_setzero_ps();
                    if (i >= there_are) continue;
                    const __m512i codes = unpacker(_mm512_maskz_loadu_epi8(there, from + i * rows.row_bytes));
                    square[i] = _mm512_castsi512_ps(_mm512_sub_epi8(_mm512_sll_epi16(codes, shift), less));
                }
                transpose<Avx512F32>(square);
                SPOS_UNROLL
                for (int i = 0; i < 16; ++i)
                    if (i < some) _mm512_storeu_ps(lines + i * width + vector * 64, square[i]);
            }
        }
    }

    // Whole vectors are stored without a mask, which costs much more.
    static void unpack(const uint8_t* from, int64_t count, int bits, uint8_t* to) {
        const Unpacker unpacker(bits);
        for (int64_t i = 0; i < count; i += 64, from += 8 * bits) {
            const __mmask64 there = first(packed_bytes(std::min<int64_t>(64, count - i), bits));
            const __m512i codes = unpacker(_mm512_maskz_loadu_epi8(there, from));
            if (i + 64 <= count)
                _mm512_storeu_si512(to + i, codes);
            else
                _mm512_mask_storeu_epi8(to + i, first(count - i), codes);
        }
    }
    static void planes(const uint8_t* codes, int64_t count, int bits, int64_t words, uint64_t* to) {
        for (int64_t word = 0; word < words; ++word) {
            const __m512i some =
                _mm512_maskz_loadu_epi8(first(std::max<int64_t>(0, count - 64 * word)), codes + 64 * word);
            for (int plane = 0; plane < bits; ++plane)
                to[plane * words + word] = _mm512_test_epi8_mask(some, _mm512_set1_epi8(static_cast<char>(1 << plane)));
        }
    }
    static int32_t sum(const uint8_t* codes, int64_t count) {
        __m512i sums = _mm512_setzero_si512();
        for (int64_t i = 0; i < count; i += 64)
            sums = _mm512_add_epi64(
                sums, _mm512_sad_epu8(_mm512_maskz_loadu_epi8(first(count - i), codes + i), _mm512_setzero_si512()));
        return static_cast<int32_t>(_mm512_reduce_add_epi64(sums));
    }
    static void copy(uint8_t* to, int64_t to_step, const uint8_t* from, int64_t from_step, int64_t pieces,
                     int64_t bytes) {
        if (bytes < 64) return copy_pieces(to, to_step, from, from_step, pieces, bytes);
        for (int64_t piece = 0; piece < pieces; ++piece, to += to_step, from += from_step) {
            for (int64_t i = 0; i + 64 <= bytes; i += 64) _mm512_storeu_si512(to + i, _mm512_loadu_si512(from + i));
            _mm512_storeu_si512(to + bytes - 64, _mm512_loadu_si512(from + bytes - 64));  // the rest, or again
        }
    }

    // Where a byte holds whole codes they are multiplied where they lie in it, as multiples of 2, 4 .. 128, which
    // takes a mask and no shift; a row's codes are put in the order of that: those of every byte's first place, of the
    // second, ..; zeros fill up 64 bytes of weights.
    static bool is_whole(int bits) { return bits == 1 || bits == 2 || bits == 4 || bits == 8; }

    static void spread(const uint8_t* codes, int64_t k, int bits, int8_t* to) {
        if (!is_whole(bits)) {
            std::memset(to + k, 0, static_cast<size_t>((k + 63) / 64 * 64 - k));
            return spread_codes(codes, k, bits, to);
        }
        const int64_t places = 8 / bits, size = (packed_bytes(k, bits) + 63) / 64 * 64;
        std::memset(to, 0, static_cast<size_t>(places * size));
        for (int64_t place = 0; place < places; ++place)
            for (int64_t i = place, byte = 0; i < k; i += places, ++byte)
                to[place * size + byte] = static_cast<int8_t>(codes[i] - 128);
    }

    // Several rows at once, so that the sums of one do not wait for each other.
    static void row(const RowProduct& call) {
        switch (call.weight.bits) {
            case 1:
                return rows_of<1>(call);
            case 2:
                return rows_of<2>(call);
            case 4:
                return rows_of<4>(call);
            case 8:
                return rows_of<8>(call);
            default:
                return rows_of<0>(call);
        }
    }

  private:
    // The sums of the lanes of four vectors. In modular arithmetic: what lies between may be larger than the result.
    static __m128i add_lanes(const __m512i (&of)[4]) {
        const __m512i low = _mm512_add_epi32(_mm512_unpacklo_epi32(of[0], of[1]), _mm512_unpackhi_epi32(of[0], of[1]));
        const __m512i high = _mm512_add_epi32(_mm512_unpacklo_epi32(of[2], of[3]), _mm512_unpackhi_epi32(of[2], of[3]));
        const __m512i each = _mm512_add_epi32(_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high));
        const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(each), _mm512_extracti64x4_epi64(each, 1));
        return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    }

    // The compiler's own form of it copies every sum twice an iteration, a quarter of the time.
    static __m512i add_products(__m512i sum, __m512i a, __m512i b) {
#if defined(SPOS_AVX512_TWINS)
        return _mm512_dpbusd_epi32(sum, a, b);
#else
        asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
        return sum;
#endif
    }

    template <int Bits>
    static void rows_of(const RowProduct& call) {
        constexpr int most = Bits >= 4 ? 8 : 4;  // 16 sums in registers, or all 32 of 1 bit
        int64_t n = call.first;
        for (; n + most <= call.end; n += most) row_of<most, Bits>(call, n);
        for (; n + 4 <= call.end; n += 4) row_of<4, Bits>(call, n);
        for (; n < call.end; ++n) row_of<1, Bits>(call, n);
    }

    // Bits: 0 for those of which a byte holds no whole number.
    template <int Rows, int Bits>
    static void row_of(const RowProduct& call, int64_t n) {
        constexpr int places = Bits ? 8 / Bits : 1;
        constexpr int64_t ahead = Rows > 4 ? 8192 : 4096;  // rows are too short to be seen where they lead
        const int bits = call.weight.bits;
        const int64_t row_bytes = call.weight.row_bytes, bytes = packed_bytes(call.weight.k, bits);
        const int64_t step = Bits ? 64 : 8 * bits, a_step = (bytes + 63) / 64 * 64;
        const Unpacker unpacker(bits);
        const uint8_t* const from = call.weight.data + n * row_bytes;
        __m512i sum[Rows][places];
        SPOS_UNROLL
        for (int r = 0; r < Rows; ++r) {
            SPOS_UNROLL
            for (int place = 0; place < places; ++place) sum[r][place] = _mm512_setzero_si512();
        }
        const int8_t* a = call.a;
        const auto multiply = [&](int64_t at, __mmask64 there) {
            __m512i packed[Rows];
            SPOS_UNROLL
            for (int r = 0; r < Rows; ++r) {
                __builtin_prefetch(from + r * row_bytes + at + ahead);
                packed[r] = _mm512_maskz_loadu_epi8(there, from + r * row_bytes + at);
            }
            if constexpr (Bits == 0) {
                const __m512i codes = _mm512_loadu_si512(a);
                SPOS_UNROLL
                for (int r = 0; r < Rows; ++r) sum[r][0] = add_products(sum[r][0], unpacker(packed[r]), codes);
            } else {
                SPOS_UNROLL
                for (int place = 0; place < places; ++place) {
                    const __m512i codes = _mm512_loadu_si512(a + place * a_step);
                    const __m512i mask = _mm512_set1_epi8(static_cast<char>(((1 << Bits) - 1) << place * Bits));
                    SPOS_UNROLL
                    for (int r = 0; r < Rows; ++r)
                        sum[r][place] = add_products(sum[r][place],
                                                     Bits == 8 ? packed[r] : _mm512_and_si512(packed[r], mask), codes);
                }
            }
            a += 64;
        };
        int64_t at = 0;
        for (; at + step <= bytes; at += step) multiply(at, ~uint64_t{0} >> (64 - step));
        if (at < bytes) multiply(at, first(bytes - at));
        SPOS_UNROLL
        for (int r = 0; r < Rows; r += 4) {
            __m512i all[4];
            SPOS_UNROLL
            for (int i = 0; i < 4; ++i) {
                all[i] = r + i < Rows ? sum[(r + i) % Rows][0] : _mm512_setzero_si512();
                SPOS_UNROLL
                for (int place = 1; place < places; ++place)  // whole multiples
                    all[i] = _mm512_add_epi32(all[i], _mm512_srai_epi32(sum[(r + i) % Rows][place], place * Bits));
            }
            const __mmask8 some = (1 << std::min(Rows - r, 4)) - 1;
            const __m128i sums = _mm_maskz_loadu_epi32(some, call.sums + n + r);
            _mm_mask_storeu_epi32(call.to + n + r, some, _mm_add_epi32(add_lanes(all), _mm_slli_epi32(sums, 7)));
        }
    }
};

}  // namespace

LowbitBody lowbit_body_avx512vnni() { return make_lowbit_body<LowbitAvx512>(); }

}  // namespace spos

#endif
