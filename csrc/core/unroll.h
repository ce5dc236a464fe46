// Full unrolling of a loop with a constant trip count, so that arrays indexed by its variable become registers.
#pragma once

#define SPOS_INLINE inline __attribute__((always_inline))

#if defined(__clang__)
#define SPOS_UNROLL _Pragma("clang loop unroll(full)")
#else
#define SPOS_UNROLL _Pragma("GCC unroll 64")
#endif
