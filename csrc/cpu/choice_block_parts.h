// What the forward and the backward pass of a choice block share: scratch memory, the cut of the work into parts, batch
// statistics.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/arena.h"
#include "core/parallel.h"
#include "cpu/channel_ops_body.h"
#include "cpu/choice_block.h"
#include "cpu/depthwise_layout.h"
#include "cpu/gemm_body.h"

namespace spos {

// `count` ranges of `rows`, by the shape alone: the cut decides the order of additions.
struct Parts {
    int64_t rows, count;
    int64_t begin(int64_t part) const { return rows * part / count; }
    int64_t end(int64_t part) const { return rows * (part + 1) / count; }
    int64_t size(int64_t part) const { return end(part) - begin(part); }
};

// Pixels in pieces that keep a core busy for some microseconds and leave something to share out among many.
inline Parts pixel_parts(int64_t pixels) { return {pixels, std::clamp<int64_t>(pixels / 64, 1, 64)}; }

// How a depthwise convolution is cut: some images x some blocks of channels a task, so that the piece of its input, and
// of the gradient of its output, stay in L2.
struct DepthwiseCut {
    int64_t images, chunks, groups, blocks;
    int lanes;
    int64_t channels;

    int64_t first_image(int64_t chunk) const { return chunk * images; }
    int64_t first_block(int64_t group) const { return blocks * group / groups; }
    int64_t end_block(int64_t group) const { return blocks * (group + 1) / groups; }
    int64_t first_channel(int64_t group) const { return depthwise_block_channel(first_block(group), channels, lanes); }
    int64_t end_channel(int64_t group) const { return group + 1 == groups ? channels : end_block(group) * lanes; }
    int64_t widest_group() const {
        int64_t widest = 0;
        for (int64_t group = 0; group < groups; ++group)
            widest = std::max(widest, end_channel(group) - first_channel(group));
        return widest;
    }
};

inline DepthwiseCut depthwise_cut(int64_t batch, int64_t pixels, int64_t channels, int lanes, size_t element_size) {
    constexpr int64_t most_bytes = 512 << 10, few_bytes = 64 << 10;
    const int64_t blocks = depthwise_blocks(channels, lanes);
    const int64_t block_bytes = pixels * lanes * static_cast<int64_t>(element_size);
    int64_t groups = std::clamp<int64_t>((blocks * block_bytes + most_bytes - 1) / most_bytes, 1, blocks);
    if (batch < 4) groups = std::max(groups, std::min<int64_t>(blocks, 8 / batch));
    // The last block overlaps the one before it where channels are no multiple of a vector: one task must have both.
    if (channels % lanes) groups = std::max<int64_t>(1, std::min(groups, blocks / 2));
    const int64_t images = std::clamp<int64_t>(few_bytes / (block_bytes * ((blocks + groups - 1) / groups)), 1,
                                               std::max<int64_t>(1, batch / 8));
    return {images, (batch + images - 1) / images, groups, blocks, lanes, channels};
}

// Per-channel vectors made of a layer's batch normalisation.
template <typename T>
struct NormVectors {
    T* scale;
    T* shift;
    T* inverse;  // 1 / sqrt(variance + eps)
};

template <typename T>
NormVectors<T> take_norm(Arena& arena, int64_t channels) {
    return {arena.take<T>(channels), arena.take<T>(channels), arena.take<T>(channels)};
}

template <typename T>
void prepare_norm(const ConvNorm<T>& layer, double eps, const NormVectors<T>& norm) {
    for (int64_t c = 0; c < layer.outputs; ++c) {
        const double inverse = 1 / std::sqrt(static_cast<double>(layer.variance[c]) + eps);
        const double scale = layer.gamma ? inverse * layer.gamma[c] : inverse;
        norm.inverse[c] = static_cast<T>(inverse);
        norm.scale[c] = static_cast<T>(scale);
        norm.shift[c] = static_cast<T>((layer.beta ? layer.beta[c] : 0) - scale * layer.mean[c]);
    }
}

// The batch's mean and biased variance from the sums of parts, each [3][channels]: shift, sum, square. size(part) rows.
template <typename T, typename Size>
void combine_sums(const T* sums, int64_t parts, int64_t channels, const Size& size, double* scratch, T* mean,
                  T* variance) {
    double* const sum = scratch;
    double* const square = scratch + channels;
    std::fill(scratch, scratch + 2 * channels, 0.0);
    double rows = 0;
    const T* const reference = sums;  // all parts are moved to the first one's shift
    for (int64_t part = 0; part < parts; ++part) {
        const T* const shift = sums + part * 3 * channels;
        const double count = static_cast<double>(size(part));
        rows += count;
        for (int64_t c = 0; c < channels; ++c) {
            const double moved = static_cast<double>(shift[c]) - static_cast<double>(reference[c]);
            const double part_sum = shift[channels + c];
            sum[c] += part_sum + count * moved;
            square[c] += shift[2 * channels + c] + moved * (2 * part_sum + count * moved);
        }
    }
    for (int64_t c = 0; c < channels; ++c) {
        const double offset = sum[c] / rows;
        mean[c] = static_cast<T>(reference[c] + offset);
        // NaN stays NaN in this order of the arguments.
        variance[c] = static_cast<T>(std::max(square[c] / rows - offset * offset, 0.0));
    }
}

template <typename T>
Affine<T> affine_of(const NormVectors<T>& norm, const ConvNorm<T>& layer) {
    return {norm.scale, norm.shift, layer.mean};
}

template <typename T>
int64_t depthwise_weight_size(const ConvNorm<T>& layer) {
    return (layer.outputs + widest_depthwise_lanes - 1) * layer.kernel * layer.kernel;
}

// Where the input of a chain's layer comes from, and the sizes of its map.
template <typename T>
struct Place {
    const ConvNorm<T>* layer;
    const ConvNorm<T>* previous;  // null: x itself
    int stride;
    int64_t in_height, in_width, out_height, out_width;
    int64_t in_pixels, out_pixels;  // of the whole batch
};

template <typename T>
Place<T> place_of(const ChoiceBlock<T>& block, const ConvNorm<T>* chain, int index) {
    bool before = false;  // has the stride been taken already?
    for (int i = 0; i < index; ++i) before = before || chain[i].depthwise;
    const bool here = chain[index].depthwise && !before;
    Place<T> place{};
    place.layer = chain + index;
    place.previous = index ? chain + index - 1 : nullptr;
    place.stride = here ? block.stride : 1;
    place.in_height = before ? block.out_height : block.in_height;
    place.in_width = before ? block.out_width : block.in_width;
    place.out_height = here || before ? block.out_height : block.in_height;
    place.out_width = here || before ? block.out_width : block.in_width;
    place.in_pixels = block.batch * place.in_height * place.in_width;
    place.out_pixels = block.batch * place.out_height * place.out_width;
    return place;
}

}  // namespace spos
