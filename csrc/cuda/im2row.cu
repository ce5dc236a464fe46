// Bytes   y's once written; x's k * k / stride^2 times read, from the first-level cache but for the first. One thread
// an
//         element of y: neighbours write next to each other, and read runs of k * channels elements.
#include "cuda/im2row.h"

#include "cuda/elements.cuh"

namespace spos::cuda {
namespace {

constexpr int threads = 256;

template <typename T>
__global__ void __launch_bounds__(threads) im2row_kernel(Im2Row shape, const T* x, T* y) {
    const int row = shape.kernel * shape.channels, window = row * shape.kernel;  // elements
    const int64_t pixel = (int64_t{blockIdx.x} * threads + threadIdx.x) / window;
    const int at = static_cast<int>((int64_t{blockIdx.x} * threads + threadIdx.x) % window);
    const int out_column = static_cast<int>(pixel % shape.out_width);
    const int64_t line = pixel / shape.out_width, image = line / shape.out_height;
    if (image >= shape.batch) return;
    const int out_row = static_cast<int>(line % shape.out_height);
    const int in_row = out_row * shape.stride - shape.padding + at / row;
    const int in_column = out_column * shape.stride - shape.padding + at % row / shape.channels;
    const bool inside = static_cast<unsigned>(in_row) < static_cast<unsigned>(shape.in_height) &&
                        static_cast<unsigned>(in_column) < static_cast<unsigned>(shape.in_width);
    y[pixel * window + at] =
        inside ? x[image * shape.x_n + in_row * shape.x_h + in_column * shape.x_w + at % shape.channels]
               : from_float<T>(0.0f);
}

}  // namespace

int im2row(const Im2Row& shape, Element element, const void* x, void* y, void* stream) {
    const int64_t elements =
        shape.batch * shape.out_height * shape.out_width * shape.kernel * shape.kernel * shape.channels;
    if (elements == 0) return cudaSuccess;
    const int64_t blocks = (elements + threads - 1) / threads;
    if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    return with_element(element, [&](auto zero) {
        using T = decltype(zero);
        return device::launch(im2row_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(threads), 0,
                              static_cast<cudaStream_t>(stream), shape, static_cast<const T*>(x), static_cast<T*>(y));
    });
}

}  // namespace spos::cuda
