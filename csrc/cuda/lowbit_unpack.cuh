// Packed weights from memory to the operands of tensor cores: streams of bits, dense, of any alignment.
//
// A chunk is 16 bytes of an operand: 16 bytes, 32 nibbles or 128 bits. Its codes are read as the aligned words that
// hold them, and come apart in registers: a funnel shift to the first bit, then fields move to their places by halves,
// each step two operations on a word. Codes are centred on the way, c - 2^(bits - 1), which makes them signed.
#pragma once

#include "cuda/lowbit.h"
#include "cuda_emulation/device.h"

namespace spos::cuda {

struct PackedBytes {
    const uint8_t *begin, *end;
};

// A word of which some bytes are outside of the buffer: these are zero.
__device__ __forceinline__ uint32_t edge_word(const PackedBytes& all, const uint8_t* at) {
    uint32_t word = 0;
#pragma unroll 1
    for (int i = 0; i < 4; ++i)
        if (at + i >= all.begin && at + i < all.end) word |= static_cast<uint32_t>(at[i]) << 8 * i;
    return word;
}

// Where bit `first` of a row is: an aligned word, and the bit of it.
struct PackedPlace {
    const uint8_t* first;
    int shift;

    __device__ __forceinline__ PackedPlace(const uint8_t* row, uint32_t bit) {
        const uint8_t* const at = row + bit / 8;
        const int off = static_cast<int>(reinterpret_cast<uintptr_t>(at) & 3);
        first = at - off, shift = 8 * off + static_cast<int>(bit % 8);
    }
    // Words that hold so many bits.
    __device__ __forceinline__ int words(int bits) const { return (shift + bits + 31) / 32; }
};

// `count` words, zeros behind them. Behind a row's end they hold whatever follows it.
template <int most>
__device__ __forceinline__ void load_packed(uint32_t (&to)[most], const PackedBytes& all, const uint8_t* from,
                                            int count) {
    if (count == 0 || (from >= all.begin && from + 4 * count <= all.end)) {
#pragma unroll
        for (int i = 0; i < most; ++i) to[i] = i < count ? reinterpret_cast<const uint32_t*>(from)[i] : 0;
    } else {
#pragma unroll
        for (int i = 0; i < most; ++i) to[i] = i < count ? edge_word(all, from + 4 * i) : 0;
    }
}

// Codes of `bits` bits, one after another from bit 0, to fields of 4 or 8 bits.
template <int bits, int field>
__device__ __forceinline__ uint32_t spread(uint32_t x) {
#pragma unroll
    for (int width = 16; width >= field; width /= 2) {
        const uint32_t lower = width == 16 ? 0x0000ffffu : width == 8 ? 0x00ff00ffu : 0x0f0f0f0fu;
        x = (x & lower) | (x << (width - width / field * bits) & ~lower);
    }
    constexpr uint32_t every = field == 8 ? 0x01010101u : 0x11111111u;
    return x & every * ((1u << bits) - 1);
}

// c - 2^(bits - 1) in each field.
template <int bits, int field>
__device__ __forceinline__ uint32_t centred(uint32_t fields) {
    constexpr uint32_t every = field == 8 ? 0x01010101u : 0x11111111u;
    constexpr uint32_t top = 1u << (field - 1), half = 1u << (bits - 1);
    return (fields + every * (top - half)) ^ (every * top);
}

// `bits` bits from the chunk's bit `start` on, in the lowest places; what is above them has no meaning.
template <int start, int bits, int most>
__device__ __forceinline__ uint32_t window(const uint32_t (&words)[most]) {
    constexpr int word = start / 32, shift = start % 32;
    if constexpr (shift == 0)
        return words[word];
    else if constexpr (shift + bits <= 32)
        return words[word] >> shift;
    else
        return __funnelshift_r(words[word], words[word + 1], shift);
}

// A chunk's fields, as make(word of fields) leaves them.
template <int bits, int field, int most, typename Make>
__device__ __forceinline__ uint4 unpack_chunk(const uint32_t (&chunk)[most], int shift, const Make& make) {
    constexpr int count = 32 / field * bits;  // bits of a word of fields
    uint32_t words[4] = {};
#pragma unroll
    for (int i = 0; i < (4 * count + 31) / 32; ++i) words[i] = __funnelshift_r(chunk[i], chunk[i + 1], shift);
    return make_uint4(make(spread<bits, field>(window<0, count>(words))),
                      make(spread<bits, field>(window<count, count>(words))),
                      make(spread<bits, field>(window<2 * count, count>(words))),
                      make(spread<bits, field>(window<3 * count, count>(words))));
}

template <int bits, int field, int most>
__device__ __forceinline__ uint4 unpack_fields(const uint32_t (&chunk)[most], int shift) {
    return unpack_chunk<bits, field>(chunk, shift, [](uint32_t fields) { return centred<bits, field>(fields); });
}

// 16 codes as they are.
template <int bits, int most>
__device__ __forceinline__ uint4 unpack_bytes(const uint32_t (&chunk)[most], int shift) {
    return unpack_chunk<bits, 8>(chunk, shift, [](uint32_t bytes) { return bytes; });
}

// Bit `plane` of 16 codes of two bits.
__device__ __forceinline__ uint32_t every_second_bit(uint32_t word, int plane) {
    uint32_t x = word >> plane & 0x55555555u;
    x = (x | x >> 1) & 0x33333333u;
    x = (x | x >> 2) & 0x0f0f0f0fu;
    x = (x | x >> 4) & 0x00ff00ffu;
    return (x | x >> 8) & 0x0000ffffu;
}

template <int bits, int most>
__device__ __forceinline__ uint4 unpack_plane(const uint32_t (&chunk)[most], int shift, int plane) {
    uint32_t to[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        if constexpr (bits == 1)
            to[i] = __funnelshift_r(chunk[i], chunk[i + 1], shift);
        else
            to[i] = every_second_bit(__funnelshift_r(chunk[2 * i], chunk[2 * i + 1], shift), plane) |
                    every_second_bit(__funnelshift_r(chunk[2 * i + 1], chunk[2 * i + 2], shift), plane) << 16;
    }
    return make_uint4(to[0], to[1], to[2], to[3]);
}

// Calls function(a constant of that many bits).
template <int bits>
struct Bits {
    static constexpr int value = bits;
};
template <int most, typename Function>
__device__ __forceinline__ void with_bits(int bits, const Function& function) {
    if (bits == 1) return function(Bits<1>{});
    if (bits == 2) return function(Bits<2>{});
    if constexpr (most > 2) {
        if (bits == 3) return function(Bits<3>{});
        if (bits == 4) return function(Bits<4>{});
    }
    if constexpr (most > 4) {
        if (bits == 5) return function(Bits<5>{});
        if (bits == 6) return function(Bits<6>{});
        if (bits == 7) return function(Bits<7>{});
        if (bits == 8) return function(Bits<8>{});
    }
}

}  // namespace spos::cuda
