// Numbers by which codes are guessed from sums, for each column: LowbitGuess of lowbit_body.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "cpu/lowbit_body.h"

namespace spos {

// multiplier, and `to` of 3 * count elements, for `count` columns.
//
// Around q = y / out_scale as defined, where |q| <= most + 1, and so |S * multiplier / out_scale| <= reach with reach =
// most + 1 + |bias / out_scale|: t has three roundings in its product, one in its bias and one in its sum, q not more,
// of 2^-24 each. So |t - q| <= 2^-21 reach; twice that is the margin.
template <typename Real>
LowbitGuess make_lowbit_guess(const LowbitFinish<Real>& finish, const Real* multiplier, int64_t count, float* to) {
    float* __restrict const scales = to;
    float* __restrict const biases = to + count;
    float* __restrict const margins = to + 2 * count;
    const double inverse = 1 / static_cast<double>(finish.out_scale), most = finish.out_most + 1.0;
    // Numbers that float32 does not hold to its precision, or at all, are not guessed with.
    const auto held = [](double value) {
        return value == 0 || (std::abs(value) > 0x1p-100 && std::abs(value) < 0x1p90);
    };
    for (int64_t n = 0; n < count; ++n) {
        const double scale = static_cast<double>(multiplier[n]) * inverse;
        const double bias = finish.bias ? static_cast<double>(finish.bias[n]) * inverse : 0.0;
        scales[n] = static_cast<float>(scale), biases[n] = static_cast<float>(bias);
        margins[n] = held(scale) && held(bias) ? static_cast<float>(0x1p-20 * (most + std::abs(bias))) : 1.0f;
    }
    return {scales, biases, margins};
}

}  // namespace spos
