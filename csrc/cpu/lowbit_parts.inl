// What surrounds the products of low-bit operations: plain loops that the compiler turns into each instruction set's
// vectors, included by the per-instruction-set files.
//
// Order     Float operations are written one by one and compiled without contraction: the results have the same bits
//           everywhere.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cpu/lowbit_body.h"

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

// The float nearest to an integer, half to even, for numbers of at most some thousand.
inline float nearest(float value) {
    constexpr float large = 12582912;  // 1.5 * 2^23: its last digit is one
    return (value + large) - large;
}

inline uint8_t code_of(float value, float scale, float low, float high, float zero) {
    const float steps = value / scale;
    const float above = steps > low ? steps : low;  // NaN becomes low
    return static_cast<uint8_t>(static_cast<int32_t>(nearest(above < high ? above : high) + zero));
}

inline void quantize_floats(const float* x, int64_t count, float scale, int zero, int most, uint8_t* to) {
    const float low = static_cast<float>(-zero), high = static_cast<float>(most - zero);
    for (int64_t i = 0; i < count; ++i) to[i] = code_of(x[i], scale, low, high, static_cast<float>(zero));
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

constexpr int64_t finish_width = 64;  // columns at a time, in L1

// S of one row times the multiplier, and the bias, as floats. S is made in modular 32 bits unless it may be wider.
template <bool Wide, bool Factor>
inline void scaled_sums(const LowbitFinish& how, const int32_t* acc, int32_t row_sum, int64_t first, int64_t count,
                        int64_t at, float* line) {
    using S = std::conditional_t<Wide, int64_t, int32_t>;
    using U = std::make_unsigned_t<S>;
    const auto exact = [&](int64_t c) {
        U sum = static_cast<U>(static_cast<S>(acc[c])) << how.shift;
        if (Factor)
            sum += static_cast<U>(static_cast<S>(row_sum)) * static_cast<U>(static_cast<S>(how.row_factor[first + c]));
        const S offset = Wide ? static_cast<S>(how.offset[first + c]) : static_cast<S>(how.low_offset[first + c]);
        return static_cast<S>(sum + static_cast<U>(offset));
    };
    if (!how.multiplier) {
        for (int64_t c = 0; c < count; ++c) how.sums[at + first + c] = exact(c);
        return;
    }
    const float* const multiplier = how.multiplier + first;
    for (int64_t c = 0; c < count; ++c) line[c] = static_cast<float>(exact(c)) * multiplier[c];
}

inline void scaled_sums_of_row(const LowbitFinish& how, const FinishRows& rows, int64_t row, int64_t from,
                               int64_t count, float* line) {
    const int32_t* const acc = rows.acc + row * rows.acc_m + from;
    const int32_t row_sum = how.row_factor ? rows.row_sums[row] : 0;
    const int64_t first = rows.first + from, at = rows.at + row * rows.stride;
    if (how.wide)
        how.row_factor ? scaled_sums<true, true>(how, acc, row_sum, first, count, at, line)
                       : scaled_sums<true, false>(how, acc, row_sum, first, count, at, line);
    else
        how.row_factor ? scaled_sums<false, true>(how, acc, row_sum, first, count, at, line)
                       : scaled_sums<false, false>(how, acc, row_sum, first, count, at, line);
}

// What follows S times its multiplier, for columns `first` and up; `at`: where the row lies.
inline void finish_line(const LowbitFinish& how, int64_t first, int64_t count, int64_t at, float* line) {
    if (how.bias)
        for (int64_t c = 0; c < count; ++c) line[c] = line[c] + how.bias[first + c];
    if (how.residual)
        for (int64_t c = 0; c < count; ++c) line[c] = line[c] + how.residual[at + first + c];
    if (how.residual_codes)
        for (int64_t c = 0; c < count; ++c)
            line[c] = line[c] +
                      how.residual_scale * static_cast<float>(how.residual_codes[at + first + c] - how.residual_zero);
    if (how.relu && (how.y || how.out_zero))  // codes from 0 up are what ReLU leaves
        for (int64_t c = 0; c < count; ++c) line[c] = line[c] < 0 ? 0 : line[c];
    if (how.y) std::copy(line, line + count, how.y + at + first);
    if (how.codes) quantize_floats(line, count, how.out_scale, how.out_zero, how.out_most, how.codes + at + first);
}

// The whole of it in registers, for what most calls want: one kind of result, nothing added but a bias.
template <bool Factor, bool Bias, bool Codes>
inline void finish_plain(const LowbitFinish& how, const FinishRows& rows) {
    const float low = static_cast<float>(-how.out_zero), high = static_cast<float>(how.out_most - how.out_zero);
    const float scale = how.out_scale, zero = static_cast<float>(how.out_zero);
    const int shift = how.shift;
    const int64_t count = rows.count;  // bytes that are written might be those of rows
    const int32_t* __restrict const factor = how.row_factor + (Factor ? rows.first : 0);
    const int32_t* __restrict const offset = how.low_offset + rows.first;
    const float* __restrict const multiplier = how.multiplier + rows.first;
    const float* __restrict const bias = how.bias + (Bias ? rows.first : 0);
    for (int64_t row = 0; row < rows.rows; ++row) {
        const int32_t* __restrict const acc = rows.acc + row * rows.acc_m;
        const int64_t at = rows.at + row * rows.stride + rows.first;
        const uint32_t row_sum = Factor ? static_cast<uint32_t>(rows.row_sums[row]) : 0;
        const auto value = [&](int64_t c) {
            uint32_t sum = static_cast<uint32_t>(acc[c]) << shift;
            if (Factor) sum += row_sum * static_cast<uint32_t>(factor[c]);
            const float scaled =
                static_cast<float>(static_cast<int32_t>(sum + static_cast<uint32_t>(offset[c]))) * multiplier[c];
            return Bias ? scaled + bias[c] : scaled;
        };
        if (Codes) {
            uint8_t* __restrict const to = how.codes + at;
            for (int64_t c = 0; c < count; ++c) to[c] = code_of(value(c), scale, low, high, zero);
        } else {
            float* __restrict const to = how.y + at;
            for (int64_t c = 0; c < count; ++c) to[c] = value(c);
        }
    }
}

inline bool is_plain(const LowbitFinish& how) {
    if (how.wide || !how.multiplier || how.residual || how.residual_codes || (how.y && how.codes)) return false;
    return !how.relu || (how.codes && how.out_zero == 0);  // whose codes from 0 up are what ReLU leaves
}

inline void finish_rows(const LowbitFinish& how, const FinishRows& rows) {
    if (is_plain(how)) {
        const auto run = [&](auto factor, auto bias) {
            how.codes ? finish_plain<factor.value, bias.value, true>(how, rows)
                      : finish_plain<factor.value, bias.value, false>(how, rows);
        };
        if (how.row_factor)
            how.bias ? run(std::true_type{}, std::true_type{}) : run(std::true_type{}, std::false_type{});
        else
            how.bias ? run(std::false_type{}, std::true_type{}) : run(std::false_type{}, std::false_type{});
        return;
    }
    float line[finish_width];
    for (int64_t row = 0; row < rows.rows; ++row)
        for (int64_t from = 0; from < rows.count; from += finish_width) {
            const int64_t count = std::min(finish_width, rows.count - from);
            scaled_sums_of_row(how, rows, row, from, count, line);
            if (how.multiplier) finish_line(how, rows.first + from, count, rows.at + row * rows.stride, line);
        }
}

inline void add_scaled_rows(const LowbitFinish& how, const FinishRows& rows, float* lines, bool start) {
    float line[finish_width];
    for (int64_t row = 0; row < rows.rows; ++row)
        for (int64_t from = 0; from < rows.count; from += finish_width) {
            const int64_t count = std::min(finish_width, rows.count - from);
            scaled_sums_of_row(how, rows, row, from, count, line);
            float* const to = lines + row * rows.acc_m + from;
            if (start)
                std::copy(line, line + count, to);
            else
                for (int64_t c = 0; c < count; ++c) to[c] = to[c] + line[c];
        }
}

inline void finish_line_rows(const LowbitFinish& how, const FinishRows& rows, float* lines) {
    for (int64_t row = 0; row < rows.rows; ++row)
        finish_line(how, rows.first, rows.count, rows.at + row * rows.stride, lines + row * rows.acc_m);
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
    return {V::lanes, V::panel,      V::bit_lanes, V::bit_panel,    V::pack,         dots<V>, pack_bits<V>,
            bits<V>,  V::row,        V::spread,    V::unpack,       V::planes,       V::sum,  quantize_floats,
            V::copy,  depthwise_tap, finish_rows,  add_scaled_rows, finish_line_rows};
}

}  // namespace
}  // namespace spos
