// Depthwise 2-d convolution on the CPU: forward, gradient of the input (dgrad), gradient of the weight (wgrad).
//
// Tensors are logically NCHW, in memory NHWC: the channel stride is 1, the strides of n, h and w are given in elements,
// so a slice of channels of a wider tensor works in place (pixel stride >= channels). Pointers need only the alignment
// of their element type. The weight is [channels, 1, kernel, kernel], contiguous.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.h"
#include "cpu/pass.h"

namespace spos {

// Preconditions, which the callers check: kernel is 3, 5 or 7; stride 1 or 2; 0 <= padding < kernel; batch >= 0,
// channels, heights and widths >= 1; out = (in + 2 * padding - kernel) / stride + 1 in both directions.
struct DepthwiseConv2d {
    int64_t batch, channels, in_height, in_width, out_height, out_width;
    int kernel, stride, padding;
    int64_t x_n, x_h, x_w;  // element strides of x and dx
    int64_t y_n, y_h, y_w;  // element strides of y and dy
};

// Bytes of scratch that `pass` needs, whatever the instruction set and the thread count. 64-byte aligned,
// uninitialised.
size_t depthwise_conv2d_workspace(const DepthwiseConv2d& shape, Pass pass, size_t element_size);

// Outputs are overwritten in full and never read; nothing outside the views is touched. No output may overlap an input.
// The result has the same bits for every thread count. T is float with any supported Isa, or double with Isa::portable.
template <typename T>
void depthwise_conv2d_forward(Isa isa, const DepthwiseConv2d& shape, const T* x, const T* weight, T* y, void* workspace,
                              int threads);
template <typename T>
void depthwise_conv2d_dgrad(Isa isa, const DepthwiseConv2d& shape, const T* dy, const T* weight, T* dx, void* workspace,
                            int threads);
template <typename T>
void depthwise_conv2d_wgrad(Isa isa, const DepthwiseConv2d& shape, const T* x, const T* dy, T* dweight, void* workspace,
                            int threads);

}  // namespace spos
