// What the backward pass of a choice block keeps of a layer: its batch normalisation's sums and coefficients; and how
// the gradient of a pointwise weight is cut.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/arena.h"
#include "cpu/channel_ops_body.h"
#include "cpu/choice_block.h"
#include "cpu/choice_block_parts.h"

namespace spos {

// A layer on the way back: its batch normalisation, and the sums over pixels of g (or dn) and of g * (z - mean).
template <typename T>
struct GradientLayer {
    NormVectors<T> norm;
    NormGradient<T> gradient;
    T *alpha, *beta, *gamma, *sum, *product;
};

template <typename T>
GradientLayer<T> take_gradient_layer(Arena& arena, int64_t channels) {
    GradientLayer<T> layer{};
    layer.norm = take_norm<T>(arena, channels);
    for (T** vector : {&layer.alpha, &layer.beta, &layer.gamma, &layer.sum, &layer.product})
        *vector = arena.take<T>(channels);
    layer.gradient = {layer.alpha, layer.beta, layer.gamma};
    return layer;
}

// From the sums: the coefficients of norm_backward, dgamma and dbeta. share: 1 / pixels, 0 for given statistics.
template <typename T>
void finish_gradient(const ConvNorm<T>& layer, const GradientLayer<T>& own, double share) {
    for (int64_t c = 0; c < layer.outputs; ++c) {
        const double scale = own.norm.scale[c], inverse = own.norm.inverse[c];
        own.alpha[c] = own.norm.scale[c];
        own.beta[c] = static_cast<T>(-scale * inverse * inverse * own.product[c] * share);
        own.gamma[c] = static_cast<T>(-scale * own.sum[c] * share);
        if (layer.dgamma) layer.dgamma[c] = static_cast<T>(inverse * own.product[c]);
        if (layer.dbeta) layer.dbeta[c] = own.sum[c];
    }
}

// Adds up [part][channels], parts part_stride apart, in the order of the parts. totals: scratch of `channels`.
template <typename T>
void add_parts(const T* from, int64_t parts, int64_t part_stride, int64_t channels, double* totals, T* to) {
    std::fill(totals, totals + channels, 0.0);
    for (int64_t part = 0; part < parts; ++part)
        for (int64_t c = 0; c < channels; ++c) totals[c] += from[part * part_stride + c];
    for (int64_t c = 0; c < channels; ++c) to[c] = static_cast<T>(totals[c]);
}

// How a pointwise wgrad is cut: parts of the pixels, each with sums of its own, x groups of output channels.
struct WgradCut {
    Parts parts;
    int64_t groups;
    bool at_once;  // in the loop that makes dz
};

inline WgradCut wgrad_cut(int64_t pixels, int64_t inputs, int64_t outputs) {
    constexpr int64_t tasks = 16;
    // Combining the parts should cost less than reading the operands.
    const int64_t affordable = pixels * (inputs + outputs) / (2 * inputs * outputs);
    const int64_t parts = std::clamp<int64_t>(std::min(pixels / 256, affordable), 1, tasks);
    const int64_t groups = std::clamp<int64_t>(tasks / parts, 1, std::max<int64_t>(1, outputs / 8));
    return {{pixels, parts}, groups, parts >= tasks / 2};
}

template <typename T>
bool is_far_from_zero(const ConvNorm<T>& layer) {
    constexpr T most = 16;  // mean^2 / variance
    for (int64_t c = 0; c < layer.outputs; ++c)
        if (layer.mean[c] * layer.mean[c] > most * layer.variance[c]) return true;
    return false;
}

}  // namespace spos
