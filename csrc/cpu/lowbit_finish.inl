// From sums of products to results, and from floats to codes: plain loops that the compiler turns into each instruction
// set's vectors, included by the per-instruction-set files. Real is float or double; LowbitFinish has the formulas.
//
// Order     Operations are written one by one and compiled without contraction: the results have the same bits
//           everywhere.
// Codes     Divisions are dear, and doubles cost twice. So codes are guessed, from y / out_scale as a product with the
//           inverse, or, where nothing but codes is wanted, from S in float32 (LowbitGuess). The guess is right unless
//           what it rounds is nearer to a tie than its error; a piece with such a value, one in some hundreds, is done
//           again by the definition.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "cpu/lowbit_body.h"

// Results lie apart from what they are made of, which the compiler would find out at every row.
#if defined(__clang__)
#define SPOS_NO_ALIAS _Pragma("clang loop vectorize(assume_safety)")
#else
#define SPOS_NO_ALIAS _Pragma("GCC ivdep")
#endif

namespace spos {
namespace {

// The whole number nearest, half to even, for values of at most some thousand.
template <typename Real>
inline Real nearest(Real value) {
    constexpr Real large = sizeof(Real) == 4 ? Real(0x1.8p23) : Real(0x1.8p52);  // its last digit is one
    return (value + large) - large;
}

template <typename Real>
inline uint8_t code_of(Real value, Real scale, Real low, Real high, Real zero) {
    const Real steps = value / scale;
    const Real above = steps > low ? steps : low;  // NaN becomes low
    return static_cast<uint8_t>(static_cast<int32_t>(nearest(above < high ? above : high) + zero));
}

// An integer as wide as Real, for flags beside it in a vector.
template <typename Real>
using Flag = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;

constexpr int64_t finish_width = 64;  // columns at a time, in L1

// How floats become codes.
template <typename Real>
struct CodeMaker {
    Real scale, inverse, low, high, zero, certain;

    CodeMaker(Real scale, int zero_point, int most)
        : scale(scale),
          inverse(1 / scale),
          low(static_cast<Real>(-zero_point)),
          high(static_cast<Real>(most - zero_point)),
          zero(static_cast<Real>(zero_point)),
          // The product has three roundings where the quotient has one, of numbers below most + 1 within half a step of
          // the range. Nothing is certain of an inverse without all its digits.
          certain(std::isnormal(inverse)
                      ? Real(0.5) - 4 * static_cast<Real>(most + 1) * std::numeric_limits<Real>::epsilon()
                      : Real(0)) {}

    void operator()(const Real* x, int64_t count, uint8_t* to) const {
        for (int64_t first = 0; first < count; first += finish_width)
            piece(x + first, std::min(finish_width, count - first), to + first);
    }

  private:
    void piece(const Real* x, int64_t count, uint8_t* to) const {
        Flag<Real> doubts = 0;
        SPOS_NO_ALIAS
        for (int64_t i = 0; i < count; ++i) {
            const Real steps = x[i] * inverse;
            const Real above = steps > low ? steps : low;
            const Real inside = above < high ? above : high, whole = nearest(inside);
            doubts |= std::abs(inside - whole) < certain ? 0 : 1;
            to[i] = static_cast<uint8_t>(static_cast<int32_t>(whole + zero));
        }
        if (!doubts) return;
        for (int64_t i = 0; i < count; ++i) to[i] = code_of(x[i], scale, low, high, zero);
    }
};

template <typename Real>
inline void quantize_floats(const Real* x, int64_t count, Real scale, int zero, int most, uint8_t* to) {
    CodeMaker<Real>(scale, zero, most)(x, count, to);
}

// S of column c of a row. Modular unless it may be wider than 32 bits.
template <bool Wide, bool Factor>
inline std::conditional_t<Wide, int64_t, int32_t> exact_sum(int32_t acc, int shift, int32_t row_sum,
                                                            const int32_t* factor,
                                                            const std::conditional_t<Wide, int64_t, int32_t>* offset,
                                                            int64_t c) {
    using S = std::conditional_t<Wide, int64_t, int32_t>;
    using U = std::make_unsigned_t<S>;
    U sum = static_cast<U>(static_cast<S>(acc)) << shift;
    if (Factor) sum += static_cast<U>(static_cast<S>(row_sum)) * static_cast<U>(static_cast<S>(factor[c]));
    return static_cast<S>(sum + static_cast<U>(offset[c]));
}

// S of one row times the multiplier, or S itself where there is none.
template <typename Real, bool Wide, bool Factor>
inline void scaled_sums(const LowbitFinish<Real>& how, const int32_t* acc, int32_t row_sum, int64_t first,
                        int64_t count, int64_t at, Real* line) {
    const auto exact = [&, shift = how.shift, factor = how.row_factor + (Factor ? first : 0)](int64_t c) {
        if constexpr (Wide)
            return exact_sum<Wide, Factor>(acc[c], shift, row_sum, factor, how.offset + first, c);
        else
            return exact_sum<Wide, Factor>(acc[c], shift, row_sum, factor, how.low_offset + first, c);
    };
    if (!how.multiplier) {
        for (int64_t c = 0; c < count; ++c) how.sums[at + first + c] = exact(c);
        return;
    }
    const Real* const multiplier = how.multiplier + first;
    for (int64_t c = 0; c < count; ++c) line[c] = static_cast<Real>(exact(c)) * multiplier[c];
}

template <typename Real>
inline void scaled_sums_of_row(const LowbitFinish<Real>& how, const FinishRows& rows, int64_t row, int64_t from,
                               int64_t count, Real* line) {
    const int32_t* const acc = rows.acc + row * rows.acc_m + from;
    const int32_t row_sum = how.row_factor ? rows.row_sums[row] : 0;
    const int64_t first = rows.first + from, at = rows.at + row * rows.stride;
    const auto run = [&](auto wide, auto factor) {
        scaled_sums<Real, wide.value, factor.value>(how, acc, row_sum, first, count, at, line);
    };
    if (how.wide)
        how.row_factor ? run(std::true_type{}, std::true_type{}) : run(std::true_type{}, std::false_type{});
    else
        how.row_factor ? run(std::false_type{}, std::true_type{}) : run(std::false_type{}, std::false_type{});
}

// What follows S times its multiplier, for columns `first` and up; `at`: where the row lies.
template <typename Real>
inline void finish_line(const LowbitFinish<Real>& how, int64_t first, int64_t count, int64_t at, Real* line) {
    if (how.bias)
        for (int64_t c = 0; c < count; ++c) line[c] = line[c] + how.bias[first + c];
    if (how.residual)
        for (int64_t c = 0; c < count; ++c) line[c] = line[c] + how.residual[at + first + c];
    if (how.residual_codes)
        for (int64_t c = 0; c < count; ++c)
            line[c] = line[c] +
                      how.residual_scale * static_cast<Real>(how.residual_codes[at + first + c] - how.residual_zero);
    if (how.relu && (how.y || how.out_zero))  // codes from 0 up are what ReLU leaves
        for (int64_t c = 0; c < count; ++c) line[c] = line[c] < 0 ? 0 : line[c];
    if (how.y) std::copy(line, line + count, how.y + at + first);
    if (how.codes) quantize_floats(line, count, how.out_scale, how.out_zero, how.out_most, how.codes + at + first);
}

// One row, by the definition.
template <typename Real>
inline void finish_row(const LowbitFinish<Real>& how, const FinishRows& rows, int64_t row) {
    Real line[finish_width];
    for (int64_t from = 0; from < rows.count; from += finish_width) {
        const int64_t count = std::min(finish_width, rows.count - from);
        scaled_sums_of_row(how, rows, row, from, count, line);
        if (how.multiplier) finish_line(how, rows.first + from, count, rows.at + row * rows.stride, line);
    }
}

inline int32_t bits_of(float value) {
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// Codes alone, in registers. Adding `large` rounds, and leaves the code in the lowest byte; which way a tie goes does
// not matter, as it is in doubt.
template <bool Plain, bool Factor, typename Real>
inline void guess_codes(const LowbitFinish<Real>& how, const FinishRows& rows) {
    const float zero = static_cast<float>(how.out_zero), high = static_cast<float>(how.out_most - how.out_zero);
    const float low = how.relu ? 0.0f : -zero, large = 0x1.8p23f + zero;
    const int shift = how.shift;
    const int64_t count = rows.count;  // bytes that are written might be those of rows
    const int32_t* __restrict const factor = how.row_factor + (Factor ? rows.first : 0);
    const int32_t* __restrict const offset = how.low_offset + rows.first;
    const float* __restrict const scale = how.guess.scale + rows.first;
    const float* __restrict const bias = how.guess.bias + rows.first;
    const float* __restrict const margin = how.guess.margin + rows.first;
    for (int64_t row = 0; row < rows.rows; ++row) {
        const int32_t* __restrict const acc = rows.acc + row * rows.acc_m;
        const int32_t row_sum = Factor ? rows.row_sums[row] : 0;
        uint8_t* __restrict const to = how.codes + rows.at + row * rows.stride + rows.first;
        int32_t nearest_tie = 0;  // bits of floats that are not negative, in the same order
        for (int64_t c = 0; c < count; ++c) {
            const int32_t sum = Plain ? acc[c] : exact_sum<false, Factor>(acc[c], shift, row_sum, factor, offset, c);
            const float steps = static_cast<float>(sum) * scale[c] + bias[c];
            const float above = steps > low ? steps : low;
            const float inside = above < high ? above : high, code = inside + large;
            const int32_t distance = bits_of(std::abs(inside - (code - large)) + margin[c]);
            nearest_tie = distance > nearest_tie ? distance : nearest_tie;
            to[c] = static_cast<uint8_t>(bits_of(code));
        }
        if (nearest_tie >= bits_of(0.5f)) finish_row(how, rows, row);
    }
}

// Floats, and what codes are wanted of them, with bias and a residual in floats added; S of 32 bits.
template <bool Factor, bool Bias, bool Residual, typename Real>
inline void finish_floats(const LowbitFinish<Real>& how, const FinishRows& rows) {
    const int shift = how.shift;
    const bool relu = how.relu;
    const int64_t count = rows.count;
    const CodeMaker<Real> make_codes(how.out_scale, how.out_zero, how.out_most);
    const int32_t* __restrict const factor = how.row_factor + (Factor ? rows.first : 0);
    const int32_t* __restrict const offset = how.low_offset + rows.first;
    const Real* __restrict const multiplier = how.multiplier + rows.first;
    const Real* __restrict const bias = how.bias + (Bias ? rows.first : 0);
    for (int64_t row = 0; row < rows.rows; ++row) {
        const int64_t at = rows.at + row * rows.stride + rows.first;
        const int32_t* __restrict const acc = rows.acc + row * rows.acc_m;
        const int32_t row_sum = Factor ? rows.row_sums[row] : 0;
        const Real* __restrict const residual = how.residual + (Residual ? at : 0);
        Real* __restrict const y = how.y + at;
        const auto value = [&](int64_t c) {
            const int32_t sum = exact_sum<false, Factor>(acc[c], shift, row_sum, factor, offset, c);
            const Real scaled = static_cast<Real>(sum) * multiplier[c];
            const Real moved = Bias ? scaled + bias[c] : scaled;
            return Residual ? moved + residual[c] : moved;
        };
        if (relu) {
            SPOS_NO_ALIAS
            for (int64_t c = 0; c < count; ++c) {
                const Real v = value(c);
                y[c] = v < 0 ? 0 : v;
            }
        } else {
            SPOS_NO_ALIAS
            for (int64_t c = 0; c < count; ++c) y[c] = value(c);
        }
        if (how.codes) make_codes(y, count, how.codes + at);
    }
}

template <typename Real>
inline void finish_rows(const LowbitFinish<Real>& how, const FinishRows& rows) {
    if (how.guess.scale) {
        if (how.plain)
            guess_codes<true, false>(how, rows);
        else
            how.row_factor ? guess_codes<false, true>(how, rows) : guess_codes<false, false>(how, rows);
    } else if (how.y && !how.wide && !how.residual_codes) {
        const auto run = [&](auto factor, auto bias) {
            how.residual ? finish_floats<factor.value, bias.value, true>(how, rows)
                         : finish_floats<factor.value, bias.value, false>(how, rows);
        };
        if (how.row_factor)
            how.bias ? run(std::true_type{}, std::true_type{}) : run(std::true_type{}, std::false_type{});
        else
            how.bias ? run(std::false_type{}, std::true_type{}) : run(std::false_type{}, std::false_type{});
    } else {
        for (int64_t row = 0; row < rows.rows; ++row) finish_row(how, rows, row);
    }
}

template <typename Real>
inline void add_scaled_rows(const LowbitFinish<Real>& how, const FinishRows& rows, Real* lines, bool start) {
    Real line[finish_width];
    for (int64_t row = 0; row < rows.rows; ++row)
        for (int64_t from = 0; from < rows.count; from += finish_width) {
            const int64_t count = std::min(finish_width, rows.count - from);
            scaled_sums_of_row(how, rows, row, from, count, line);
            Real* const to = lines + row * rows.acc_m + from;
            if (start)
                std::copy(line, line + count, to);
            else
                for (int64_t c = 0; c < count; ++c) to[c] = to[c] + line[c];
        }
}

template <typename Real>
inline void finish_line_rows(const LowbitFinish<Real>& how, const FinishRows& rows, Real* lines) {
    for (int64_t row = 0; row < rows.rows; ++row)
        finish_line(how, rows.first, rows.count, rows.at + row * rows.stride, lines + row * rows.acc_m);
}

template <typename Real>
LowbitFloatBody<Real> lowbit_float_body() {
    return {quantize_floats<Real>, finish_rows<Real>, add_scaled_rows<Real>, finish_line_rows<Real>};
}

}  // namespace
}  // namespace spos
