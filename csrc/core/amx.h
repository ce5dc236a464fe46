// Tiles of AMX for bytes: eight registers of 16 rows of 64 bytes. As assembly, since GCC's intrinsics do not say which
// memory they read, and need flags for a whole file. For files that run only where Isa::amx is supported.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/isa.h"

namespace spos {

#if defined(SPOS_AVX512_TWINS)

// The same for tests on processors without tiles. A thread's registers are its own, as the processor's are.
struct TileFile {
    alignas(64) uint8_t tile[8][16][64];
};
inline thread_local TileFile tile_file;

inline void configure_tiles() { std::memset(&tile_file, 0, sizeof tile_file); }
inline void release_tiles() {}

template <int T>
void zero_tile() {
    std::memset(tile_file.tile[T], 0, sizeof tile_file.tile[T]);
}
template <int T>
void load_tile(const void* from, int64_t stride) {
    for (int64_t row = 0; row < 16; ++row)
        std::memcpy(tile_file.tile[T][row], static_cast<const char*>(from) + row * stride, 64);
}
template <int T>
void store_tile(void* to, int64_t stride) {
    for (int64_t row = 0; row < 16; ++row)
        std::memcpy(static_cast<char*>(to) + row * stride, tile_file.tile[T][row], 64);
}
template <int C, int A, int B>
void dot_tiles() {
    for (int m = 0; m < 16; ++m) {
        uint32_t sums[16];
        std::memcpy(sums, tile_file.tile[C][m], sizeof sums);
        for (int k = 0; k < 64; ++k)
            for (int n = 0; n < 16; ++n)
                sums[n] += static_cast<uint32_t>(tile_file.tile[A][m][k] *
                                                 static_cast<int8_t>(tile_file.tile[B][k / 4][4 * n + k % 4]));
        std::memcpy(tile_file.tile[C][m], sums, sizeof sums);
    }
}

#else

// All tiles whole. What they hold is zero afterwards.
inline void configure_tiles() {
    struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } configuration;
    __asm__ volatile("ldtilecfg %0" : : "m"(configuration) : "memory");
}

// So that switching to another thread does not save what nobody needs.
inline void release_tiles() { __asm__ volatile("tilerelease" : : : "memory"); }

template <int T>
inline void zero_tile() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(T));
}
template <int T>
inline void load_tile(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T>
inline void store_tile(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(T) : "memory");
}
// C += A * B, unsigned by signed: C[m][n] += sum over k of A[m][k] * B[k / 4][4 n + k % 4], 32 bits, modular.
template <int C, int A, int B>
inline void dot_tiles() {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

#endif

}  // namespace spos
