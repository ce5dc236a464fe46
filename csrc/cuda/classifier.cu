// Bytes   pool: x once; its gradient: dx once; one thread a vector of channels, whose neighbours are next to it. The
// cross
//         entropy is small: one block, a warp for each row of logits, so that the sum over the batch has one order.
#include "cuda/classifier.h"

#include "cuda/elements.cuh"

namespace spos::cuda {
namespace {

constexpr int threads = 256, warps = threads / 32;

// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): the first of its four words.
__device__ __forceinline__ uint32_t philox(uint64_t seed, uint64_t step, uint64_t index) {
    uint32_t counter[4] = {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32),
                           static_cast<uint32_t>(step), static_cast<uint32_t>(step >> 32)};
    uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint64_t first = uint64_t{0xD2511F53u} * counter[0], second = uint64_t{0xCD9E8D57u} * counter[2];
        const uint32_t next[4] = {
            static_cast<uint32_t>(second >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(second),
            static_cast<uint32_t>(first >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(first)};
#pragma unroll
        for (int i = 0; i < 4; ++i) counter[i] = next[i];
        key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u;
    }
    return counter[0];
}

// 1 / (1 - rate), or 0 where the feature is dropped.
__device__ __forceinline__ float kept(const Pool& shape, int64_t feature) {
    if (shape.rate == 0.0f) return 1.0f;
    const float draw =
        static_cast<float>(philox(shape.seed, static_cast<uint64_t>(*shape.step), static_cast<uint64_t>(feature)) >>
                           8) *
        0x1p-24f;
    return draw < shape.rate ? 0.0f : 1.0f / (1.0f - shape.rate);
}

template <typename T, bool backward>
__global__ void __launch_bounds__(threads) pool_kernel(Pool shape, const T* from, T* to) {
    constexpr int n = vector_of<T>;
    const int across = (shape.channels + n - 1) / n;
    const int64_t number = int64_t{blockIdx.x} * threads + threadIdx.x, image = number / across;
    if (image >= shape.batch) return;
    const int channel = static_cast<int>(number % across) * n, there = shape.channels - channel;
    const bool aligned =
        shape.channels % n == 0 && (reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)) % 16 == 0;
    const int64_t feature = image * shape.channels + channel;
    const int64_t map = image * shape.pixels * shape.channels + channel;
    float value[n] = {};
    if constexpr (backward) load_some(from + feature, there, aligned, value);
    if constexpr (!backward)
        for (int pixel = 0; pixel < shape.pixels; ++pixel) {
            float one[n];
            load_some(from + map + int64_t{pixel} * shape.channels, there, aligned, one);
#pragma unroll
            for (int i = 0; i < n; ++i) value[i] += one[i];
        }
#pragma unroll
    for (int i = 0; i < n; ++i)
        if (i < there) value[i] *= kept(shape, feature + i) / static_cast<float>(shape.pixels);
    if constexpr (!backward) store_some(to + feature, there, aligned, value);
    if constexpr (backward)
        for (int pixel = 0; pixel < shape.pixels; ++pixel)
            store_some(to + map + int64_t{pixel} * shape.channels, there, aligned, value);
}

template <typename T, bool backward>
int pool(const Pool& shape, const void* from, void* to, void* stream) {
    const int64_t vectors = shape.batch * ((shape.channels + vector_of<T> - 1) / vector_of<T>);
    const int64_t blocks = (vectors + threads - 1) / threads;
    if (blocks == 0 || blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    return device::launch(pool_kernel<T, backward>, dim3(static_cast<unsigned>(blocks)), dim3(threads), 0,
                          static_cast<cudaStream_t>(stream), shape, static_cast<const T*>(from), static_cast<T*>(to));
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
    return value;
}
__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, distance));
    return value;
}

template <typename T>
__global__ void __launch_bounds__(threads)
    cross_entropy_kernel(CrossEntropy shape, const T* logits, const int64_t* labels, float* losses, float* loss,
                         T* dlogits) {
    SHARED_ARRAY(float, parts, [warps]);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const float others = shape.smoothing / static_cast<float>(shape.classes),
                share = 1.0f / static_cast<float>(shape.batch);
    float total = 0.0f;
    for (int row = warp; row < shape.batch; row += warps) {
        const T* const of = logits + int64_t{row} * shape.classes;
        const int64_t label = labels[row];
        float most = -INFINITY;
        for (int i = lane; i < shape.classes; i += 32) most = fmaxf(most, to_float(of[i]));
        most = warp_max(most);
        float exponentials = 0.0f, sum = 0.0f;
        for (int i = lane; i < shape.classes; i += 32) {
            const float distance = to_float(of[i]) - most;
            exponentials += expf(distance);
            sum += distance;
        }
        exponentials = warp_sum(exponentials);
        sum = warp_sum(sum);
        const float log_sum = logf(exponentials);
        for (int i = lane; i < shape.classes; i += 32) {
            const float probability = expf(to_float(of[i]) - most) / exponentials;
            const float target = others + (i == label ? 1.0f - shape.smoothing : 0.0f);
            dlogits[int64_t{row} * shape.classes + i] = from_float<T>((probability - target) * share);
        }
        const bool is_class = label >= 0 && label < shape.classes;
        const float right = is_class ? to_float(of[label]) - most : NAN;
        const float one = log_sum - (1.0f - shape.smoothing) * right - others * sum;
        if (lane == 0) losses[row] = one;
        total += one;
    }
    if (lane == 0) parts[warp] = total;
    __syncthreads();
    if (threadIdx.x > 0) return;
    float mean = 0.0f;
    for (int i = 0; i < warps; ++i) mean += parts[i];
    *loss = mean * share;
}

}  // namespace

int pool_forward(const Pool& shape, Element element, const void* x, void* y, void* stream) {
    return with_element(element, [&](auto zero) { return pool<decltype(zero), false>(shape, x, y, stream); });
}

int pool_backward(const Pool& shape, Element element, const void* dy, void* dx, void* stream) {
    return with_element(element, [&](auto zero) { return pool<decltype(zero), true>(shape, dy, dx, stream); });
}

int cross_entropy(const CrossEntropy& shape, Element element, const void* logits, const int64_t* labels, float* losses,
                  float* loss, void* dlogits, void* stream) {
    return with_element(element, [&](auto zero) {
        using T = decltype(zero);
        return device::launch(cross_entropy_kernel<T>, dim3(1), dim3(threads), 0, static_cast<cudaStream_t>(stream),
                              shape, static_cast<const T*>(logits), labels, losses, loss, static_cast<T*>(dlogits));
    });
}

}  // namespace spos::cuda
