#include "cuda/fake_quantize.h"

#include "cuda/elements.cuh"

namespace spos::cuda {
namespace {

constexpr int threads = 256;

template <typename T>
__global__ void __launch_bounds__(threads)
    forward_kernel(FakeQuantize shape, const T* x, const float* scale, const float* zero_point, T* y) {
    const int64_t size = shape.outer * shape.channels * shape.inner;
    const int64_t stride = int64_t{gridDim.x} * threads;
    for (int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x; i < size; i += stride) {
        const int64_t channel = i / shape.inner % shape.channels;
        const float s = scale[channel], z = zero_point ? zero_point[channel] : 0.0f;
        const float v = rintf(__fdiv_rn(to_float(x[i]), s));
        y[i] = from_float<T>(fminf(fmaxf(v, shape.low - z), shape.high - z) * s);
    }
}

}  // namespace

int fake_quantize_forward(const FakeQuantize& shape, Element element, const void* x, const float* scale,
                          const float* zero_point, void* y, void* stream) {
    const int64_t size = shape.outer * shape.channels * shape.inner;
    const unsigned blocks = static_cast<unsigned>(std::min<int64_t>((size + threads - 1) / threads, 1024));
    return with_element(element, [&](auto zero) {
        using T = decltype(zero);
        return device::launch(forward_kernel<T>, dim3(blocks), dim3(threads), 0, static_cast<cudaStream_t>(stream),
                              shape, static_cast<const T*>(x), scale, zero_point, static_cast<T*>(y));
    });
}

}  // namespace spos::cuda
