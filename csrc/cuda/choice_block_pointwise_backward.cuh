// The pointwise stage of choice_block.h, backward: both gradients of a layer in one launch. Some blocks compute the
// gradient of its input (dgrad), the others that of its weight (wgrad).
//
// Operations  2 * pixels * inputs * outputs each. Bytes: dgrad reads the layer's gradient and its output once for each
// 64 inputs, wgrad both for each 64 inputs and the input for each 64 outputs.
#pragma once

#include "cuda/choice_block_gradient.cuh"

namespace spos::cuda {

// a: rows are pixels, k the channels of a gradient.
template <typename T>
struct GradientRows {
    static constexpr bool k_major = true;
    using Place = int;
    const GradientMap<T>& map;
    int64_t pixels;

    __device__ __forceinline__ Place place(int row) const { return row < pixels ? row : -1; }
    __device__ __forceinline__ uint4 load(Place place, int k) const {
        float value[vector_of<T>] = {};
        if (place >= 0 && k < map.channels) map.load(place, k, value);
        return bits_of(T{}, value);
    }
};

// a: rows are the channels of a gradient, k pixels.
template <typename T>
struct GradientColumns {
    static constexpr bool k_major = false;
    using Place = int;
    const GradientMap<T>& map;
    int64_t pixels;

    __device__ __forceinline__ Place place(int row) const { return row; }
    __device__ __forceinline__ uint4 load(Place place, int k) const {
        float value[vector_of<T>] = {};
        if (place < map.channels && k < pixels) map.load(k, place, value);
        return bits_of(T{}, value);
    }
};

// b: columns are the channels of a map, k pixels.
template <typename T>
struct PixelColumns {
    static constexpr bool k_major = false;
    using Place = int;
    const Map<T>& map;
    int64_t pixels;

    __device__ __forceinline__ Place place(int column) const { return column; }
    __device__ __forceinline__ uint4 load(Place place, int k) const {
        float value[vector_of<T>] = {};
        if (place < map.channels && k < pixels) map.load(map.at(k), place, value);
        return bits_of(T{}, value);
    }
};

// b: columns are a pointwise layer's inputs, k its outputs.
template <typename T>
struct WeightColumns {
    static constexpr bool k_major = false;
    using Place = int;
    const T* weight;
    int outputs, inputs, stride;
    bool aligned;

    __device__ __forceinline__ Place place(int column) const { return column; }
    __device__ __forceinline__ uint4 load(Place place, int k) const {
        float value[vector_of<T>] = {};
        if (place < inputs && k < outputs)
            load_some(weight + int64_t{k} * stride + place, inputs - place, aligned, value);
        return bits_of(T{}, value);
    }
};

// wgrad's work: tiles of the weight, for each of them `splits` parts of the pixels.
struct WgradGrid {
    static constexpr int most_splits = 64, least_pixels = 256;  // of a part
    int tiles, row_tiles, splits, pixels;                       // `pixels` of a part

    __host__ __device__ WgradGrid(int64_t all, int outputs, int inputs)
        : tiles(ceil_div(outputs, GemmTile::rows) * ceil_div(inputs, GemmTile::columns)),
          row_tiles(ceil_div(outputs, GemmTile::rows)) {
        int most = most_blocks / tiles;
        most = most > most_splits ? most_splits : most > 0 ? most : 1;
        const int wanted = ceil_div(all, least_pixels);
        pixels = ceil_div(ceil_div(all, wanted < most ? wanted : most), 64) * 64;
        splits = ceil_div(all, pixels);
    }
    __host__ __device__ int size() const { return tiles * splits; }
    __host__ __device__ int64_t parts() const {
        return splits > 1 ? int64_t{size()} * GemmTile::rows * GemmTile::columns : 0;
    }
};

// shared: GemmTile::shared_bytes, then tile_coefficients and 5 * outputs floats.
template <Math math>
__device__ __forceinline__ void pointwise_dgrad(const ChoiceBlock& block, const Branch& branch, Stage stage,
                                                const BackwardMemory<typename MathElement<math>::Type>& memory,
                                                int number, float* shared, int* flag) {
    using T = typename MathElement<math>::Type;
    const ConvNorm layer = layer_of(branch, stage);
    const int64_t pixels = pixels_of(block, layer);
    const PointwiseGrid grid(pixels, layer.inputs);
    const int column_tile = number % grid.column_tiles, part = number / grid.column_tiles;
    const int first_column = column_tile * GemmTile::columns;
    float* const coefficients = shared + GemmTile::shared_bytes / 4;
    const GradientMap<T> gradient =
        gradient_of(block, branch, stage, memory, 0, layer.outputs, coefficients + tile_coefficients);
    const WeightColumns<T> weight{static_cast<const T*>(layer.weight), layer.outputs, layer.inputs, layer.weight_stride,
                                  weight_is_aligned<T>(layer)};
    const ResultPlace<T> place;
    InputGradient<T, vector_of<T>> result(block, branch, stage, memory, first_column, place.column,
                                          {coefficients, GemmTile::columns});
    __syncthreads();
    for (int tile = part; tile < grid.row_tiles; tile += grid.blocks) {
        const int first_row = tile * GemmTile::rows;
        gemm_tile<math>(GradientRows<T>{gradient, pixels}, weight, first_row, first_column, 0, layer.outputs, shared);
        const int rows = pixels - first_row < GemmTile::rows ? static_cast<int>(pixels - first_row) : GemmTile::rows;
        for (int row = place.row; row < rows && result.there > 0; row += ResultPlace<T>::rows) {
            float value[vector_of<T>];
            place.read(shared, row, value);
            result.take(first_row + row, value);
        }
        __syncthreads();
    }
    if (stage.index == 0) return;
    const ConvNorm& before = layer_of(branch, {stage.proj, stage.index - 1});
    finish_sums<TileThreads<T>>(result.sums, place.row, place.column, shared, memory.parts, part, grid.blocks,
                                first_column, before.outputs, block.counters + column_tile, flag,
                                TakeSums{before, memory.sums});
}

constexpr int wgrad_coefficients = 5 * GemmTile::rows + 3 * GemmTile::columns;  // floats

// shared: GemmTile::shared_bytes, then wgrad_coefficients floats.
template <Math math>
__device__ __forceinline__ void pointwise_wgrad(const ChoiceBlock& block, const Branch& branch, Stage stage,
                                                const BackwardMemory<typename MathElement<math>::Type>& memory,
                                                int number, float* shared, int* flag) {
    using T = typename MathElement<math>::Type;
    constexpr int n = vector_of<T>;
    const ConvNorm layer = layer_of(branch, stage);
    const int64_t pixels = pixels_of(block, layer);
    const WgradGrid grid(pixels, layer.outputs, layer.inputs);
    const int tile = number % grid.tiles, split = number / grid.tiles;
    const int first_row = tile % grid.row_tiles * GemmTile::rows,
              first_column = tile / grid.row_tiles * GemmTile::columns;
    float* const coefficients = shared + GemmTile::shared_bytes / 4;
    const GradientMap<T> gradient = gradient_of(block, branch, stage, memory, first_row, GemmTile::rows, coefficients);
    const Map<T> input =
        input_of<T>(block, branch, stage, first_column, GemmTile::columns, coefficients + 5 * GemmTile::rows);
    __syncthreads();
    const int64_t begin = int64_t{split} * grid.pixels,
                  end = begin + grid.pixels < pixels ? begin + grid.pixels : pixels;
    gemm_tile<math>(GradientColumns<T>{gradient, pixels}, PixelColumns<T>{input, pixels}, first_row, first_column,
                    static_cast<int>(begin), static_cast<int>(end), shared);
    const ResultPlace<T> place;
    constexpr int tile_size = GemmTile::rows * GemmTile::columns;
    float* const parts = memory.weight_parts;
    if (grid.splits > 1) {
        float* const own = parts + int64_t{number} * tile_size;
        for (int row = place.row; row < GemmTile::rows; row += ResultPlace<T>::rows) {
            float value[n];
            place.read(shared, row, value);
            float* const to = own + row * GemmTile::columns + place.column;
#pragma unroll
            for (int i = 0; i < n; i += 4)
                *reinterpret_cast<float4*>(to + i) = make_float4(value[i], value[i + 1], value[i + 2], value[i + 3]);
        }
        if (!is_last_block(block.counters + choice_block_counters / 2 + tile, static_cast<uint32_t>(grid.splits), flag))
            return;
    }
    T* const dweight = static_cast<T*>(layer.dweight);
    const int column = first_column + place.column, there = layer.inputs - column;
    const bool aligned = layer.inputs % n == 0 && reinterpret_cast<uintptr_t>(dweight) % 16 == 0;
    for (int row = place.row; row < GemmTile::rows && first_row + row < layer.outputs; row += ResultPlace<T>::rows) {
        if (there <= 0) break;
        float sum[n] = {};
        if (grid.splits > 1) {
            for (int i = 0; i < grid.splits; ++i) {
                const float* const from =
                    parts + (int64_t{i} * grid.tiles + tile) * tile_size + row * GemmTile::columns + place.column;
#pragma unroll
                for (int j = 0; j < n; j += 4) {
                    const float4 four = *reinterpret_cast<const float4*>(from + j);
                    sum[j] += four.x, sum[j + 1] += four.y, sum[j + 2] += four.z, sum[j + 3] += four.w;
                }
            }
        } else {
            place.read(shared, row, sum);
        }
        store_some(dweight + int64_t{first_row + row} * layer.inputs + column, there, aligned, sum);
    }
}

}  // namespace spos::cuda
