// fp16 and bf16 for the emulator: storage and conversions, with the names and the rounding of cuda_fp16.h and
// cuda_bf16.h. Arithmetic goes through float.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda_emulation/vector_types.h"

namespace cuda_emulation {

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float float_of_half(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 0x1f, fraction = half & 0x3ffu;
    if (exponent == 31) return float_of(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) return float_of(bits_of(static_cast<float>(fraction) * 0x1p-24f) | sign);
    return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

// To nearest, ties to even. NaN becomes the canonical one, as on the device.
inline uint16_t half_of_float(float value) {
    const uint32_t bits = bits_of(value), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) return 0x7fff;
    if (magnitude >= 0x477ff000u) return sign | 0x7c00;  // 65520 and above round to infinity
    if (magnitude < 0x38800000u) {  // below 2^-14: beside 0.5 there is room for multiples of 2^-24 only
        const float aligned = float_of(magnitude) + 0.5f;
        return static_cast<uint16_t>(sign | (bits_of(aligned) - bits_of(0.5f)));
    }
    const uint32_t rounded = magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1);
    return static_cast<uint16_t>(sign | rounded >> 13);
}

inline float float_of_bfloat16(uint16_t value) { return float_of(static_cast<uint32_t>(value) << 16); }
inline uint16_t bfloat16_of_float(float value) {
    const uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

}  // namespace cuda_emulation

struct __half {
    uint16_t bits;
    __half() = default;
    explicit __half(float value) : bits(cuda_emulation::half_of_float(value)) {}
    explicit operator float() const { return cuda_emulation::float_of_half(bits); }
};
struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    explicit __nv_bfloat16(float value) : bits(cuda_emulation::bfloat16_of_float(value)) {}
    explicit operator float() const { return cuda_emulation::float_of_bfloat16(bits); }
};
struct alignas(4) __half2 {
    __half x, y;
    __half2() = default;
    __half2(__half x, __half y) : x(x), y(y) {}
    __half2(const __half2&) = default;
    __half2& operator=(const __half2& other) {
        *reinterpret_cast<cuda_emulation::Bytes4*>(this) = *reinterpret_cast<const cuda_emulation::Bytes4*>(&other);
        return *this;
    }
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
    __nv_bfloat162() = default;
    __nv_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) : x(x), y(y) {}
    __nv_bfloat162(const __nv_bfloat162&) = default;
    __nv_bfloat162& operator=(const __nv_bfloat162& other) {
        *reinterpret_cast<cuda_emulation::Bytes4*>(this) = *reinterpret_cast<const cuda_emulation::Bytes4*>(&other);
        return *this;
    }
};
using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline __half __ushort_as_half(unsigned short bits) {
    __half value;
    value.bits = bits;
    return value;
}
inline unsigned short __half_as_ushort(__half value) { return value.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    __nv_bfloat16 value;
    value.bits = bits;
    return value;
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }

inline __half __float2half(float value) { return __half(value); }
inline __half __float2half_rn(float value) { return __half(value); }
inline float __half2float(__half value) { return static_cast<float>(value); }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __float22half2_rn(float2 value) { return __floats2half2_rn(value.x, value.y); }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline float2 __half22float2(__half2 value) { return {__half2float(value.x), __half2float(value.y)}; }

inline __nv_bfloat16 __float2bfloat16(float value) { return __nv_bfloat16(value); }
inline __nv_bfloat16 __float2bfloat16_rn(float value) { return __nv_bfloat16(value); }
inline float __bfloat162float(__nv_bfloat16 value) { return static_cast<float>(value); }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 value) { return __floats2bfloat162_rn(value.x, value.y); }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 value) {
    return {__bfloat162float(value.x), __bfloat162float(value.y)};
}
