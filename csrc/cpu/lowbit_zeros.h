// What the zeros of x and of the weights add to sums of products of codes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "core/arena.h"
#include "cpu/lowbit_body.h"
#include "cpu/lowbit_conv2d.h"

namespace spos {

// S = multiple * acc + sum(x) * row_factor + offset, acc being sum(x * (code - half)), half 0 but for dots; or, where
// all zeros are the same and multiple * code - zero is a signed byte, acc + offset, acc being the sum of x times that.
template <typename Real>
class LowbitZeros {
  public:
    explicit LowbitZeros(const LowbitConv2d<Real>& call) : call_(call), shift_(call.finish.shift) {}

    // Lays out memory; counting: nothing is computed.
    void prepare(Arena& arena, bool counting) {
        const int64_t count = call_.groups * call_.outputs * call_.scale_groups;
        row_factor_ = arena.take<int32_t>(count);
        offset_ = arena.take<int64_t>(count);
        low_offset_ = arena.take<int32_t>(count);
        if (counting) return;
        find_factors(count);
        find_offsets(count);
    }

    int multiple() const { return 1 << call_.finish.shift; }
    // A zero times `multiple`.
    int32_t of(int64_t n) const { return call_.finish.shift ? call_.twice_zero[n] : call_.twice_zero[n] / 2; }

    bool any_factor() const { return any_factor_; }
    bool wide() const { return wide_; }    // S may exceed 32 bits
    bool large() const { return large_; }  // of DotProduct
    SignedCodes weight_codes() const { return weight_codes_; }

    // Gives `finish` what concerns S, of outputs from `at` on.
    void tell(LowbitFinish<Real>& finish, int64_t at) const {
        finish.shift = shift_;
        finish.plain = shift_ == 0 && !any_factor_ && call_.x_zero == 0;
        finish.row_factor = any_factor_ ? row_factor_ + at : nullptr;
        finish.offset = offset_ + at;
        finish.low_offset = low_offset_ + at;
        finish.wide = wide_;
    }

    // For products with which the zeros are taken off at once.
    void forget(int64_t n) { offset_[n] = low_offset_[n] = 0; }

  private:
    void find_factors(int64_t count) {
        const int64_t half = call_.method == LowbitMethod::dots ? int64_t{1} << (call_.w_bits - 1) : 0;
        const int64_t most_x = (1 << call_.x_bits) - 1, most_w = (1 << call_.w_bits) - 1;
        const int64_t far_x = std::max<int64_t>(call_.x_zero, most_x - call_.x_zero);
        int32_t smallest = of(0), largest = smallest;
        const int32_t plain = static_cast<int32_t>(multiple() * half);
        const int less = 1 - call_.finish.shift;  // locals, so that the loop becomes vectors
        const int32_t* const twice_zero = call_.twice_zero;
        int32_t* __restrict const row_factor = row_factor_;
        for (int64_t n = 0; n < count; ++n) {
            const int32_t zero = twice_zero[n] >> less;
            row_factor[n] = plain - zero;
            smallest = std::min(smallest, zero), largest = std::max(largest, zero);
        }
        any_factor_ = smallest != plain || largest != plain;
        const int64_t far_w = std::max(
            {int64_t{largest}, std::abs(multiple() * most_w - smallest), std::abs(multiple() * most_w - largest)});
        wide_ = call_.k() / call_.scale_groups * far_x * far_w > INT32_MAX;
        weight_codes_ = {0, static_cast<int>(half)};
        const bool fits = smallest == largest && smallest <= 128 && multiple() * most_w - smallest <= INT8_MAX;
        // x is not centred: sums of it times what is folded may be larger than S.
        const int64_t far_folded = std::max<int64_t>(smallest, multiple() * most_w - smallest);
        const bool sums_fit = call_.k() / call_.scale_groups * most_x * far_folded <= INT32_MAX;
        if (call_.method == LowbitMethod::dots && fits && !wide_ && sums_fit) {
            weight_codes_ = {call_.finish.shift, smallest};
            shift_ = 0, any_factor_ = false;
        }
        const int64_t most_less = weight_codes_.less, most_code = (most_w << weight_codes_.shift) - most_less;
        large_ = 2 * most_x * std::max(most_less, most_code) > INT16_MAX;
    }

    void find_offsets(int64_t count) {
        if (call_.x_zero == 0) {
            std::fill(offset_, offset_ + count, int64_t{0});
            std::fill(low_offset_, low_offset_ + count, 0);
            return;
        }
        const int64_t k = call_.k() / call_.scale_groups;
        for (int64_t n = 0; n < count; ++n) {
            offset_[n] = -call_.x_zero * (multiple() * int64_t{call_.sums[n]} - k * of(n));
            low_offset_[n] = static_cast<int32_t>(static_cast<uint32_t>(offset_[n]));
        }
    }

    const LowbitConv2d<Real>& call_;
    int shift_;  // of sums
    SignedCodes weight_codes_{};
    bool any_factor_ = false, wide_ = false, large_ = false;
    int32_t* row_factor_ = nullptr;
    int64_t* offset_ = nullptr;
    int32_t* low_offset_ = nullptr;
};

}  // namespace spos
