// The windows of a k x k convolution as rows, on a GPU: see cpu/im2row.h. For the few channels of images, whose
// convolution is a pointwise one of its windows.
#pragma once

#include <cstdint>

#include "cuda/element.h"

namespace spos::cuda {

// x: channels adjacent, other strides in elements. y [batch, out_height, out_width, kernel, kernel, channels] dense.
struct Im2Row {
    int64_t batch;
    int channels, in_height, in_width, out_height, out_width;
    int64_t x_n, x_h, x_w;
    int kernel, stride, padding;
};

// Returns a cudaError_t and leaves the work to `stream`.
int im2row(const Im2Row& shape, Element element, const void* x, void* y, void* stream);

}  // namespace spos::cuda
