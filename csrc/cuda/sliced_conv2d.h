// 2-d convolution with a slice of a larger weight, used in place through its strides, on a GPU: forward, gradient of
// the input (dgrad), gradient of the slice (wgrad). A linear layer is the convolution of 1 x 1 maps.
//
// x and y are logically NCHW, in memory NHWC: the channel stride is 1, the strides of n, h and w are given in elements,
// so a slice of channels of a wider tensor works in place. The weight [groups * out_channels, in_channels, kernel,
// kernel] is a slice of a larger one: it has an element stride for every dimension. Pointers need only the alignment of
// their element type; 16 bytes at a time are read and written where pointers and strides allow.
#pragma once

#include <cstdint>

#include "cuda/element.h"

namespace spos::cuda {

// Preconditions, which the callers check: kernel 1 to 7; stride 1 or 2; 0 <= padding < kernel; batch >= 0, groups,
// channels, heights and widths >= 1; out = (in + 2 * padding - kernel) / stride + 1 in both directions; less than 2^30
// pixels in x and in y, and groups * channels * kernel * kernel below 2^30.
struct SlicedConv2d {
    int batch, groups;
    int in_channels, out_channels;  // of one group
    int in_height, in_width, out_height, out_width;
    int kernel, stride, padding;
    int64_t x_n, x_h, x_w;       // element strides of x and dx
    int64_t y_n, y_h, y_w;       // element strides of y and dy
    int64_t w_o, w_i, w_h, w_w;  // element strides of the weight
    // In device memory, or null: this many of a group's channels are used, and outputs beyond them are left alone.
    const int32_t *active_in_channels, *active_out_channels;
    bool tf32;  // float32 operands are rounded to TF32
};

// Each returns a cudaError_t and leaves the work to `stream`. y and dx are overwritten in full and never read; the
// slice dweight is overwritten, or added to where `accumulate`. Nothing outside the views is touched. The same bits
// come out of every run. bias: groups * out_channels adjacent elements, or null.
int sliced_conv2d_forward(const SlicedConv2d& shape, Element element, const void* x, const void* weight,
                          const void* bias, void* y, void* stream);
int sliced_conv2d_dgrad(const SlicedConv2d& shape, Element element, const void* dy, const void* weight, void* dx,
                        void* stream);
int sliced_conv2d_wgrad(const SlicedConv2d& shape, Element element, const void* x, const void* dy, void* dweight,
                        bool accumulate, float* workspace, void* stream);

// Floats that wgrad needs for its partial sums; 0 where the pixels are not shared out.
int64_t sliced_conv2d_wgrad_workspace(const SlicedConv2d& shape, Element element);

}  // namespace spos::cuda
