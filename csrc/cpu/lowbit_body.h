// The parts of products of small unsigned integers, packed or not: plain data shared by the instruction sets' bodies
// and their callers, no code. Codes are unsigned: of activations 0 .. 2^a_bits - 1, of weights 0 .. 2^w_bits - 1, 1 to
// 8 bits.
//
// A packed row is a stream of bits, dense: code i of a row takes the bits i * bits and up, lowest first, and a row ends
// with a whole byte.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/isa.h"

namespace spos {

constexpr int64_t spread_size(int64_t k) { return (k + 63) / 64 * 64 + 7 * 64; }
constexpr int64_t packed_bytes(int64_t codes, int bits) { return (codes * bits + 7) / 8; }

// C[m, n] (+)= sum over k of A[m, k] * B[k, n] for one panel of columns; A unsigned bytes, B signed ones. A row of A
// lies in pieces, one a tap, anywhere.
struct DotProduct {
    int64_t m, taps, steps;   // steps: a tap's k / 4, rounded up
    const uint8_t* const* a;  // [tap][row], a_tap apart: the places of 4 * steps bytes, less `at`
    int64_t a_tap, at;
    const int8_t* b;  // by pack_dots
    int vectors;
    int32_t* c;  // rows of vectors * lanes elements, c_m apart
    int64_t c_m;
    bool large;  // two neighbouring products may not fit 16 bits with a sign
};

// C[m, n] = sum over planes i, j of 2^(i + j) * popcount(A_i[m] & B_j[n]) for one panel of columns.
struct BitProduct {
    int64_t m, taps, words;  // a tap's channels are words * 64 bits, zeros at the end
    int a_planes, b_planes;
    const uint64_t* a;  // rows of [tap][plane][word], a_m words apart
    int64_t a_m;
    const uint64_t* b;  // by pack_bits
    int vectors;
    int32_t* c;
    int64_t c_m;
};

// Rows of packed weights, of which a panel is made.
struct PackedRows {
    const uint8_t* data;
    int64_t row_bytes, k;
    int bits;
    int64_t taps = 1;  // k = taps * channels; only bit planes ask
};

// One row of codes by many packed rows: to[n] = sum over k of a[k] * w[n, k].
struct RowProduct {
    const int8_t* a;  // codes less 128, in the order of spread
    PackedRows weight;
    const int32_t* sums;  // of a row's codes
    int64_t first, end;   // the rows to do
    int32_t* to;          // [n]
};

// float32 numbers by which codes are guessed from S alone: t = float(S) * scale[n] + bias[n] is within margin[n] of
// y / out_scale wherever that is less than a step outside of the codes' range, so that t gives the code unless it is as
// near as that to a tie.
struct LowbitGuess {
    const float* scale;
    const float* bias;
    const float* margin;
};

// What becomes of sums of products: S = (acc << shift) + row_sum * row_factor[n] + offset[n], exactly, and of that
//     y = Real(S) * multiplier[n] + bias[n] + residual, then max(., 0) if relu,
//     code = clamp(round(y / out_scale) + out_zero, 0, out_most), half to even, NaN to 0,
// each operation rounded by itself to Real, float or double, so that every instruction set agrees to the bit. Vectors
// by columns; null: not there, or not wanted.
template <typename Real>
struct LowbitFinish {
    int shift;
    bool wide;   // S may exceed 32 bits
    bool plain;  // S = acc
    const int32_t* row_factor;
    const int64_t* offset;
    const int32_t* low_offset;  // the lower half of offset
    const Real* multiplier;
    const Real* bias;
    bool relu;
    const Real* residual;
    const uint8_t* residual_codes;  // instead: residual_scale * (code - residual_zero)
    Real residual_scale;
    int residual_zero;
    int64_t* sums;  // S itself
    Real* y;
    uint8_t* codes;
    Real out_scale;
    int out_zero, out_most;
    LowbitGuess guess;  // null: codes are made by the definition alone
};

// Rows of accumulators for columns first .. first + count - 1, and where a row lies in the outputs.
struct FinishRows {
    int64_t rows, first, count;
    const int32_t* acc;  // rows acc_m apart, of `count` elements
    int64_t acc_m;
    const int32_t* row_sums;
    int64_t at, stride;  // of the first row's column 0 in sums, y, codes and residuals; rows stride apart
};

// What is done in floating point.
template <typename Real>
struct LowbitFloatBody {
    // code = clamp(round(x / scale) + zero, 0, most), as above.
    void (*quantize)(const Real* x, int64_t count, Real scale, int zero, int most, uint8_t* to);
    void (*finish)(const LowbitFinish<Real>&, const FinishRows&);
    // The same for weights with scales of groups of k: line[row][c] (+)= Real(S) * multiplier[c], of which
    // finish_lines makes y.
    void (*add_scaled)(const LowbitFinish<Real>&, const FinishRows&, Real* lines, bool start);
    void (*finish_lines)(const LowbitFinish<Real>&, const FinishRows&, Real* lines);
};

// Codes as signed bytes: (code << shift) - less.
struct SignedCodes {
    int shift, less;
};

struct LowbitBody {
    int lanes;     // columns of a vector of dot products
    int panel;     // vectors of a panel
    int dot_rows;  // c of `dots` has room for a multiple of so many rows, and b can be read up to a multiple of 64 k
    int bit_lanes, bit_panel;
    // Rows n0 .. n0 + count - 1 as columns, filled up with anything to `vectors`: [k / 4][column][4].
    void (*pack_dots)(const PackedRows&, int64_t n0, int64_t count, int vectors, SignedCodes, uint8_t* scratch,
                      int8_t* to);
    void (*dots)(const DotProduct&);
    // The same as bit planes: [plane][tap][word][column].
    void (*pack_bits)(const PackedRows&, int64_t n0, int64_t count, int vectors, uint8_t* scratch, uint64_t* to);
    void (*bits)(const BitProduct&);
    void (*row)(const RowProduct&);
    // A row's codes less 128 in the order in which `row` meets the weights' of that many bits; spread_size(k) bytes.
    void (*spread)(const uint8_t* codes, int64_t k, int bits, int8_t* to);
    void (*unpack)(const uint8_t* from, int64_t count, int bits, uint8_t* to);
    // Bit plane p of `count` codes to to[p * words ..], zeros at the end.
    void (*planes)(const uint8_t* codes, int64_t count, int bits, int64_t words, uint64_t* to);
    int32_t (*sum)(const uint8_t* codes, int64_t count);
    // Pieces of `bytes`, from_step apart, to places to_step apart.
    void (*copy)(uint8_t* to, int64_t to_step, const uint8_t* from, int64_t from_step, int64_t pieces, int64_t bytes);
    // acc[c] += (a[c] - zero) * w[c]
    void (*depthwise)(const uint8_t* a, int zero, const int32_t* w, int64_t channels, int32_t* acc);
    LowbitFloatBody<float> in_float;
    LowbitFloatBody<double> in_double;

    template <typename Real>
    const LowbitFloatBody<Real>& in() const {
        if constexpr (std::is_same_v<Real, float>)
            return in_float;
        else
            return in_double;
    }
};

LowbitBody lowbit_body_avx512amx();
LowbitBody lowbit_body_avx512vnni();
LowbitBody lowbit_body_avx2();

// The body for `isa`: avx512 takes VNNI, VBMI and VPOPCNTDQ where the processor has all of them, else what avx2 takes;
// amx has them.
LowbitBody lowbit_body(Isa isa);

}  // namespace spos
