// 2-d convolution with a slice of a larger weight, used in place through its strides, on the CPU: forward, gradient of
// the input (dgrad), gradient of the slice (wgrad). A linear layer is the convolution of 1 x 1 maps.
//
// x and y are logically NCHW, in memory NHWC: the channel stride is 1, the strides of n, h and w are given in elements,
// so a slice of channels of a wider tensor works in place. The weight [groups * out_channels, in_channels, kernel,
// kernel] is a slice of a larger one: it has an element stride for every dimension. Pointers need only the alignment of
// their element type.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/isa.h"
#include "cpu/pass.h"

namespace spos {

// Preconditions, which the callers check: kernel 1 to 7; stride 1 or 2; 0 <= padding < kernel; batch >= 0, groups,
// channels, heights and widths >= 1; out = (in + 2 * padding - kernel) / stride + 1 in both directions.
struct SlicedConv2d {
    int64_t batch, groups;
    int64_t in_channels, out_channels;  // of one group
    int64_t in_height, in_width, out_height, out_width;
    int kernel, stride, padding;
    int64_t x_n, x_h, x_w;       // element strides of x and dx
    int64_t y_n, y_h, y_w;       // element strides of y and dy
    int64_t w_o, w_i, w_h, w_w;  // element strides of the weight
};

// Bytes of scratch that a pass (forward or dgrad; wgrad) needs, 64-byte aligned, uninitialised.
size_t sliced_conv2d_rows_workspace(Isa isa, const SlicedConv2d& shape, Pass pass, size_t element_size, int threads);
size_t sliced_conv2d_wgrad_workspace(Isa isa, const SlicedConv2d& shape, size_t element_size, int threads);

// y and dx are overwritten in full and never read; the slice dweight is overwritten, or added to where `accumulate`.
// Nothing outside the views is touched. No output may overlap an input. The result has the same bits for every thread
// count. bias: groups * out_channels elements, or null. T is float with any supported Isa, or double with
// Isa::portable.
template <typename T>
void sliced_conv2d_forward(Isa isa, const SlicedConv2d& shape, const T* x, const T* weight, const T* bias, T* y,
                           void* workspace, int threads);
template <typename T>
void sliced_conv2d_dgrad(Isa isa, const SlicedConv2d& shape, const T* dy, const T* weight, T* dx, void* workspace,
                         int threads);
template <typename T>
void sliced_conv2d_wgrad(Isa isa, const SlicedConv2d& shape, const T* x, const T* dy, T* dweight, bool accumulate,
                         void* workspace, int threads);

}  // namespace spos
