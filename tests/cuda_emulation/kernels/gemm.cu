// c = a * b^T in signed bytes: what a shipped kernel is made of, all at once.
//
// Shapes   a (m, k), b (n, k), c (m, n), row-major, all sizes multiples of 64.
// Method   Blocks of 64 x 64 outputs, 64 of k at a time through two buffers that cp.async fills one step ahead; four
//          warps of 32 x 32 outputs, ldmatrix and mma.sync. A row of 64 bytes is four chunks; chunk j of row i is
//          stored at place j ^ (i / 2 % 4), so that the eight rows of a matrix lie in different banks.
#include "cuda_emulation/device.h"

namespace {

constexpr int tile = 64, chunk = 16, chunks = tile / chunk;

template <bool swizzled>
__device__ __forceinline__ int place(int row, int column_chunk) {
    return row * tile + (swizzled ? column_chunk ^ (row / 2 % chunks) : column_chunk) * chunk;
}

template <bool swizzled>
__global__ void __launch_bounds__(128) gemm(const int8_t* a, const int8_t* b, int32_t* c, int n, int k) {
    SHARED_ARRAY(uint4, buffers, [2][2][tile * chunks]);
    const int t = threadIdx.x, lane = t % 32, warp = t / 32;
    const int first_row = blockIdx.y * tile, first_column = blockIdx.x * tile;
    const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;

    const auto fetch = [&](int step) {
        for (int i = t; i < tile * chunks; i += 128) {
            const int row = i / chunks, column = i % chunks;
            char* const to = reinterpret_cast<char*>(buffers[step % 2]);
            ptx::cp_async<16>(to + place<swizzled>(row, column),
                              a + (first_row + row) * k + step * tile + column * chunk);
            ptx::cp_async<16>(to + tile * tile + place<swizzled>(row, column),
                              b + (first_column + row) * k + step * tile + column * chunk);
        }
        ptx::cp_async_commit();
    };

    int32_t sums[2][4][4] = {};
    fetch(0);
    for (int step = 0; step < k / tile; ++step) {
        ptx::cp_async_wait<0>();
        __syncthreads();
        if (step + 1 < k / tile) fetch(step + 1);
        const char* const from = reinterpret_cast<const char*>(buffers[step % 2]);
        for (int part = 0; part < tile / 32; ++part) {
            uint32_t b_registers[4][2];
            for (int j = 0; j < 4; j += 2) {
                uint32_t both[4];
                const int row = warp_column + 8 * (j + lane / 16) + lane % 8;
                ptx::ldmatrix(both, from + tile * tile + place<swizzled>(row, 2 * part + lane / 8 % 2));
                for (int r = 0; r < 4; ++r) b_registers[j + r / 2][r % 2] = both[r];
            }
            for (int i = 0; i < 2; ++i) {
                uint32_t a_registers[4];
                ptx::ldmatrix(a_registers, from + place<swizzled>(warp_row + 16 * i + lane % 16, 2 * part + lane / 16));
                for (int j = 0; j < 4; ++j) ptx::mma_m16n8k32_s8(sums[i][j], a_registers, b_registers[j], sums[i][j]);
            }
        }
    }
    for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 4; ++j) {
            const int row = first_row + warp_row + 16 * i + lane / 4;
            const int column = first_column + warp_column + 8 * j + lane % 4 * 2;
            *reinterpret_cast<int2*>(c + row * n + column) = make_int2(sums[i][j][0], sums[i][j][1]);
            *reinterpret_cast<int2*>(c + (row + 8) * n + column) = make_int2(sums[i][j][2], sums[i][j][3]);
        }
    }
}

}  // namespace

extern "C" int run_gemm(int swizzled, int m, int n, int k, const int8_t* a, const int8_t* b, int32_t* c) {
    return device::launch(swizzled ? gemm<true> : gemm<false>, dim3(n / tile, m / tile), dim3(128), 0, cudaStream_t(),
                          a, b, c, n, k);
}
