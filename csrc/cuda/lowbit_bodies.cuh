// The kernels that a plan chooses from (lowbit_plan.cu), and what it has to know of them. Each returns a cudaError_t.
#pragma once

#include "cuda/lowbit_input.cuh"
#include "cuda/lowbit_product.cuh"

namespace spos::cuda {

int lowbit_gemm_s8(const LowbitProduct& product, int tile, cudaStream_t stream);
int lowbit_gemm_s4(const LowbitProduct& product, int tile, cudaStream_t stream);
int lowbit_gemm_b1(const LowbitProduct& product, cudaStream_t stream);

// Matrix products of one row, or of up to four, by dp4a (lowbit_rows.cu).
struct LowbitRows {
    static constexpr int most = 4;
    static constexpr int threads = 128, warp_columns = 4, columns = threads / 32 * warp_columns;  // of a block
    static constexpr int lane_codes = 16, step = 32 * lane_codes;                                 // of k
    static constexpr int warp_words = warp_columns + 1;  // that a warp leaves of a row: sums of products, and of x

    LowbitConv2d call;
    LowbitInput x;
    LowbitFinish finish;
    LowbitSplit split;
    int steps;

    static int padded(int64_t rows) { return rows == 1 ? 1 : most; }
    static int64_t partial_bytes(int64_t rows) { return int64_t{4} * padded(rows) * threads / 32 * warp_words; }
};
int lowbit_rows(const LowbitRows& product, cudaStream_t stream);

// Convolutions of groups of few channels, without tiles (lowbit_direct.cu).
struct LowbitDirect {
    static constexpr int threads = 256, most_words = 96;

    LowbitConv2d call;  // of codes
    LowbitFinish finish;
    int words;          // of a column of weights, four codes each
    int quads;          // of a block: of four adjacent columns, a power of two
    int column_blocks;  // of `quads`
    int pixels;         // of a block
    bool whole;         // may words of x be read as such?

    static bool depthwise(const LowbitConv2d& call) { return call.inputs == 1 && call.outputs == 1; }
    // Words are of four taps of a channel where it is depthwise, else of four inputs at a tap.
    static int64_t words_of(const LowbitConv2d& call) {
        return depthwise(call) ? (call.map.taps() + 3) / 4 : int64_t{call.map.taps()} * ((call.inputs + 3) / 4);
    }
    static int quads_of(const LowbitConv2d& call) {
        int quads = 1;
        while (quads < 32 && 4 * quads < call.columns()) quads *= 2;
        return quads;
    }
};
int lowbit_direct(const LowbitDirect& product, cudaStream_t stream);

}  // namespace spos::cuda
