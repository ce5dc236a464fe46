// Products of unsigned bytes by signed bytes: one body for every vector type V, included by the per-instruction-set
// files.
//
// Work      m * n * k multiply-adds, four a lane and instruction (AVX-512 VNNI: 64, exact; AVX2: 32, from two
//           instructions that must not saturate).
// Method    As in gemm.inl: a register tile of rows x vectors, for four k at once: vectors of B are loaded and meet a
//           broadcast of four bytes of each row of A. B is unpacked into panels for each call, a hundredth of the work
//           from some hundred rows on: the weights in memory stay as small as their bits.
// Blocks    A panel of B stays in L2 and streams from there, asked for some steps ahead: cutting k so that it fits L1
//           costs more in sums that are stored and loaded again. Only panels beyond that are cut.
#pragma once

#include <algorithm>

#include "core/unroll.h"
#include "cpu/lowbit_body.h"

namespace spos {
namespace {

template <class V, int MR, int NV, bool Large>
void dot_tile(const DotProduct& call, int64_t row, int64_t first, int64_t steps) {
    using Sum = typename V::Sum;
    Sum sum[MR][NV];
    int32_t* const c = call.c + row * call.c_m;
    SPOS_UNROLL
    for (int r = 0; r < MR; ++r) {
        SPOS_UNROLL
        for (int j = 0; j < NV; ++j) sum[r][j] = first ? V::load(c + r * call.c_m + j * V::lanes) : V::zero();
    }
    constexpr int64_t b_step = NV * V::lanes * 4;
    const int64_t a_m = call.a_m;
    // Three rows a pointer: an address is then base + {0, 1, 2} * a_m, which needs no register of its own.
    constexpr int pointers = (MR + 2) / 3;
    const uint8_t* a[pointers];
    SPOS_UNROLL
    for (int i = 0; i < pointers; ++i) a[i] = call.a + (row + 3 * i) * a_m + 4 * first;
    const int8_t* b = call.b + first * b_step;
    for (int64_t k = 0; k < steps; ++k) {
        typename V::Bytes column[NV];
        SPOS_UNROLL
        for (int j = 0; j < NV; ++j) column[j] = V::bytes(b + j * V::lanes * 4);
        SPOS_UNROLL
        for (int j = 0; j < NV; ++j) __builtin_prefetch(b + 4 * b_step + j * V::lanes * 4);  // from L2
        SPOS_UNROLL
        for (int r = 0; r < MR; ++r) {
            const auto value = V::quad(a[r / 3] + r % 3 * a_m);
            SPOS_UNROLL
            for (int j = 0; j < NV; ++j) sum[r][j] = V::template dot<Large>(sum[r][j], value, column[j]);
        }
        SPOS_UNROLL
        for (int i = 0; i < pointers; ++i) a[i] += 4;
        b += b_step;
    }
    SPOS_UNROLL
    for (int r = 0; r < MR; ++r) {
        SPOS_UNROLL
        for (int j = 0; j < NV; ++j) V::store(c + r * call.c_m + j * V::lanes, sum[r][j]);
    }
}

template <class V, int NV, bool Large>
void dot_rows(const DotProduct& call, int64_t first, int64_t steps) {
    constexpr int most = V::tile_rows(NV);
    int64_t row = 0;
    for (; row + most <= call.m; row += most) dot_tile<V, most, NV, Large>(call, row, first, steps);
    if constexpr (most > 6)
        for (; row + 6 <= call.m; row += 6) dot_tile<V, 6, NV, Large>(call, row, first, steps);
    if constexpr (most > 3)
        for (; row + 3 <= call.m; row += 3) dot_tile<V, 3, NV, Large>(call, row, first, steps);
    for (; row < call.m; ++row) dot_tile<V, 1, NV, Large>(call, row, first, steps);
}

template <class V, bool Large>
void dots_of(const DotProduct& call) {
    constexpr int64_t block_bytes = 1 << 20;
    const int64_t most = block_bytes / (call.vectors * V::lanes * 4);
    const int64_t blocks = std::max<int64_t>(1, (call.steps + most - 1) / most);
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = call.steps * block / blocks, steps = call.steps * (block + 1) / blocks - first;
        if constexpr (V::panel > 2) {
            if (call.vectors == 4) dot_rows<V, 4, Large>(call, first, steps);
            if (call.vectors == 3) dot_rows<V, 3, Large>(call, first, steps);
        }
        if (call.vectors == 2) dot_rows<V, 2, Large>(call, first, steps);
        if (call.vectors == 1) dot_rows<V, 1, Large>(call, first, steps);
    }
}

template <class V>
void dots(const DotProduct& call) {
    if (V::saturates && call.large)
        dots_of<V, true>(call);
    else
        dots_of<V, false>(call);
}

// For instruction sets without a way from packed rows to panels in registers. scratch: lanes rows of k bytes, each
// rounded up to 64.
template <class V>
void pack_through(const PackedRows& rows, int64_t n0, int64_t count, int vectors, int half, uint8_t* scratch,
                  int8_t* to) {
    const int64_t steps = (rows.k + 3) / 4, row = (rows.k + 63) / 64 * 64, width = vectors * V::lanes;
    for (int64_t column = 0; column < width; column += V::lanes) {
        for (int lane = 0; lane < V::lanes; ++lane) {
            uint8_t* const codes = scratch + lane * row;
            const int64_t n = column + lane;
            if (n < count) V::unpack(rows.data + (n0 + n) * rows.row_bytes, rows.k, rows.bits, codes);
            std::fill(codes + (n < count ? rows.k : 0), codes + row, static_cast<uint8_t>(half));
        }
        for (int64_t step = 0; step < steps; ++step)
            for (int lane = 0; lane < V::lanes; ++lane)
                for (int k = 0; k < 4; ++k)
                    to[(step * width + column + lane) * 4 + k] =
                        static_cast<int8_t>(scratch[lane * row + 4 * step + k] - half);
    }
}

}  // namespace
}  // namespace spos
