// The windows of a k x k convolution as rows: [N, H, W, C] -> [N, H', W', k * k * C], so that the convolution becomes a
// matrix product. Meant for few channels, where a product per tap would be too short.
#pragma once

#include <cstdint>

namespace spos {

// Channels adjacent, other strides in elements. out = (in + 2 * padding - kernel) / stride + 1, taps outside are zero;
// y is dense, in the order kernel row, kernel column, channel.
template <typename T>
struct Im2Row {
    const T* x;
    int64_t batch, channels, in_height, in_width, out_height, out_width;
    int64_t x_n, x_h, x_w;
    int kernel, stride, padding;
    T* y;
};

template <typename T>
void im2row(const Im2Row<T>& call, int threads);

}  // namespace spos
