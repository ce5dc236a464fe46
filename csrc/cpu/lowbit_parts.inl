// What surrounds the products of low-bit operations: plain loops that the compiler turns into each instruction set's
// vectors, included by the per-instruction-set files.
#pragma once

#include <algorithm>
#include <cstring>

#include "cpu/lowbit_body.h"
#include "cpu/lowbit_finish.inl"

namespace spos {
namespace {

// Code by code, for every instruction set; reads no byte behind the row's last.
inline void unpack_codes(const uint8_t* from, int64_t count, int bits, uint8_t* to) {
    const int64_t bytes = packed_bytes(count, bits);
    const unsigned mask = (1u << bits) - 1;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t bit = i * bits, byte = bit / 8;
        const unsigned two = from[byte] | (byte + 1 < bytes ? from[byte + 1] << 8 : 0);
        to[i] = static_cast<uint8_t>(two >> bit % 8 & mask);
    }
}

inline void planes_of_codes(const uint8_t* codes, int64_t count, int bits, int64_t words, uint64_t* to) {
    std::fill(to, to + bits * words, uint64_t{0});
    for (int64_t i = 0; i < count; ++i)
        for (int plane = 0; plane < bits; ++plane)
            to[plane * words + i / 64] |= static_cast<uint64_t>(codes[i] >> plane & 1) << i % 64;
}

inline int32_t sum_codes(const uint8_t* codes, int64_t count) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += codes[i];
    return sum;
}

inline void copy_pieces(uint8_t* to, int64_t to_step, const uint8_t* from, int64_t from_step, int64_t pieces,
                        int64_t bytes) {
    for (int64_t i = 0; i < pieces; ++i)
        std::memcpy(to + i * to_step, from + i * from_step, static_cast<size_t>(bytes));
}

inline void depthwise_tap(const uint8_t* a, int zero, const int32_t* w, int64_t channels, int32_t* acc) {
    for (int64_t c = 0; c < channels; ++c) acc[c] += (a[c] - zero) * w[c];
}

inline void spread_codes(const uint8_t* codes, int64_t k, int, int8_t* to) {
    for (int64_t i = 0; i < k; ++i) to[i] = static_cast<int8_t>(codes[i] - 128);
}

inline void row_product(const RowProduct& call) {
    constexpr int64_t chunk = 512;
    uint8_t codes[chunk];
    for (int64_t n = call.first; n < call.end; ++n) {
        const uint8_t* const from = call.weight.data + n * call.weight.row_bytes;
        uint32_t sum = 0;  // modular: what lies between may be larger than the result
        for (int64_t k = 0; k < call.weight.k; k += chunk) {
            const int64_t count = std::min(chunk, call.weight.k - k);
            unpack_codes(from + k * call.weight.bits / 8, count, call.weight.bits, codes);
            for (int64_t i = 0; i < count; ++i) sum += static_cast<uint32_t>(call.a[k + i] * codes[i]);
        }
        call.to[n] = static_cast<int32_t>(sum + 128 * static_cast<uint32_t>(call.sums[n]));
    }
}

// What an instruction set without its own way to do it takes.
struct LowbitScalarParts {
    static constexpr int bit_lanes = 1, bit_panel = 2, bit_tile_rows = 2;

    using Counts = uint64_t;
    static Counts no_counts() { return 0; }
    static Counts twice(Counts value) { return 2 * value; }
    static Counts words(const uint64_t* from) { return *from; }
    static Counts word(const uint64_t* from) { return *from; }
    static Counts count(Counts sum, Counts a, Counts b) {
        return sum + static_cast<uint64_t>(__builtin_popcountll(a & b));
    }
    static void store_counts(int32_t* to, Counts value) { *to = static_cast<int32_t>(value); }

    static void unpack(const uint8_t* from, int64_t count, int bits, uint8_t* to) {
        unpack_codes(from, count, bits, to);
    }
    static void planes(const uint8_t* codes, int64_t count, int bits, int64_t words, uint64_t* to) {
        planes_of_codes(codes, count, bits, words, to);
    }
    static int32_t sum(const uint8_t* codes, int64_t count) { return sum_codes(codes, count); }
    static void copy(uint8_t* to, int64_t to_step, const uint8_t* from, int64_t from_step, int64_t pieces,
                     int64_t bytes) {
        copy_pieces(to, to_step, from, from_step, pieces, bytes);
    }
    static void row(const RowProduct& call) { row_product(call); }
    static void spread(const uint8_t* codes, int64_t k, int bits, int8_t* to) { spread_codes(codes, k, bits, to); }
};

template <class V>
LowbitBody make_lowbit_body() {
    return {V::lanes,
            V::panel,
            24,  // a multiple of every tile's rows
            V::bit_lanes,
            V::bit_panel,
            V::pack,
            dots<V>,
            pack_bits<V>,
            bits<V>,
            V::row,
            V::spread,
            V::unpack,
            V::planes,
            V::sum,
            V::copy,
            depthwise_tap,
            lowbit_float_body<float>(),
            lowbit_float_body<double>()};
}

}  // namespace
}  // namespace spos
