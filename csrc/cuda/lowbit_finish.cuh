// From sums of products to results: exact in integers up to float(S), then one rounding a step, in the reference's
// order.
//
//     S = m * acc + sum(x) * factor + offset       acc = sum(x * (c - half)), half 0 where codes are not centred
//         factor = m * half - zero, offset = -x_zero * (m * sum(c) - k * zero)
//
// S is made in 32 bits, modulo 2^32, where the host has found that it fits, else in 64.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/lowbit.h"

namespace spos::cuda {

// Do results for 4 adjacent columns lie in aligned vectors, wherever something is read or written for them?
inline bool lowbit_vectors(const LowbitConv2d& call) {
    const LowbitResult& to = call.result;
    const auto aligned = [](const void* pointer, int bytes) {
        return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
    };
    const auto bytes = [](Element element) { return element == Element::float32 ? 16 : 8; };
    return call.outputs % 4 == 0 && aligned(to.sums, 16) && aligned(to.y, bytes(to.y_element)) &&
           aligned(to.codes, 4) && aligned(to.residual, bytes(to.residual_element)) && aligned(to.residual_codes, 4);
}

// Could S leave 32 bits? With zeros anywhere from 0 to 2^w_bits.
inline bool lowbit_wide(const LowbitConv2d& call) {
    const int64_t x = (int64_t{1} << call.x.bits) - 1, w = int64_t{call.weight.doubled ? 2 : 1} << call.weight.bits;
    return call.k() / call.weight.scale_groups * x * w > INT32_MAX;
}

struct ColumnTerms {
    int64_t offset;
    int32_t factor;
    float multiplier;
};

// Of column n of all groups, for sums over `k` codes.
__device__ __forceinline__ ColumnTerms column_terms(const LowbitConv2d& call, int scale_group, int64_t n, int64_t k,
                                                    int half) {
    const LowbitWeight& weight = call.weight;
    const int64_t at = scale_group * call.columns() + n;
    const int times = weight.doubled ? 2 : 1, zero = weight.doubled ? weight.twice_zero[at] : weight.twice_zero[at] / 2;
    ColumnTerms terms;
    terms.factor = times * half - zero;
    terms.offset = call.x.zero
                       ? -static_cast<int64_t>(call.x.zero) * (static_cast<int64_t>(times) * weight.sums[at] - k * zero)
                       : 0;
    terms.multiplier = weight.multiplier ? weight.multiplier[at] : 0.0f;
    return terms;
}

// acc: signed, or unsigned where codes are not centred.
template <typename Sum>
__device__ __forceinline__ int64_t exact_sum(const LowbitConv2d& call, bool wide, Sum acc, int32_t row_sum,
                                             const ColumnTerms& terms) {
    const int times = call.weight.doubled ? 2 : 1;
    if (wide) return static_cast<int64_t>(acc) * times + static_cast<int64_t>(row_sum) * terms.factor + terms.offset;
    const uint32_t sum = static_cast<uint32_t>(acc) * static_cast<uint32_t>(times) +
                         static_cast<uint32_t>(row_sum) * static_cast<uint32_t>(terms.factor) +
                         static_cast<uint32_t>(terms.offset);
    return static_cast<int32_t>(sum);
}

__device__ __forceinline__ float scaled_sum(bool wide, int64_t sum, float multiplier) {
    // 64-bit conversions run at a quarter of the rate, or at a thirty-second
    const float value = wide ? static_cast<float>(sum) : static_cast<float>(static_cast<int32_t>(sum));
    return __fmul_rn(value, multiplier);
}

// How floats become codes: clamp(round(value / scale) + zero, 0, most). Made on the host.
struct CodeMaker {
    float scale, inverse, low, high, zero;

    CodeMaker(float scale, int zero, int most)
        : scale(scale),
          inverse(1.0f / scale),
          low(static_cast<float>(-zero)),
          high(static_cast<float>(most - zero)),
          zero(static_cast<float>(zero)) {}

    // What the quotient rounded to fp32 rounds to. A product with the inverse is off by a few units in the last place,
    // which matters only next to ties: those few values are divided.
    __device__ __forceinline__ uint32_t code(float value) const {
        float steps = __fmul_rn(value, inverse);
        const float from_tie = fabsf(fabsf(steps - rintf(steps)) - 0.5f);
        if (!(from_tie > 1e-3f)) steps = __fdiv_rn(value, scale);  // NaN comes here too
        const float above = steps > low ? steps : low;             // NaN becomes `low`
        return static_cast<uint32_t>(__float2int_rn(rintf(above < high ? above : high) + zero));
    }
};

__device__ __forceinline__ void load_four(const float* from, float (&to)[4]) { load_vector(from, to); }
template <typename T>
__device__ __forceinline__ void load_four(const T* from, float (&to)[4]) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    to[0] = float_of_bits16(T{}, words.x & 0xffff), to[1] = float_of_bits16(T{}, words.x >> 16);
    to[2] = float_of_bits16(T{}, words.y & 0xffff), to[3] = float_of_bits16(T{}, words.y >> 16);
}
__device__ __forceinline__ void store_four(float* to, const float (&from)[4]) { store_vector(to, from); }
template <typename T>
__device__ __forceinline__ void store_four(T* to, const float (&from)[4]) {
    *reinterpret_cast<uint2*>(to) = make_uint2(pack2<T>(from[0], from[1]), pack2<T>(from[2], from[3]));
}

// Up to four neighbours, `count` of which exist; whole vectors where `vectors`.
template <typename T>
__device__ __forceinline__ void load_upto_four(const T* from, int count, bool vectors, float (&to)[4]) {
    if (vectors && count >= 4) return load_four(from, to);
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = i < count ? to_float(from[i]) : 0.0f;
}
template <typename T>
__device__ __forceinline__ void store_upto_four(T* to, int count, bool vectors, const float (&from)[4]) {
    if (vectors && count >= 4) return store_four(to, from);
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (i < count) to[i] = from_float<T>(from[i]);
}
__device__ __forceinline__ void load_upto_four(Element element, const void* from, int64_t at, int count, bool vectors,
                                               float (&to)[4]) {
    if (element == Element::float32)
        load_upto_four(static_cast<const float*>(from) + at, count, vectors, to);
    else if (element == Element::float16)
        load_upto_four(static_cast<const __half*>(from) + at, count, vectors, to);
    else
        load_upto_four(static_cast<const __nv_bfloat16*>(from) + at, count, vectors, to);
}
__device__ __forceinline__ void store_upto_four(Element element, void* to, int64_t at, int count, bool vectors,
                                                const float (&from)[4]) {
    if (element == Element::float32)
        store_upto_four(static_cast<float*>(to) + at, count, vectors, from);
    else if (element == Element::float16)
        store_upto_four(static_cast<__half*>(to) + at, count, vectors, from);
    else
        store_upto_four(static_cast<__nv_bfloat16*>(to) + at, count, vectors, from);
}

// Up to four bytes in a word.
__device__ __forceinline__ uint32_t load_upto_four(const uint8_t* from, int count, bool whole) {
    if (whole) return *reinterpret_cast<const uint32_t*>(from);
    uint32_t word = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (i < count) word |= static_cast<uint32_t>(from[i]) << 8 * i;
    return word;
}

// S of up to four adjacent columns, for weights without a scale.
__device__ __forceinline__ void store_sums(int64_t* to, int count, const int64_t (&sums)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (i < count) to[i] = sums[i];
}

// What a kernel does with its sums.
struct LowbitFinish {
    LowbitResult to;
    CodeMaker make;
    bool vectors, wide;

    explicit LowbitFinish(const LowbitConv2d& call)
        : to(call.result),
          make(to.out_scale, to.out_zero, to.out_most),
          vectors(lowbit_vectors(call)),
          wide(lowbit_wide(call)) {}

    // From S on: the sums themselves, or what is made of them.
    __device__ __forceinline__ void run(int64_t at, int count, const int64_t (&exact)[4], const ColumnTerms (&terms)[4],
                                        const float (&bias)[4]) const {
        if (to.sums) return store_sums(to.sums + at, count, exact);
        float y[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) y[c] = scaled_sum(wide, exact[c], terms[c].multiplier);
        run(at, count, bias, y);
    }
    // What follows float(S) * multiplier, for `count` of four adjacent columns. at: where they lie in the results;
    // bias: theirs.
    __device__ __forceinline__ void run(int64_t at, int count, const float (&bias)[4], float (&y)[4]) const {
        const bool whole = vectors && count >= 4;
        if (to.bias)
#pragma unroll
            for (int i = 0; i < 4; ++i) y[i] = __fadd_rn(y[i], bias[i]);
        if (to.residual) {
            float beside[4];
            load_upto_four(to.residual_element, to.residual, at, count, vectors, beside);
#pragma unroll
            for (int i = 0; i < 4; ++i) y[i] = __fadd_rn(y[i], beside[i]);
        }
        if (to.residual_codes) {
            const uint32_t codes = load_upto_four(to.residual_codes + at, count, whole);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int code = static_cast<int>(codes >> 8 * i & 0xff) - to.residual_zero;
                y[i] = __fadd_rn(y[i], __fmul_rn(to.residual_scale, static_cast<float>(code)));
            }
        }
        if (to.relu)
#pragma unroll
            for (int i = 0; i < 4; ++i) y[i] = y[i] < 0.0f ? 0.0f : y[i];  // NaN stays
        if (to.y) store_upto_four(to.y_element, to.y, at, count, vectors, y);
        if (!to.codes) return;
        uint32_t codes = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) codes |= make.code(y[i]) << 8 * i;
        if (whole) {
            *reinterpret_cast<uint32_t*>(to.codes + at) = codes;
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (i < count) to.codes[at + i] = static_cast<uint8_t>(codes >> 8 * i);
        }
    }
};

}  // namespace spos::cuda
