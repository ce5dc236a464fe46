// Depthwise 2-d convolution on a GPU: forward, gradient of the input (dgrad), gradient of the weight (wgrad).
//
// Tensors are logically NCHW, in memory NHWC: the channel stride is 1, the strides of n, h and w are given in elements,
// so a slice of channels of a wider tensor works in place. The weight is [channels, 1, kernel, kernel] of any strides.
// Pointers need only the alignment of their element type; 16 bytes at a time are read where pointer and strides allow.
#pragma once

#include <cstdint>

#include "cuda/element.h"

namespace spos::cuda {

// Preconditions, which the callers check: kernel is 3, 5 or 7; stride 1 or 2; 0 <= padding < kernel; batch >= 0,
// channels, heights and widths >= 1 and below 2^30; out = (in + 2 * padding - kernel) / stride + 1 in both directions.
struct DepthwiseConv2d {
    int64_t batch;
    int channels, in_height, in_width, out_height, out_width;
    int kernel, stride, padding;
    int64_t x_n, x_h, x_w;  // element strides of x and dx
    int64_t y_n, y_h, y_w;  // element strides of y and dy
    int64_t w_c, w_h, w_w;  // element strides of the weight and of its gradient
    // In device memory, or null: this many of the channels are computed, and what lies beyond them is left alone.
    const int32_t* active_channels;
};

// Each returns a cudaError_t and leaves the work to `stream`. The outputs are overwritten in full and never read, but
// dweight is added to where `accumulate`; nothing outside the views is touched. The same bits come out of every run.
int depthwise_conv2d_forward(const DepthwiseConv2d& shape, Element element, const void* x, const void* weight, void* y,
                             void* stream);
int depthwise_conv2d_dgrad(const DepthwiseConv2d& shape, Element element, const void* dy, const void* weight, void* dx,
                           void* stream);
int depthwise_conv2d_wgrad(const DepthwiseConv2d& shape, Element element, const void* x, const void* dy, void* dweight,
                           bool accumulate, float* workspace, void* stream);

// Floats that wgrad needs for its partial sums; 0 where one block sees all that a channel has.
int64_t depthwise_conv2d_wgrad_workspace(const DepthwiseConv2d& shape);

}  // namespace spos::cuda
