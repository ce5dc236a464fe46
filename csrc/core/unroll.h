// Loops that are unrolled by the template machinery, so that arrays indexed in them become registers at any -O level.
#pragma once

#define SPOS_INLINE inline __attribute__((always_inline))
#define SPOS_INLINE_LAMBDA __attribute__((always_inline))

namespace spos {
namespace {

template <int I>
struct Index {
    static constexpr int value = I;
};

// Calls body(Index<Begin>{}), ..., body(Index<End - 1>{}).
template <int Begin, int End, typename Body>
SPOS_INLINE void unroll(const Body& body) {
    if constexpr (Begin < End) {
        body(Index<Begin>{});
        unroll<Begin + 1, End>(body);
    }
}

}  // namespace
}  // namespace spos
