// The depthwise stage of choice_block.h, forward: normalise the input on load, convolve, keep the sums, and take their
// statistics.
//
// Operations  2 * k * k * pixels * channels. Bytes: the input with its tiles' halos once, the output once.
#pragma once

#include "cuda/choice_block_parts.cuh"
#include "cuda/depthwise.cuh"

namespace spos::cuda {

// How a layer is shared out: `blocks` blocks for each 32 channels go through the tiles.
struct DepthwiseGrid {
    DepthwiseTiling tiling;
    int blocks;

    __host__ __device__ int size() const { return blocks * tiling.channel_blocks; }
};

// Tiles of the layer's output, or (`gradient`) of its input, of at most these rows and columns.
__host__ __device__ inline DepthwiseGrid depthwise_grid(const ChoiceBlock& block, const ConvNorm& layer, Reach reach,
                                                        bool gradient, int rows, int columns, int most) {
    DepthwiseTiling maps{};
    maps.images = block.batch, maps.channels = layer.outputs, maps.padding = layer.kernel / 2;
    maps.source_height = gradient ? layer.height : layer.in_height;
    maps.source_width = gradient ? layer.width : layer.in_width;
    maps.height = gradient ? layer.in_height : layer.height;
    maps.width = gradient ? layer.in_width : layer.width;
    const DepthwiseTiling tiling = depthwise_tiling(reach, maps, rows, columns, depthwise_most_images);
    int blocks = most_blocks / tiling.channel_blocks;
    blocks = blocks < most ? blocks : most;
    blocks = tiling.tiles < blocks ? static_cast<int>(tiling.tiles) : blocks;
    return {tiling, blocks > 1 ? blocks : 1};
}

__host__ __device__ inline DepthwiseGrid depthwise_forward_grid(const ChoiceBlock& block, const ConvNorm& layer) {
    return layer.stride == 1 ? depthwise_grid(block, layer, Reach::same, false, 8, 16, most_blocks)
                             : depthwise_grid(block, layer, Reach::down, false, 4, 8, most_blocks);
}

// Calls function(constant kernel size, constant Reach: `same` or `other` for stride 2).
template <Reach other, typename Function>
__host__ __device__ __forceinline__ void with_depthwise(const ConvNorm& layer, const Function& function) {
    const auto with_kernel = [&](auto reach) {
        if (layer.kernel == 3)
            function(std::integral_constant<int, 3>{}, reach);
        else if (layer.kernel == 5)
            function(std::integral_constant<int, 5>{}, reach);
        else
            function(std::integral_constant<int, 7>{}, reach);
    };
    if (layer.stride == 1)
        with_kernel(std::integral_constant<Reach, Reach::same>{});
    else
        with_kernel(std::integral_constant<Reach, other>{});
}

// A layer's input as depthwise.cuh loads it.
template <typename T>
struct LoadMap {
    static constexpr int vector = vector_of<T>;
    const Map<T>& map;
    int height, width, selected;

    __device__ __forceinline__ void select(int channel) { selected = channel; }
    __device__ __forceinline__ void operator()(int64_t image, int row, int column, float (&to)[vector]) const {
        map.load(map.at((image * height + row) * width + column), selected, to);
    }
};

template <typename T>
struct DepthwiseFilter {
    const T* weight;
    int taps;
    bool flipped;

    __device__ __forceinline__ float operator()(int channel, int tap) const {
        return to_float(weight[channel * taps + (flipped ? taps - 1 - tap : tap)]);
    }
};

// Keeps the sums of one channel and collects their statistics.
template <typename T>
struct KeepSums {
    T* kept;
    int channels, height, width;
    Moments<1> moments;

    __device__ __forceinline__ void operator()(int64_t image, int row, int column, float value) {
        const T rounded = from_float<T>(value);
        kept[((image * height + row) * width + column) * channels] = rounded;
        const float as_read[1] = {to_float(rounded)};
        moments.add(as_read);
    }
};

using LaneThreads = ColumnThreads<1, GemmTile::threads / depthwise_lanes, depthwise_lanes>;
constexpr int depthwise_coefficients = 9 * depthwise_lanes;  // floats, in front of a stage's other shared memory

// Floats of shared memory that a layer's forward kernel needs.
template <typename T>
int depthwise_forward_shared(const ChoiceBlock& block, const ConvNorm& layer) {
    const DepthwiseGrid grid = depthwise_forward_grid(block, layer);
    return depthwise_coefficients +
           depthwise_shared(grid.tiling, layer.kernel, layer.stride == 1 ? Reach::same : Reach::down, vector_of<T>);
}

template <typename T>
__device__ __forceinline__ void depthwise_forward(const ChoiceBlock& block, const Branch& branch, Stage stage,
                                                  float* shared, int* flag) {
    const ConvNorm layer = layer_of(branch, stage);
    const DepthwiseGrid grid = depthwise_forward_grid(block, layer);
    if (static_cast<int>(blockIdx.x) >= grid.size()) return;
    const int channel_block = blockIdx.x % grid.tiling.channel_blocks, part = blockIdx.x / grid.tiling.channel_blocks;
    const int channel = channel_block * depthwise_lanes, lane = threadIdx.x % 32;
    const Map<T> input = input_of<T>(block, branch, stage, channel, depthwise_lanes, shared);
    const LoadMap<T> load{input, layer.in_height, layer.in_width, 0};
    const int taps = layer.kernel * layer.kernel;
    const DepthwiseFilter<T> filter{static_cast<const T*>(layer.weight), taps, false};
    KeepSums<T> keep{
        static_cast<T*>(block.kept) + layer.kept + channel + lane, layer.outputs, layer.height, layer.width, {}};
    float* const tiles = shared + depthwise_coefficients;
    with_depthwise<Reach::down>(layer, [&](auto kernel, auto reach) {
        for (int tile = part; tile < grid.tiling.tiles; tile += grid.blocks) {
            __syncthreads();  // the coefficients are there, and the tile before is done with
            depthwise_convolve<decltype(kernel)::value, decltype(reach)::value>(
                grid.tiling, tile, channel, layer.outputs, load, filter, keep, tiles);
        }
    });
    if (!block.training) return;
    __syncthreads();
    finish_moments<LaneThreads>(keep.moments, threadIdx.x / 32, lane, tiles, static_cast<float*>(block.workspace), part,
                                grid.blocks, channel, layer.outputs, block.statistics + layer.statistics,
                                block.counters + channel_block, flag);
}

}  // namespace spos::cuda
