// CUDA's vector types for the emulator, with CUDA's sizes and alignments.
#pragma once

#include <cstdint>

namespace cuda_emulation {
typedef uint32_t Bytes4 __attribute__((may_alias));
typedef uint64_t Bytes8 __attribute__((may_alias));
typedef uint64_t Bytes16 __attribute__((may_alias, vector_size(16)));
}  // namespace cuda_emulation

// An assignment is one access of the whole vector, as it is on the device, however its value came about: that is what
// alignment is checked for and what instructions are counted by.
#define EMULATED_VECTOR(Name, bytes, ...)                                       \
    struct alignas(bytes) Name {                                                \
        __VA_ARGS__;                                                            \
        Name() = default;                                                       \
        Name(const Name&) = default;                                            \
        Name& operator=(const Name& other) {                                    \
            *reinterpret_cast<cuda_emulation::Bytes##bytes*>(this) =            \
                *reinterpret_cast<const cuda_emulation::Bytes##bytes*>(&other); \
            return *this;                                                       \
        }                                                                       \
    }

EMULATED_VECTOR(char4, 4, int8_t x, y, z, w);
EMULATED_VECTOR(uchar4, 4, uint8_t x, y, z, w);
EMULATED_VECTOR(short2, 4, int16_t x, y);
EMULATED_VECTOR(ushort2, 4, uint16_t x, y);
EMULATED_VECTOR(short4, 8, int16_t x, y, z, w);
EMULATED_VECTOR(ushort4, 8, uint16_t x, y, z, w);
EMULATED_VECTOR(int2, 8, int x, y);
EMULATED_VECTOR(int4, 16, int x, y, z, w);
EMULATED_VECTOR(uint2, 8, unsigned x, y);
EMULATED_VECTOR(uint4, 16, unsigned x, y, z, w);
EMULATED_VECTOR(float2, 8, float x, y);
EMULATED_VECTOR(float4, 16, float x, y, z, w);
EMULATED_VECTOR(double2, 16, double x, y);
EMULATED_VECTOR(longlong2, 16, long long x, y);
EMULATED_VECTOR(ulonglong2, 16, unsigned long long x, y);
#undef EMULATED_VECTOR

struct uint3 {
    unsigned x, y, z;
};
struct int3 {
    int x, y, z;
};
struct float3 {
    float x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline char4 make_char4(int8_t x, int8_t y, int8_t z, int8_t w) { return {x, y, z, w}; }
inline uchar4 make_uchar4(uint8_t x, uint8_t y, uint8_t z, uint8_t w) { return {x, y, z, w}; }
inline short2 make_short2(int16_t x, int16_t y) { return {x, y}; }
inline ushort2 make_ushort2(uint16_t x, uint16_t y) { return {x, y}; }
inline short4 make_short4(int16_t x, int16_t y, int16_t z, int16_t w) { return {x, y, z, w}; }
inline ushort4 make_ushort4(uint16_t x, uint16_t y, uint16_t z, uint16_t w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int3 make_int3(int x, int y, int z) { return {x, y, z}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline longlong2 make_longlong2(long long x, long long y) { return {x, y}; }
inline ulonglong2 make_ulonglong2(unsigned long long x, unsigned long long y) { return {x, y}; }
