// Fake quantization on the CPU: rounding to the levels of a few bits, straight through it in the backward pass.
//
//     dorefa  r = tanh(x) / 2m + 1/2,  c = round(n r),  y = (2c - n) / n      m = max|tanh(x)|
//             dx = dy (1 - tanh(x)^2) / m
//     pact    s = a / n,  c = clamp(round(x / s), 0, n),  y = c s
//             dx = dy where 0 < x < a,  da = sum of dy where x >= a
//     lsq     c = clamp(round(x / s), low, high),  y = c s                    low, high: of the codes, less z
//             dx = dy where low <= x / s <= high
//             ds = g * sum of dy (low where x / s <= low, high where x / s >= high, else round(x / s) - x / s)
//
// with n = 2^bits - 1; g = 1 / sqrt(N * highest code) with N elements of one step. DoReFa-Net, arXiv 1606.06160,
// section 2.3; PACT, arXiv 1805.06085, section 3; LSQ, arXiv 1902.08153, section 2.1.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.h"

namespace spos {

enum class QuantizeMethod { dorefa, pact, lsq };

// x is `outer` times `channels` times `inner` adjacent elements in memory, at least one; y, dy, dx and codes lie as x
// does. Every channel has a scale: m, a or s; for the whole tensor there is one channel. A scale of 0 in dorefa, or
// one below the normal numbers, stands for a channel of zeros: r is 1/2 then, and dx 0. low, high: the codes' limits.
struct FakeQuantize {
    QuantizeMethod method;
    int low, high;
    int64_t outer, channels, inner;

    int64_t size() const { return outer * channels * inner; }
};

// Bytes of scratch memory for any of the calls below, for elements of `element_size` bytes.
size_t fake_quantize_workspace(const FakeQuantize& shape, size_t element_size);

// zero_point: [channels] integers from low to high, or null for zeros. Each element depends on its own x alone.
// T is float with any supported Isa, or double with Isa::portable.
template <typename T>
void fake_quantize_forward(Isa isa, const FakeQuantize& shape, const T* x, const T* scale, const T* zero_point, T* y,
                           void* workspace, int threads);

// The codes c + z as bytes, two's complement where they are signed. NaN gets the lowest.
template <typename T>
void fake_quantize_codes(Isa isa, const FakeQuantize& shape, const T* x, const T* scale, const T* zero_point,
                         uint8_t* codes, void* workspace, int threads);

// dx and dscale may each be null. dscale is [channels], null in dorefa: its bits do not depend on the thread count.
template <typename T>
void fake_quantize_backward(Isa isa, const FakeQuantize& shape, const T* dy, const T* x, const T* scale,
                            const T* zero_point, T* dx, T* dscale, void* workspace, int threads);

// m, [channels]. NaN in a channel makes it NaN.
template <typename T>
void fake_quantize_maximum(Isa isa, const FakeQuantize& shape, const T* x, T* maximum, void* workspace, int threads);

}  // namespace spos
