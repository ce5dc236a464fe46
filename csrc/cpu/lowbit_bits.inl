// Products of bit planes: one body for every vector type V, included by the per-instruction-set files.
//
// Work      An AND, a population count and an addition for as many bit products as a vector has bits, for each pair of
//           planes: with 512 bits, and w_bits * a_bits up to 2, less than the multiplications of bytes take.
// Method    Planes in the order of their weight, the sums doubled in between (Horner), so that one set of registers
//           holds the sums of all pairs.
// Source    DoReFa-Net, arXiv 1606.06160, section 2.1: a product of quantized vectors by bit operations.
#pragma once

#include <algorithm>

#include "core/unroll.h"
#include "cpu/lowbit_body.h"

namespace spos {
namespace {

template <class V, int MR, int NV>
void bit_tile(const BitProduct& call, int64_t row) {
    typename V::Counts sum[MR][NV];
    SPOS_UNROLL
    for (int r = 0; r < MR; ++r) {
        SPOS_UNROLL
        for (int j = 0; j < NV; ++j) sum[r][j] = V::no_counts();
    }
    constexpr int64_t b_step = NV * V::bit_lanes;
    const int64_t a_m = call.a_m;
    const uint64_t* const a = call.a + row * a_m;
    for (int weight = call.a_planes + call.b_planes - 2; weight >= 0; --weight) {
        SPOS_UNROLL
        for (int r = 0; r < MR; ++r) {
            SPOS_UNROLL
            for (int j = 0; j < NV; ++j) sum[r][j] = V::twice(sum[r][j]);
        }
        for (int i = std::max(0, weight - call.b_planes + 1); i <= std::min(weight, call.a_planes - 1); ++i) {
            const uint64_t* b = call.b + (weight - i) * call.taps * call.words * b_step;
            for (int64_t tap = 0; tap < call.taps; ++tap) {
                const uint64_t* from = a + (tap * call.a_planes + i) * call.words;
                for (int64_t word = 0; word < call.words; ++word, ++from, b += b_step) {
                    typename V::Counts column[NV];
                    SPOS_UNROLL
                    for (int j = 0; j < NV; ++j) column[j] = V::words(b + j * V::bit_lanes);
                    SPOS_UNROLL
                    for (int r = 0; r < MR; ++r) {
                        const auto value = V::word(from + r * a_m);
                        SPOS_UNROLL
                        for (int j = 0; j < NV; ++j) sum[r][j] = V::count(sum[r][j], value, column[j]);
                    }
                }
            }
        }
    }
    SPOS_UNROLL
    for (int r = 0; r < MR; ++r) {
        SPOS_UNROLL
        for (int j = 0; j < NV; ++j) V::store_counts(call.c + (row + r) * call.c_m + j * V::bit_lanes, sum[r][j]);
    }
}

template <class V, int NV>
void bit_rows(const BitProduct& call) {
    constexpr int most = V::bit_tile_rows;
    int64_t row = 0;
    for (; row + most <= call.m; row += most) bit_tile<V, most, NV>(call, row);
    if constexpr (most > 2)
        for (; row + 2 <= call.m; row += 2) bit_tile<V, 2, NV>(call, row);
    for (; row < call.m; ++row) bit_tile<V, 1, NV>(call, row);
}

template <class V>
void bits(const BitProduct& call) {
    if constexpr (V::bit_panel > 2) {
        if (call.vectors == 4) return bit_rows<V, 4>(call);
        if (call.vectors == 3) return bit_rows<V, 3>(call);
    }
    if (call.vectors == 2) return bit_rows<V, 2>(call);
    bit_rows<V, 1>(call);
}

// scratch: k bytes, then 8 words for each 64 codes of a tap.
template <class V>
void pack_bits(const PackedRows& rows, int64_t n0, int64_t count, int vectors, uint8_t* scratch, uint64_t* to) {
    const int64_t channels = rows.k / rows.taps, words = (channels + 63) / 64, width = vectors * V::bit_lanes;
    uint64_t* const planes = reinterpret_cast<uint64_t*>(scratch + (rows.k + 63) / 64 * 64);
    for (int64_t n = 0; n < width; ++n) {
        if (n < count) V::unpack(rows.data + (n0 + n) * rows.row_bytes, rows.k, rows.bits, scratch);
        for (int64_t tap = 0; tap < rows.taps; ++tap) {
            if (n < count)
                V::planes(scratch + tap * channels, channels, rows.bits, words, planes);
            else
                std::fill(planes, planes + rows.bits * words, uint64_t{0});
            for (int plane = 0; plane < rows.bits; ++plane)
                for (int64_t word = 0; word < words; ++word)
                    to[((plane * rows.taps + tap) * words + word) * width + n] = planes[plane * words + word];
        }
    }
}

}  // namespace
}  // namespace spos
