// Elements in memory and their value in registers, which is always float. Memory is read and written 16 bytes at a time
// where an address allows it.
#pragma once

#include "cuda/element.h"
#include "cuda_emulation/device.h"

namespace spos::cuda {

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
    return value;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float value) {
    return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}

__device__ __forceinline__ unsigned bits16(__half value) { return __half_as_ushort(value); }
__device__ __forceinline__ unsigned bits16(__nv_bfloat16 value) { return __bfloat16_as_ushort(value); }
__device__ __forceinline__ float float_of_bits16(__half, unsigned bits) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
__device__ __forceinline__ float float_of_bits16(__nv_bfloat16, unsigned bits) {
    return __bfloat162float(__ushort_as_bfloat16(static_cast<unsigned short>(bits)));
}

// Two 16-bit values in a word, the first in its lower half.
template <typename T>
__device__ __forceinline__ unsigned pack2(float low, float high) {
    return bits16(from_float<T>(low)) | bits16(from_float<T>(high)) << 16;
}

// Elements in 16 bytes.
template <typename T>
constexpr int vector_of = 16 / static_cast<int>(sizeof(T));

// A vector of elements of type T as their values.
template <typename T>
__device__ __forceinline__ void unpack(uint4 vector, float (&to)[vector_of<T>]) {
    const unsigned words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (vector_of<T> == 4) {
            to[i] = __uint_as_float(words[i]);
        } else {
            to[2 * i] = float_of_bits16(T{}, words[i] & 0xffff);
            to[2 * i + 1] = float_of_bits16(T{}, words[i] >> 16);
        }
    }
}

// 16 bytes at an aligned address.
template <typename T>
__device__ __forceinline__ void load_vector(const T* from, float (&to)[vector_of<T>]) {
    unpack<T>(*reinterpret_cast<const uint4*>(from), to);
}
// 16 bytes, element by element.
__device__ __forceinline__ uint4 load_unaligned(const float* from) {
    return make_uint4(__float_as_uint(from[0]), __float_as_uint(from[1]), __float_as_uint(from[2]),
                      __float_as_uint(from[3]));
}
template <typename T>
__device__ __forceinline__ uint4 load_unaligned(const T* from) {
    const auto pair = [&](int i) { return bits16(from[i]) | bits16(from[i + 1]) << 16; };
    return make_uint4(pair(0), pair(2), pair(4), pair(6));
}
__device__ __forceinline__ void store_vector(float* to, const float (&from)[4]) {
    *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
}
template <typename T>
__device__ __forceinline__ void store_vector(T* to, const float (&from)[8]) {
    *reinterpret_cast<uint4*>(to) = make_uint4(pack2<T>(from[0], from[1]), pack2<T>(from[2], from[3]),
                                               pack2<T>(from[4], from[5]), pack2<T>(from[6], from[7]));
}

// NaN stays NaN, as in torch: fmaxf would hide it.
__device__ __forceinline__ float relu(float value) { return value < 0.0f ? 0.0f : value; }

// Up to a vector of elements of which `count` exist, zeros behind them; whole vectors only where `aligned`.
template <typename T>
__device__ __forceinline__ void load_some(const T* from, int count, bool aligned, float (&to)[vector_of<T>]) {
    if (aligned && count >= vector_of<T>) return load_vector(from, to);
#pragma unroll
    for (int i = 0; i < vector_of<T>; ++i) to[i] = i < count ? to_float(from[i]) : 0.0f;
}
// Every other element, from the first (parity 0) or the second on: `count` exist of either kind.
template <int parity, typename T>
__device__ __forceinline__ void load_alternate(const T* from, int count, bool aligned, float (&to)[vector_of<T>]) {
    constexpr int n = vector_of<T>;
    if (aligned && count >= n) {
        float both[2][n];
        load_vector(from, both[0]);
        load_vector(from + n, both[1]);
#pragma unroll
        for (int i = 0; i < n; ++i) to[i] = both[2 * i / n][2 * i % n + parity];
        return;
    }
#pragma unroll
    for (int i = 0; i < n; ++i) to[i] = i < count ? to_float(from[2 * i + parity]) : 0.0f;
}
template <typename T>
__device__ __forceinline__ void store_some(T* to, int count, bool aligned, const float (&from)[vector_of<T>]) {
    if (aligned && count >= vector_of<T>) return store_vector(to, from);
#pragma unroll
    for (int i = 0; i < vector_of<T>; ++i)
        if (i < count) to[i] = from_float<T>(from[i]);
}

// Calls function(a value of the element's type).
template <typename Function>
auto with_element(Element element, const Function& function) {
    switch (element) {
        case Element::float16:
            return function(__half{});
        case Element::bfloat16:
            return function(__nv_bfloat16{});
        default:
            return function(float{});
    }
}

}  // namespace spos::cuda
