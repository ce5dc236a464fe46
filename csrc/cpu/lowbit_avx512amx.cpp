// The body of lowbit_body.h for AVX-512 with AMX: products of bytes by tiles, the rest as with VNNI.
//
// Work      m * n * k multiply-adds, 1,024 a cycle: eight times VNNI's.
// Method    32 rows x 32 columns in four tiles of sums, two of A and two of B for 64 k at once: 4 KB of loads for 64
//           cycles of products. Sixteen rows whose pieces are evenly apart and whole tiles wide are loaded from where
//           they lie; others are copied side by side first, 1 KB of each at a time: they stay in L1 while the panel's
//           columns pass by.
// Ends      k is filled up with zeros of A, by which whatever B has there is multiplied; rows are filled up with
//           whatever the copies held.
#if defined(__x86_64__)

#include <algorithm>
#include <type_traits>

#include "core/amx.h"
#include "core/simd_avx512.h"
#include "cpu/lowbit_body.h"

namespace spos {
namespace {

constexpr int64_t tile_rows = 16, block_rows = 32, tile_k = 64, block_k = 1024;
constexpr int64_t row_bytes = block_k + 64;  // so that rows do not meet in the same sets of L1

template <int T>
using Tile = std::integral_constant<int, T>;

// `steps` times 64 k of two tiles of rows.
struct Segment {
    const uint8_t* a[2];
    int64_t a_m[2];
};

// b: bytes of four k of all columns, b_step apart.
template <int Rows, int Columns>
void dot_block(const Segment* segments, int64_t count, int64_t steps, const int8_t* b, int64_t b_step, int32_t* c,
               int64_t c_m, bool begun) {
    const auto each_sum = [&](const auto& visit) {
        visit(Tile<0>{}, c);
        if constexpr (Columns > 1) visit(Tile<1>{}, c + 16);
        if constexpr (Rows > 1) visit(Tile<2>{}, c + tile_rows * c_m);
        if constexpr (Rows > 1 && Columns > 1) visit(Tile<3>{}, c + tile_rows * c_m + 16);
    };
    each_sum([&](auto tile, const int32_t* at) {
        if (begun)
            load_tile<tile>(at, c_m * 4);
        else
            zero_tile<tile>();
    });
    for (int64_t segment = 0; segment < count; ++segment) {
        const Segment& from = segments[segment];
        for (int64_t k = 0; k < steps * tile_k; k += tile_k, b += tile_k / 4 * b_step) {
            load_tile<6>(b, b_step);
            load_tile<4>(from.a[0] + k, from.a_m[0]);
            dot_tiles<0, 4, 6>();
            if constexpr (Columns > 1) {
                load_tile<7>(b + 64, b_step);
                dot_tiles<1, 4, 7>();
            }
            if constexpr (Rows > 1) {
                load_tile<5>(from.a[1] + k, from.a_m[1]);
                dot_tiles<2, 5, 6>();
            }
            if constexpr (Rows > 1 && Columns > 1) dot_tiles<3, 5, 7>();
        }
    }
    each_sum([&](auto tile, int32_t* at) { store_tile<tile>(at, c_m * 4); });
}

// `count` bytes, and none behind them.
void copy_piece(uint8_t* to, const uint8_t* from, int64_t count) {
    for (; count >= 64; count -= 64, to += 64, from += 64) _mm512_storeu_si512(to, _mm512_loadu_si512(from));
    if (count > 0) {
        const __mmask64 there = (uint64_t{1} << count) - 1;
        _mm512_mask_storeu_epi8(to, there, _mm512_maskz_loadu_epi8(there, from));
    }
}

// Whether sixteen places are evenly apart.
bool are_even(const uint8_t* const* places) {
    const int64_t apart = places[1] - places[0];
    for (int64_t r = 2; r < tile_rows; ++r)
        if (places[r] - places[r - 1] != apart) return false;
    return true;
}

// Some rows and a run of k: `taps` whole taps, or a part of one.
struct Run {
    int64_t row, rows, tap, taps, first, count;  // first, count: bytes of a tap
    bool whole() const { return count > 0 && count % tile_k == 0; }
};

// Makes the segments of a run, and returns how many steps each has. copies: block_rows of row_bytes.
int64_t find_rows(const DotProduct& call, const Run& run, uint8_t* copies, Segment* segments) {
    const bool whole = run.whole();
    const int64_t used = run.taps * run.count, steps = (used + tile_k - 1) / tile_k;
    for (int64_t tile = 0; tile * tile_rows < run.rows; ++tile) {
        const int64_t begin = tile * tile_rows, end = std::min(begin + tile_rows, run.rows);
        for (int64_t tap = 0; tap < run.taps; ++tap) {
            const uint8_t* const* const places = call.a + (run.tap + tap) * call.a_tap + run.row;
            const int64_t at = call.at + run.first;
            if (whole && end - begin == tile_rows && are_even(places + begin)) {
                segments[tap].a[tile] = places[begin] + at;
                segments[tap].a_m[tile] = places[begin + 1] - places[begin];
                continue;
            }
            uint8_t* const to = copies + begin * row_bytes + tap * run.count;
            for (int64_t r = begin; r < end; ++r) copy_piece(to + (r - begin) * row_bytes, places[r] + at, run.count);
            if (whole || tap == 0) segments[tap].a[tile] = to, segments[tap].a_m[tile] = row_bytes;
        }
        for (int64_t r = begin; !whole && r < end; ++r)
            std::fill(copies + r * row_bytes + used, copies + r * row_bytes + steps * tile_k, uint8_t{0});
    }
    return whole ? run.count / tile_k : steps;
}

void dots(const DotProduct& call) {
    const int64_t piece = 4 * call.steps, b_step = int64_t{call.vectors} * 64;
    const int64_t most_taps = std::clamp<int64_t>(block_k / std::max<int64_t>(1, piece), 1, call.taps);
    alignas(64) uint8_t copies[block_rows * row_bytes];
    Segment segments[block_k / tile_k];
    configure_tiles();
    Run run{};
    for (run.row = 0; run.row < call.m; run.row += block_rows) {
        run.rows = std::min(block_rows, call.m - run.row);
        bool begun = false;
        for (run.tap = 0; run.tap < call.taps; run.tap += most_taps) {
            run.taps = std::min(most_taps, call.taps - run.tap);
            for (run.first = 0; run.first < piece || !begun; run.first += block_k) {
                run.count = std::min(block_k, piece - run.first);
                const int64_t steps = find_rows(call, run, copies, segments);
                const int64_t count = run.whole() ? run.taps : 1;
                const int8_t* const b = call.b + (run.tap * call.steps + run.first / 4) * b_step;
                int32_t* const c = call.c + run.row * call.c_m;
                for (int vector = 0; vector < call.vectors; vector += 2) {
                    const bool pair = vector + 1 < call.vectors;
                    const auto block = run.rows > tile_rows ? pair ? dot_block<2, 2> : dot_block<2, 1>
                                       : pair               ? dot_block<1, 2>
                                                            : dot_block<1, 1>;
                    block(segments, count, steps, b + vector * 64, b_step, c + vector * 16, call.c_m, begun);
                }
                begun = true;
            }
        }
    }
    release_tiles();
}

}  // namespace

LowbitBody lowbit_body_avx512amx() {
    LowbitBody body = lowbit_body_avx512vnni();
    body.dots = dots;
    body.dot_rows = block_rows;
    return body;
}

}  // namespace spos

#endif
