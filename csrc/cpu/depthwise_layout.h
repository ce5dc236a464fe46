// How depthwise kernels see channels: as blocks of one vector, with weights and weight gradients laid out to match.
// Shared by every operation that runs the bodies of depthwise_conv2d_body.h.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "cpu/depthwise_conv2d_body.h"

namespace spos {

constexpr int64_t widest_depthwise_lanes = 16;

// The widest body that `isa` has and that is not wider than the tensor. Blocks of channels are whole vectors: the last
// one is moved back to end with the channels and repeats some of them, which needs no masks and touches nothing
// outside.
template <typename T>
DepthwiseBody<T> choose_depthwise_body(Isa isa, int64_t channels);

inline int64_t depthwise_blocks(int64_t channels, int lanes) { return (channels + lanes - 1) / lanes; }

inline int64_t depthwise_block_channel(int64_t block, int64_t channels, int lanes) {
    return block * lanes < channels - lanes ? block * lanes : channels - lanes;
}

// [channels][taps] -> [block][taps][lane], the taps from last to first where `flip`.
template <typename T>
void pack_depthwise_weight(const T* weight, int64_t channels, int taps, int lanes, bool flip, T* packed);

// Sums the parts in their order and turns [block][tap][lane] into [channel][tap]. Channels that a block repeats are
// left to the block before it.
template <typename T>
void combine_depthwise_partials(const T* partial, int64_t parts, int64_t channels, int taps, int lanes, T* dweight,
                                int threads);

}  // namespace spos
