// The depthwise stage of choice_block.h, backward: both gradients of a layer in one launch. Some blocks compute the
// gradient of its input (dgrad), the others that of its weight (wgrad).
//
// Operations  2 * k * k * pixels * channels each. Bytes: the layer's gradient and its output once with their tiles'
// halos (dgrad) or without (wgrad), the input once, with halos for wgrad.
#pragma once

#include "cuda/choice_block_depthwise.cuh"
#include "cuda/choice_block_gradient.cuh"

namespace spos::cuda {

__host__ __device__ inline DepthwiseGrid depthwise_dgrad_grid(const ChoiceBlock& block, const ConvNorm& layer) {
    return layer.stride == 1 ? depthwise_grid(block, layer, Reach::same, true, 8, 16, most_blocks)
                             : depthwise_grid(block, layer, Reach::up, true, 16, 16, most_blocks);
}
constexpr int most_wgrad_parts = 64;  // the last block adds them up
__host__ __device__ inline DepthwiseGrid depthwise_wgrad_grid(const ChoiceBlock& block, const ConvNorm& layer) {
    return layer.stride == 1 ? depthwise_grid(block, layer, Reach::same, false, 8, 8, most_wgrad_parts)
                             : depthwise_grid(block, layer, Reach::down, false, 4, 8, most_wgrad_parts);
}
// Floats for the parts of the weight's gradient.
inline int64_t depthwise_wgrad_parts(const ChoiceBlock& block, const ConvNorm& layer) {
    return int64_t{depthwise_wgrad_grid(block, layer).blocks} * layer.kernel * layer.kernel * layer.outputs;
}

template <typename T>
int depthwise_backward_shared(const ChoiceBlock& block, const ConvNorm& layer) {
    const bool same = layer.stride == 1;
    const DepthwiseTiling dgrad = depthwise_dgrad_grid(block, layer).tiling;
    const DepthwiseTiling wgrad = depthwise_wgrad_grid(block, layer).tiling;
    const int first = depthwise_shared(dgrad, layer.kernel, same ? Reach::same : Reach::up, vector_of<T>);
    const int second = depthwise_wgrad_shared(wgrad, layer.kernel, same ? Reach::same : Reach::down, vector_of<T>,
                                              GemmTile::threads / 32);
    return depthwise_coefficients + (first > second ? first : second);
}

// A layer's gradient as depthwise.cuh loads it.
template <typename T>
struct LoadGradient {
    static constexpr int vector = vector_of<T>;
    const GradientMap<T>& map;
    int height, width, selected;

    __device__ __forceinline__ void select(int channel) { selected = channel; }
    __device__ __forceinline__ void operator()(int64_t image, int row, int column, float (&to)[vector]) const {
        map.load((image * height + row) * width + column, selected, to);
    }
};

template <typename T>
struct StoreGradient {
    InputGradient<T, 1>& result;
    int height, width;

    __device__ __forceinline__ void operator()(int64_t image, int row, int column, float value) {
        float one[1] = {value};
        result.take((image * height + row) * width + column, one);
    }
};

template <typename T>
__device__ __forceinline__ void depthwise_dgrad(const ChoiceBlock& block, const Branch& branch, Stage stage,
                                                const BackwardMemory<T>& memory, int number, float* shared, int* flag) {
    const ConvNorm layer = layer_of(branch, stage);
    const DepthwiseGrid grid = depthwise_dgrad_grid(block, layer);
    const int channel_block = number % grid.tiling.channel_blocks, part = number / grid.tiling.channel_blocks;
    const int channel = channel_block * depthwise_lanes, lane = threadIdx.x % 32;
    const GradientMap<T> gradient = gradient_of(block, branch, stage, memory, channel, depthwise_lanes, shared);
    const LoadGradient<T> load{gradient, layer.height, layer.width, 0};
    const DepthwiseFilter<T> filter{static_cast<const T*>(layer.weight), layer.kernel * layer.kernel,
                                    layer.stride == 1};
    InputGradient<T, 1> result(block, branch, stage, memory, channel, lane,
                               {shared + 5 * depthwise_lanes, depthwise_lanes});
    StoreGradient<T> store{result, layer.in_height, layer.in_width};
    float* const tiles = shared + depthwise_coefficients;
    with_depthwise<Reach::up>(layer, [&](auto kernel, auto reach) {
        for (int tile = part; tile < grid.tiling.tiles; tile += grid.blocks) {
            __syncthreads();  // the coefficients are there, and the tile before is done with
            depthwise_convolve<decltype(kernel)::value, decltype(reach)::value>(
                grid.tiling, tile, channel, layer.inputs, load, filter, store, tiles);
        }
    });
    if (stage.index == 0) return;
    __syncthreads();
    const ConvNorm& before = layer_of(branch, {stage.proj, stage.index - 1});
    finish_sums<LaneThreads>(result.sums, threadIdx.x / 32, lane, tiles, memory.parts, part, grid.blocks, channel,
                             before.outputs, block.counters + channel_block, flag, TakeSums{before, memory.sums});
}

// The blocks leave their parts of the sums as [part][tap][channel].
template <typename T>
__device__ __forceinline__ void depthwise_wgrad_stage(const ChoiceBlock& block, const Branch& branch, Stage stage,
                                                      const BackwardMemory<T>& memory, int number, float* shared,
                                                      int* flag) {
    float* const parts = memory.weight_parts;
    const ConvNorm layer = layer_of(branch, stage);
    const DepthwiseGrid grid = depthwise_wgrad_grid(block, layer);
    const int channel_block = number % grid.tiling.channel_blocks, part = number / grid.tiling.channel_blocks;
    const int channel = channel_block * depthwise_lanes, taps = layer.kernel * layer.kernel;
    const GradientMap<T> gradient = gradient_of(block, branch, stage, memory, channel, depthwise_lanes, shared);
    const Map<T> input = input_of<T>(block, branch, stage, channel, depthwise_lanes, shared + 5 * depthwise_lanes);
    T* const dweight = static_cast<T*>(layer.dweight);
    const int tiles = static_cast<int>(grid.tiling.tiles), each = (tiles + grid.blocks - 1) / grid.blocks;
    const int first = part * each, last = first + each < tiles ? first + each : tiles;
    __syncthreads();
    with_depthwise<Reach::down>(layer, [&](auto kernel, auto reach) {
        depthwise_wgrad<decltype(kernel)::value, decltype(reach)::value>(
            grid.tiling, first, last, channel, layer.outputs, LoadMap<T>{input, layer.in_height, layer.in_width, 0},
            LoadGradient<T>{gradient, layer.height, layer.width, 0}, shared + depthwise_coefficients,
            [&](int of, int tap, float sum) {
                if (grid.blocks == 1)
                    dweight[of * taps + tap] = from_float<T>(sum);
                else
                    parts[(int64_t{part} * taps + tap) * layer.outputs + of] = sum;
            });
    });
    if (grid.blocks == 1) return;
    uint32_t* const counter = block.counters + choice_block_counters / 2 + channel_block;
    if (!is_last_block(counter, static_cast<uint32_t>(grid.blocks), flag)) return;
    for (int i = threadIdx.x; i < taps * depthwise_lanes; i += GemmTile::threads) {
        const int of = channel + i % depthwise_lanes, tap = i / depthwise_lanes;
        if (of >= layer.outputs) continue;
        float sum = 0.0f;
#pragma unroll 8
        for (int j = 0; j < grid.blocks; ++j) sum += parts[(int64_t{j} * taps + tap) * layer.outputs + of];
        dweight[of * taps + tap] = from_float<T>(sum);
    }
}

}  // namespace spos::cuda
