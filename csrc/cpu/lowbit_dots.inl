// Products of unsigned bytes by signed bytes: one body for every vector type V, included by the per-instruction-set
// files.
//
// Work      m * n * k multiply-adds, four a lane and instruction (AVX-512 VNNI: 64, exact; AVX2: 32, from two
//           instructions that must not saturate).
// Method    As in gemm.inl: a register tile of rows x vectors, for four k at once: vectors of B are loaded and meet a
//           broadcast of four bytes of each row of A, from wherever its tap lies: the windows of a convolution are not
//           copied. B is unpacked into panels for each call, a hundredth of the work from some hundred rows on: the
//           weights in memory stay as small as their bits.
// Blocks    A panel of B stays in L2 and streams from there, asked for some steps ahead: cutting k so that it fits L1
//           costs more in sums that are stored and loaded again. Only panels beyond that are cut.
#pragma once

#include <algorithm>

#include "core/unroll.h"
#include "cpu/lowbit_body.h"

namespace spos {
namespace {

// Of a product some taps, and of those some steps.
struct DotBlock {
    int64_t first_tap, taps, first, steps;
};

template <class V, int MR, int NV, bool Large>
void dot_tile(const DotProduct& call, int64_t row, DotBlock block) {
    using Sum = typename V::Sum;
    Sum sum[MR][NV];
    int32_t* const c = call.c + row * call.c_m;
    const bool begun = block.first_tap || block.first;
    SPOS_UNROLL
    for (int r = 0; r < MR; ++r) {
        SPOS_UNROLL
        for (int j = 0; j < NV; ++j) sum[r][j] = begun ? V::load(c + r * call.c_m + j * V::lanes) : V::zero();
    }
    constexpr int64_t b_step = NV * V::lanes * 4;
    const int8_t* b = call.b + (block.first_tap * call.steps + block.first) * b_step;
    for (int64_t tap = block.first_tap; tap < block.first_tap + block.taps; ++tap) {
        const uint8_t* a[MR];
        SPOS_UNROLL
        for (int r = 0; r < MR; ++r) a[r] = call.a[tap * call.a_tap + row + r] + call.at + 4 * block.first;
        for (int64_t k = 0; k < 4 * block.steps; k += 4) {
            typename V::Bytes column[NV];
            SPOS_UNROLL
            for (int j = 0; j < NV; ++j) column[j] = V::bytes(b + j * V::lanes * 4);
            SPOS_UNROLL
            for (int j = 0; j < NV; ++j) __builtin_prefetch(b + 4 * b_step + j * V::lanes * 4);  // from L2
            SPOS_UNROLL
            for (int r = 0; r < MR; ++r) {
                const auto value = V::quad(a[r] + k);
                SPOS_UNROLL
                for (int j = 0; j < NV; ++j) sum[r][j] = V::template dot<Large>(sum[r][j], value, column[j]);
            }
            b += b_step;
        }
    }
    SPOS_UNROLL
    for (int r = 0; r < MR; ++r) {
        SPOS_UNROLL
        for (int j = 0; j < NV; ++j) V::store(c + r * call.c_m + j * V::lanes, sum[r][j]);
    }
}

template <class V, int NV, bool Large>
void dot_rows(const DotProduct& call, DotBlock block) {
    constexpr int most = V::tile_rows(NV);
    int64_t row = 0;
    for (; row + most <= call.m; row += most) dot_tile<V, most, NV, Large>(call, row, block);
    if constexpr (most > 6)
        for (; row + 6 <= call.m; row += 6) dot_tile<V, 6, NV, Large>(call, row, block);
    if constexpr (most > 3)
        for (; row + 3 <= call.m; row += 3) dot_tile<V, 3, NV, Large>(call, row, block);
    for (; row < call.m; ++row) dot_tile<V, 1, NV, Large>(call, row, block);
}

template <class V, bool Large>
void dots_of(const DotProduct& call) {
    constexpr int64_t block_bytes = 1 << 20;
    const int64_t most = block_bytes / (call.vectors * V::lanes * 4);  // steps
    const int64_t taps = std::max<int64_t>(1, most / std::max<int64_t>(1, call.steps));
    const int64_t cuts = std::max<int64_t>(1, (call.steps + most - 1) / most);
    for (int64_t tap = 0; tap < call.taps; tap += taps)
        for (int64_t cut = 0; cut < cuts; ++cut) {
            const int64_t first = call.steps * cut / cuts, steps = call.steps * (cut + 1) / cuts - first;
            const DotBlock block{tap, std::min(taps, call.taps - tap), first, steps};
            if constexpr (V::panel > 2) {
                if (call.vectors == 4) dot_rows<V, 4, Large>(call, block);
                if (call.vectors == 3) dot_rows<V, 3, Large>(call, block);
            }
            if (call.vectors == 2) dot_rows<V, 2, Large>(call, block);
            if (call.vectors == 1) dot_rows<V, 1, Large>(call, block);
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
void pack_through(const PackedRows& rows, int64_t n0, int64_t count, int vectors, SignedCodes how, uint8_t* scratch,
                  int8_t* to) {
    const int64_t steps = (rows.k + 3) / 4, row = (rows.k + 63) / 64 * 64, width = vectors * V::lanes;
    for (int64_t column = 0; column < width; column += V::lanes) {
        for (int lane = 0; lane < V::lanes; ++lane) {
            uint8_t* const codes = scratch + lane * row;
            const int64_t n = column + lane;
            if (n < count) V::unpack(rows.data + (n0 + n) * rows.row_bytes, rows.k, rows.bits, codes);
            std::fill(codes + (n < count ? rows.k : 0), codes + row, uint8_t{0});
        }
        for (int64_t step = 0; step < steps; ++step)
            for (int lane = 0; lane < V::lanes; ++lane)
                for (int k = 0; k < 4; ++k)
                    to[(step * width + column + lane) * 4 + k] =
                        static_cast<int8_t>((scratch[lane * row + 4 * step + k] << how.shift) - how.less);
    }
}

}  // namespace
}  // namespace spos
