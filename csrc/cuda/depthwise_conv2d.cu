// Depthwise convolution, forward, dgrad and wgrad: the tile loops of depthwise.cuh over plain tensors.
//
// Shapes      x (N, H, W, C) and y (N, H', W', C) in memory, weight (C, 1, k, k); k = 3, 5, 7; stride 1 and 2.
// Bytes       forward and dgrad read and write each map once, and the halo of a tile again, mostly from L2: 1.4, 1.9,
//             2.4 times x for k = 3, 5, 7 and tiles of 8 x 16; maps of up to 8 x 16 have no halo.
// Operations  N * H' * W' * C * k * k multiply-adds. At k = 7 that is 12 a byte of fp32: on most devices no longer
//             bound by memory, hence the registers of depthwise.cuh.
// dgrad       Of stride 1 it is the forward pass of dy with flipped filters and padding k - 1 - p. Of stride 2, row i
// of
//             dx has the taps a for which i + p - a is even (Reach::up): half of the taps in each direction, no zeros.
// wgrad       A block takes a range of tiles and keeps k * k sums a channel in registers; ranges are added by a second
//             kernel, in their order. No atomics: the same bits in every run.
#include "cuda/depthwise_conv2d.h"

#include "cuda/depthwise.cuh"
#include "cuda/split_sums.cuh"

namespace spos::cuda {
namespace {

constexpr int most_threads = 256, wgrad_threads = 128;
constexpr int most_shared = 48 * 1024 / 4;  // floats: what needs no asking for; two blocks fit everywhere

struct Strides {
    int64_t n, h, w;
};

template <typename T>
struct Filter {
    const T* data;
    int64_t c, h, w;
    int kernel;
    bool flipped;

    __device__ __forceinline__ float operator()(int channel, int tap) const {
        const int at = flipped ? kernel * kernel - 1 - tap : tap;
        return to_float(data[channel * c + at / kernel * h + at % kernel * w]);
    }
};

__device__ __forceinline__ int active(int channels, const int32_t* limit) {
    return limit ? max(0, min(channels, *limit)) : channels;
}

template <int kernel, Reach reach, typename T>
__global__ void __launch_bounds__(most_threads, 2)
    convolve_kernel(DepthwiseTiling tiling, NhwcLoad<T> source, Filter<T> filter, NhwcStore<T> destination,
                    const int32_t* active_channels) {
    DYNAMIC_SHARED(float, shared);
    const int channels = active(tiling.channels, active_channels);
    const int channel = static_cast<int>(blockIdx.x % tiling.channel_blocks) * depthwise_lanes;
    if (channel >= channels) return;
    source.channels = channels;
    filter.kernel = kernel;
    destination.data += channel + threadIdx.x % 32;
    depthwise_convolve<kernel, reach>(tiling, blockIdx.x / tiling.channel_blocks, channel, channels, source, filter,
                                      destination, shared);
}

// The filters' gradient, in its place or, in parts, in a workspace [part][tap][channel].
template <typename T>
struct FilterGradient {
    T* data;
    int64_t c, h, w;
    int kernel;
    bool accumulate;

    __device__ __forceinline__ void operator()(int channel, int tap, float sum) const {
        T* const to = data + channel * c + tap / kernel * h + tap % kernel * w;
        *to = from_float<T>(accumulate ? to_float(*to) + sum : sum);
    }
};

template <int kernel, Reach reach, typename T>
__global__ void __launch_bounds__(wgrad_threads, 4)
    wgrad_kernel(DepthwiseTiling tiling, NhwcLoad<T> x, NhwcLoad<T> dy, int parts, float* partial,
                 FilterGradient<T> gradient, const int32_t* active_channels) {
    DYNAMIC_SHARED(float, shared);
    const int channels = active(tiling.channels, active_channels);
    const int channel = static_cast<int>(blockIdx.x % tiling.channel_blocks) * depthwise_lanes;
    if (channel >= channels) return;
    const int part = static_cast<int>(blockIdx.x) / tiling.channel_blocks;
    x.channels = dy.channels = channels;
    depthwise_wgrad<kernel, reach>(
        tiling, tiling.tiles * part / parts, tiling.tiles * (part + 1) / parts, channel, channels, x, dy, shared,
        [&](int channel, int tap, float sum) {
            if (parts == 1)
                gradient(channel, tap, sum);
            else
                partial[(int64_t{part} * kernel * kernel + tap) * tiling.channels + channel] = sum;
        });
}

template <typename T>
__global__ void __launch_bounds__(SplitSums::threads)
    reduce_kernel(const float* partial, int parts, int64_t size, int all_channels, FilterGradient<T> gradient,
                  const int32_t* active_channels) {
    const int channels = active(all_channels, active_channels);
    sum_parts(partial, parts, size, [&](int64_t element, float sum) {
        const int channel = static_cast<int>(element % all_channels);
        if (channel < channels) gradient(channel, static_cast<int>(element / all_channels), sum);
    });
}

// Calls function(std::integral_constant of the kernel size).
template <typename Function>
int with_kernel(int kernel, const Function& function) {
    switch (kernel) {
        case 3:
            return function(std::integral_constant<int, 3>{});
        case 5:
            return function(std::integral_constant<int, 5>{});
        default:
            return function(std::integral_constant<int, 7>{});
    }
}

template <typename T>
bool is_aligned(const void* data, const Strides& strides) {
    const auto whole = [](int64_t stride) { return stride % vector_of<T> == 0; };
    return reinterpret_cast<uintptr_t>(data) % 16 == 0 && whole(strides.n) && whole(strides.h) && whole(strides.w);
}

template <typename T>
NhwcLoad<T> loader(const void* data, const Strides& strides, int channels) {
    return {static_cast<const T*>(data), strides.n, strides.h, strides.w, channels, is_aligned<T>(data, strides), 0};
}

// Tiles of 8 x 16 of stride 1, 4 x 8 of stride 2, 16 x 16 of its gradient: narrower where shared memory ends.
DepthwiseTiling convolve_tiling(const DepthwiseTiling& maps, Reach reach, int kernel, int vector) {
    return depthwise_tiling_that_fits(reach, maps,
                                      reach == Reach::same   ? 8
                                      : reach == Reach::down ? 4
                                                             : 16,
                                      reach == Reach::down ? 8 : 16, [&](const DepthwiseTiling& tiling) {
                                          return depthwise_shared(tiling, kernel, reach, vector) <= most_shared;
                                      });
}

template <int kernel, Reach reach, typename T>
int start_convolve(const DepthwiseTiling& maps, const DepthwiseConv2d& shape, const void* source,
                   const Strides& source_strides, Filter<T> filter, void* destination,
                   const Strides& destination_strides, cudaStream_t stream) {
    const DepthwiseTiling tiling = convolve_tiling(maps, reach, kernel, vector_of<T>);
    const int64_t blocks = tiling.tiles * tiling.channel_blocks;
    if (blocks == 0) return cudaSuccess;
    if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    const int threads = std::min(most_threads, 32 * tiling.patches(reach));
    const size_t shared = depthwise_shared(tiling, kernel, reach, vector_of<T>) * sizeof(float);
    return device::launch(
        convolve_kernel<kernel, reach, T>, dim3(static_cast<unsigned>(blocks)), dim3(threads), shared, stream, tiling,
        loader<T>(source, source_strides, shape.channels), filter,
        NhwcStore<T>{static_cast<T*>(destination), destination_strides.n, destination_strides.h, destination_strides.w},
        shape.active_channels);
}

DepthwiseTiling maps_of(const DepthwiseConv2d& shape, bool gradient, int padding) {
    DepthwiseTiling maps{};
    maps.images = shape.batch, maps.channels = shape.channels, maps.padding = padding;
    maps.source_height = gradient ? shape.out_height : shape.in_height;
    maps.source_width = gradient ? shape.out_width : shape.in_width;
    maps.height = gradient ? shape.in_height : shape.out_height;
    maps.width = gradient ? shape.in_width : shape.out_width;
    return maps;
}

template <typename T>
Filter<T> filter_of(const DepthwiseConv2d& shape, const void* weight, bool flipped) {
    return {static_cast<const T*>(weight), shape.w_c, shape.w_h, shape.w_w, shape.kernel, flipped};
}

// How wgrad shares the work out: tiles of dy, and in how many parts.
struct WgradPlan {
    Reach reach;
    DepthwiseTiling tiling;
    int parts;
};
WgradPlan wgrad_plan(const DepthwiseConv2d& shape) {
    constexpr int64_t enough_blocks = 1024, least_tiles = 2;
    constexpr int widest_vector = 8;  // the same plan for all types of elements
    const Reach reach = shape.stride == 1 ? Reach::same : Reach::down;
    const DepthwiseTiling tiling = depthwise_tiling_that_fits(
        reach, maps_of(shape, false, shape.padding), shape.stride == 1 ? 8 : 4, 8, [&](const DepthwiseTiling& tiling) {
            const int warps = std::min(wgrad_threads / 32, tiling.patches(reach));
            return depthwise_wgrad_shared(tiling, shape.kernel, reach, widest_vector, warps) <= most_shared;
        });
    const int64_t parts = std::min(enough_blocks / tiling.channel_blocks, tiling.tiles / least_tiles);
    return {reach, tiling, static_cast<int>(std::max<int64_t>(parts, 1))};
}

template <int kernel, Reach reach, typename T>
int start_wgrad(const WgradPlan& plan, const DepthwiseConv2d& shape, const void* x, const void* dy,
                const FilterGradient<T>& gradient, float* workspace, cudaStream_t stream) {
    const DepthwiseTiling& tiling = plan.tiling;
    const int warps = std::min(wgrad_threads / 32, tiling.patches(reach));
    const size_t shared = depthwise_wgrad_shared(tiling, kernel, reach, vector_of<T>, warps) * sizeof(float);
    const unsigned blocks = static_cast<unsigned>(tiling.channel_blocks) * plan.parts;
    return device::launch(wgrad_kernel<kernel, reach, T>, dim3(blocks), dim3(32 * warps), shared, stream, tiling,
                          loader<T>(x, {shape.x_n, shape.x_h, shape.x_w}, shape.channels),
                          loader<T>(dy, {shape.y_n, shape.y_h, shape.y_w}, shape.channels), plan.parts, workspace,
                          gradient, shape.active_channels);
}

}  // namespace

int depthwise_conv2d_forward(const DepthwiseConv2d& shape, Element element, const void* x, const void* weight, void* y,
                             void* stream) {
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    const Strides x_strides{shape.x_n, shape.x_h, shape.x_w}, y_strides{shape.y_n, shape.y_h, shape.y_w};
    const DepthwiseTiling maps = maps_of(shape, false, shape.padding);
    return with_element(element, [&](auto zero) {
        using T = decltype(zero);
        const Filter<T> filter = filter_of<T>(shape, weight, false);
        return with_kernel(shape.kernel, [&](auto kernel) {
            return shape.stride == 1 ? start_convolve<kernel, Reach::same, T>(maps, shape, x, x_strides, filter, y,
                                                                              y_strides, cuda_stream)
                                     : start_convolve<kernel, Reach::down, T>(maps, shape, x, x_strides, filter, y,
                                                                              y_strides, cuda_stream);
        });
    });
}

int depthwise_conv2d_dgrad(const DepthwiseConv2d& shape, Element element, const void* dy, const void* weight, void* dx,
                           void* stream) {
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    const Strides x_strides{shape.x_n, shape.x_h, shape.x_w}, y_strides{shape.y_n, shape.y_h, shape.y_w};
    const bool flipped = shape.stride == 1;
    const DepthwiseTiling maps = maps_of(shape, true, flipped ? shape.kernel - 1 - shape.padding : shape.padding);
    return with_element(element, [&](auto zero) {
        using T = decltype(zero);
        const Filter<T> filter = filter_of<T>(shape, weight, flipped);
        return with_kernel(shape.kernel, [&](auto kernel) {
            return flipped ? start_convolve<kernel, Reach::same, T>(maps, shape, dy, y_strides, filter, dx, x_strides,
                                                                    cuda_stream)
                           : start_convolve<kernel, Reach::up, T>(maps, shape, dy, y_strides, filter, dx, x_strides,
                                                                  cuda_stream);
        });
    });
}

int64_t depthwise_conv2d_wgrad_workspace(const DepthwiseConv2d& shape) {
    const int parts = wgrad_plan(shape).parts;
    return parts == 1 ? 0 : int64_t{parts} * shape.kernel * shape.kernel * shape.channels;
}

int depthwise_conv2d_wgrad(const DepthwiseConv2d& shape, Element element, const void* x, const void* dy, void* dweight,
                           bool accumulate, float* workspace, void* stream) {
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    const WgradPlan plan = wgrad_plan(shape);
    return with_element(element, [&](auto zero) {
        using T = decltype(zero);
        const FilterGradient<T> gradient{
            static_cast<T*>(dweight), shape.w_c, shape.w_h, shape.w_w, shape.kernel, accumulate};
        const int error = with_kernel(shape.kernel, [&](auto kernel) {
            return plan.reach == Reach::same
                       ? start_wgrad<kernel, Reach::same, T>(plan, shape, x, dy, gradient, workspace, cuda_stream)
                       : start_wgrad<kernel, Reach::down, T>(plan, shape, x, dy, gradient, workspace, cuda_stream);
        });
        if (error != cudaSuccess || plan.parts == 1) return error;
        const int64_t size = int64_t{shape.kernel} * shape.kernel * shape.channels;
        return static_cast<int>(device::launch(reduce_kernel<T>, dim3(SplitSums::blocks(size)),
                                               dim3(SplitSums::threads), 0, cuda_stream, workspace, plan.parts, size,
                                               shape.channels, gradient, shape.active_channels));
    });
}

}  // namespace spos::cuda
