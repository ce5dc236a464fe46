// See depthwise_layout.h.
#include "cpu/depthwise_layout.h"

#include <algorithm>
#include <type_traits>

#include "core/parallel.h"

namespace spos {

template <typename T>
DepthwiseBody<T> choose_depthwise_body([[maybe_unused]] Isa isa, int64_t channels) {
#if defined(__x86_64__)
    if constexpr (std::is_same_v<T, float>) {
        if (isa >= Isa::avx512 && channels >= 16) return depthwise_body_avx512();
        if (isa != Isa::portable && channels >= 8) return depthwise_body_avx2();
    }
#endif
    const DepthwiseBody<T> portable = depthwise_body_portable<T>();
    return channels >= portable.lanes ? portable : depthwise_body_scalar<T>();
}

template <typename T>
void pack_depthwise_weight(const T* weight, int64_t channels, int taps, int lanes, bool flip, T* packed) {
    for (int64_t block = 0; block < depthwise_blocks(channels, lanes); ++block) {
        const T* const from = weight + depthwise_block_channel(block, channels, lanes) * taps;
        for (int tap = 0; tap < taps; ++tap)
            for (int lane = 0; lane < lanes; ++lane)
                packed[(block * taps + tap) * lanes + lane] = from[lane * taps + (flip ? taps - 1 - tap : tap)];
    }
}

template <typename T>
void combine_depthwise_partials(const T* partial, int64_t parts, int64_t channels, int taps, int lanes, T* dweight,
                                int threads) {
    const int64_t blocks = depthwise_blocks(channels, lanes);
    constexpr int64_t worth_a_team = 32768;  // additions
    const int team = parts * channels * taps >= worth_a_team ? threads : 1;
    parallel_for(blocks, team, [=](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block) {
            const int64_t channel = depthwise_block_channel(block, channels, lanes);
            for (int tap = 0; tap < taps; ++tap) {
                const T* from = partial + (block * taps + tap) * lanes;
                T sum[widest_depthwise_lanes];
                std::copy(from, from + lanes, sum);
                for (int64_t part = 1; part < parts; ++part) {
                    from += blocks * taps * lanes;
                    for (int lane = 0; lane < lanes; ++lane) sum[lane] += from[lane];
                }
                for (int64_t lane = block * lanes - channel; lane < lanes; ++lane)
                    dweight[(channel + lane) * taps + tap] = sum[lane];
            }
        }
    });
}

template DepthwiseBody<float> choose_depthwise_body(Isa, int64_t);
template DepthwiseBody<double> choose_depthwise_body(Isa, int64_t);
template void pack_depthwise_weight(const float*, int64_t, int, int, bool, float*);
template void pack_depthwise_weight(const double*, int64_t, int, int, bool, double*);
template void combine_depthwise_partials(const float*, int64_t, int64_t, int, int, float*, int);
template void combine_depthwise_partials(const double*, int64_t, int64_t, int, int, double*, int);

}  // namespace spos
