// What the tensor-core kernels of low-bit products are told, and what they have in common: operands, bodies, the walk
// through k, tiles. See lowbit_gemm.cuh.
#pragma once

#include "cuda/lowbit_finish.cuh"

namespace spos::cuda {

// x as the tensor cores read it: chunk c of a tap of pixel p, group g and segment s (or plane) is at
// rows + p * row_bytes + g * group_bytes + s * segment_bytes + 16 * c.
struct LowbitOperand {
    const uint8_t* rows;
    int64_t row_bytes, group_bytes, segment_bytes;
    const uint8_t* outside;  // a pixel for taps outside of the map; null: zeros
    int chunks;              // of a tap
    int valid;               // bytes of a tap; behind them come zeros
    int codes;               // of a tap
    LowbitMap map;           // pixels to rows; of windows: windows
};

struct LowbitSplit {
    int count;
    int32_t* partial;    // of each block the integers of each thread
    uint32_t* finished;  // of each tile, zero before and after
};

struct LowbitProduct {
    LowbitConv2d call;
    LowbitOperand x;
    LowbitFinish finish;
    LowbitSplit split;
    int pixels;                   // of the result
    int segments, steps;          // of a segment
    int tile_rows, tile_columns;  // of a group, of tiles
    bool row_sums;                // are they needed?
};

template <LowbitBody body>
struct BodyTraits;
template <>
struct BodyTraits<LowbitBody::s8> {
    static constexpr int codes = 16, words = 5;  // of a chunk; of it as packed, with one more for what is not aligned
};
template <>
struct BodyTraits<LowbitBody::s4> {
    static constexpr int codes = 32, words = 5;
};
template <>
struct BodyTraits<LowbitBody::b1> {
    static constexpr int codes = 128, words = 9;
};

// Elsewhere the compiler makes a hundred instructions of one, and the host takes another body.
template <LowbitBody body>
__host__ __device__ constexpr bool has_instruction() {
#if defined(__CUDA_ARCH__)
    return body == LowbitBody::s8 || (body == LowbitBody::s4 && __CUDA_ARCH__ < 900) ||
           (body == LowbitBody::b1 && __CUDA_ARCH__ < 1000);
#else
    return true;
#endif
}

template <LowbitBody body>
__device__ __forceinline__ void multiply_add(int32_t (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (body == LowbitBody::s8)
        ptx::mma_m16n8k32_u8s8(sum, a, b, sum);
    else if constexpr (body == LowbitBody::s4)
        ptx::mma_m16n8k64_u4s4(sum, a, b, sum);
    else
        ptx::mma_m16n8k256_b1(sum, a, b, sum);
}

// The sum of the codes in a word.
template <LowbitBody body>
__device__ __forceinline__ int32_t add_codes(int32_t sum, uint32_t word) {
    if constexpr (body == LowbitBody::s8)
        return static_cast<int32_t>(__dp4a(word, 0x01010101u, static_cast<uint32_t>(sum)));
    if constexpr (body == LowbitBody::s4)
        return static_cast<int32_t>(
            __dp4a((word & 0x0f0f0f0fu) + (word >> 4 & 0x0f0f0f0fu), 0x01010101u, static_cast<uint32_t>(sum)));
    return sum + __popc(word);
}

// Of segment s the planes of x and of the weights, by falling power of two.
struct Planes {
    int x, weight;
    __device__ __forceinline__ Planes(int segment, int x_bits, int w_bits)
        : x(x_bits - 1 - segment / w_bits), weight(w_bits - 1 - segment % w_bits) {}
    __device__ __forceinline__ int power() const { return x + weight; }
};

// Where in k a thread's chunks are, step after step, segment after segment.
struct Walk {
    int segment, step, tap_row, tap_column, chunk;

    __device__ __forceinline__ void start(int at_segment, int first_step, const LowbitOperand& x, int number) {
        segment = at_segment, step = first_step;
        const int at = 4 * first_step + number, tap = at / x.chunks;
        chunk = at % x.chunks, tap_row = tap / x.map.kernel.width, tap_column = tap % x.map.kernel.width;
    }
    template <bool segmented>
    __device__ __forceinline__ void advance(int first_step, int last_step, const LowbitOperand& x, int number) {
        if (segmented && ++step == last_step) return start(segment + 1, first_step, x, number);
        for (chunk += 4; chunk >= x.chunks; chunk -= x.chunks)
            if (++tap_column == x.map.kernel.width) tap_column = 0, ++tap_row;
    }
    __device__ __forceinline__ bool exists(const LowbitOperand& x) const { return tap_row < x.map.kernel.height; }
};

template <int warp_tile>
struct LowbitTile {
    static constexpr int size = 2 * warp_tile, threads = 128;
    static constexpr int stages = size == 128 ? 3 : 4;  // two blocks' buffers fit 100 KB
    static constexpr int slots = size / 32;             // chunks of an operand that a thread brings in a step
    static constexpr int operand_bytes = size * 64;
    static constexpr int row_fragments = warp_tile / 16, column_fragments = warp_tile / 8;
    // A warp's results go 16 rows at a time to where other warps have none: rows start in banks 8 apart.
    static constexpr int result_stride = warp_tile + 8, result_words = 16 * result_stride + 16;
    static constexpr int row_bytes = 3 * 4 * size;  // where the pixels of rows are
    static constexpr int shared_bytes = (stages + 2) * operand_bytes + row_bytes;
    static constexpr int partial_words = threads * (row_fragments * column_fragments * 4 + 2 * row_fragments);
    static_assert(4 * 4 * result_words <= shared_bytes - row_bytes, "results take the place of operands");

    // 8 rows further is 512 bytes further.
    __device__ __forceinline__ static int place(int row, int chunk) { return row * 64 + (chunk ^ row / 2 % 4) * 16; }
};

}  // namespace spos::cuda
