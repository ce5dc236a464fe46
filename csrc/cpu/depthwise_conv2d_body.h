// What the instruction sets' bodies share with the dispatcher in depthwise_conv2d.cpp: plain data, no code, so that
// nothing compiled for one instruction set can be linked into the path of another.
#pragma once

#include <cstdint>

namespace spos {

// How a column of the source reaches columns of the destination.
enum class Reach {
    same,  // stride 1, forward or dgrad:  source = destination - padding + tap
    down,  // stride 2, forward:           source = 2 * destination - padding + tap
    up,    // stride 2, dgrad:             source = (destination + padding - tap) / 2, where that is whole
};

template <typename T>
struct Plane {
    T* data;
    int64_t n, h, w;  // element strides
    int64_t height, width;
};

// Forward or dgrad. packed_weight is [channel block][tap row][tap column][lane]; block b starts at channel
// min(b * lanes, channels - lanes).
template <typename T>
struct RowsPass {
    Plane<const T> source;
    Plane<T> destination;
    const T* packed_weight;
    int64_t batch, channels;
    int kernel, padding;
    Reach reach;
};

// partial is [part][channel block][tap row][tap column][lane].
template <typename T>
struct WgradPass {
    Plane<const T> x;
    Plane<const T> dy;
    T* partial;
    int64_t batch, channels;
    int kernel, stride, padding;
    int64_t parts;            // the rows of dy, counted through all images, are cut into this many ranges
    int64_t groups;           // the channel blocks, into this many; a task is one part of one group
    bool accumulate = false;  // add to `partial` instead of overwriting it
};

template <typename T>
struct DepthwiseBody {
    int lanes;
    void (*rows)(const RowsPass<T>&, int threads);
    void (*wgrad)(const WgradPass<T>&, int threads);
};

DepthwiseBody<float> depthwise_body_avx512();
DepthwiseBody<float> depthwise_body_avx2();
template <typename T>
DepthwiseBody<T> depthwise_body_portable();
template <typename T>
DepthwiseBody<T> depthwise_body_scalar();

}  // namespace spos
