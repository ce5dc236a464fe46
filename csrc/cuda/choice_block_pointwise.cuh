// The pointwise stage of choice_block.h, forward: normalise the input on load, multiply, keep the sums, and take their
// statistics; or, where those are given and the layer is the last, normalise the sums into y.
//
// Operations  2 * pixels * inputs * outputs. Bytes: the input once for each 64 outputs, the output once.
#pragma once

#include "cuda/choice_block_parts.cuh"

namespace spos::cuda {

// A thread's place in a result tile: it has the vector at `column` of rows `row`, `row + rows` ... for the whole tile,
// so that what belongs to a column stays in registers.
template <typename T>
struct ResultPlace {
    static constexpr int across = GemmTile::columns / vector_of<T>, rows = GemmTile::threads / across;
    int row = threadIdx.x / across, column = threadIdx.x % across * vector_of<T>;

    __device__ __forceinline__ void read(const float* result, int at_row, float (&value)[vector_of<T>]) const {
        const float* const from = result + at_row * GemmTile::result_stride + column;
#pragma unroll
        for (int i = 0; i < vector_of<T>; i += 4) {
            const float4 four = *reinterpret_cast<const float4*>(from + i);
            value[i] = four.x, value[i + 1] = four.y, value[i + 2] = four.z, value[i + 3] = four.w;
        }
    }
};

template <typename T>
using TileThreads = ColumnThreads<vector_of<T>, ResultPlace<T>::rows, GemmTile::columns>;

// The channels of y that pass, where there is no kernel of their own for y: the pixels of the block's tiles.
template <typename T>
__device__ __forceinline__ void copy_passing(const ChoiceBlock& block, int part, const PointwiseGrid& grid) {
    constexpr int n = vector_of<T>;
    const T* const x = static_cast<const T*>(block.x);
    T* const y = static_cast<T*>(block.y);
    const int64_t pixels = int64_t{block.batch} * block.out_height * block.out_width;
    const int vectors = ceil_div(block.beside, n);
    const bool from_aligned = block.x_pixel % n == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
    const bool to_aligned = block.out_channels % n == 0 && reinterpret_cast<uintptr_t>(y) % 16 == 0;
    for (int tile = part; tile < grid.row_tiles; tile += grid.blocks)
        for (int i = threadIdx.x; i < GemmTile::rows * vectors; i += GemmTile::threads) {
            const int64_t pixel = int64_t{tile} * GemmTile::rows + i / vectors;
            const int channel = i % vectors * n;
            if (pixel >= pixels) break;
            float value[n];
            load_alternate<0>(x + pixel * block.x_pixel + 2 * channel, block.beside - channel, from_aligned, value);
            store_some(y + pixel * block.out_channels + channel, block.beside - channel, to_aligned, value);
        }
}

constexpr int tile_coefficients = ColumnCoefficients::numbers * GemmTile::columns;  // floats

// shared: GemmTile::shared_bytes, then tile_coefficients and 3 * inputs floats.
template <Math math>
__device__ __forceinline__ void pointwise_forward(const ChoiceBlock& block, const Branch& branch, Stage stage,
                                                  float* shared, int* flag) {
    using T = typename MathElement<math>::Type;
    constexpr int n = vector_of<T>;
    const ConvNorm layer = layer_of(branch, stage);
    const int64_t pixels = pixels_of(block, layer);
    const PointwiseGrid grid(pixels, layer.outputs);
    if (static_cast<int>(blockIdx.x) >= grid.size()) return;
    const int column_tile = blockIdx.x % grid.column_tiles, part = blockIdx.x / grid.column_tiles;
    const int first_column = column_tile * GemmTile::columns;
    float* const coefficients = shared + GemmTile::shared_bytes / 4;
    const Map<T> input = input_of<T>(block, branch, stage, 0, layer.inputs, coefficients + tile_coefficients);
    const bool ends = !block.keep && stage.index == count_of(branch, stage) - 1;
    const ColumnCoefficients of{coefficients, GemmTile::columns};
    if (ends) of.fill(block, layer, first_column);
    __syncthreads();
    const WeightRows<T> weight{static_cast<const T*>(layer.weight), layer.outputs, layer.inputs, layer.weight_stride,
                               weight_is_aligned<T>(layer)};
    const ResultPlace<T> place;
    const int channel = first_column + place.column, there = layer.outputs - channel;
    T* const to =
        ends ? static_cast<T*>(block.y) + (stage.proj ? 0 : block.beside) : static_cast<T*>(block.kept) + layer.kept;
    const int64_t to_pixel = ends ? block.out_channels : layer.outputs;
    const bool aligned = to_pixel % n == 0 && reinterpret_cast<uintptr_t>(to) % 16 == 0;

    if (ends && block.passes && column_tile == 0) copy_passing<T>(block, part, grid);
    Moments<n> moments;
    for (int tile = part; tile < grid.row_tiles; tile += grid.blocks) {
        const int first_row = tile * GemmTile::rows;
        gemm_tile<math>(PixelRows<T>{input, pixels}, weight, first_row, first_column, 0, layer.inputs, shared);
        const int rows = pixels - first_row < GemmTile::rows ? static_cast<int>(pixels - first_row) : GemmTile::rows;
        for (int row = place.row; row < rows; row += ResultPlace<T>::rows) {
            float value[n];
            place.read(shared, row, value);
            if (ends) {
#pragma unroll
                for (int i = 0; i < n; ++i) {
                    if (i >= there) continue;
                    const Coefficients k = of[place.column + i];  // as rounded as what would have been kept
                    value[i] = relu(fmaf(to_float(from_float<T>(value[i])) - k.mean, k.scale, k.beta));
                }
            }
            store_some(to + (first_row + row) * to_pixel + channel, there, aligned, value);
            if (block.training) {
#pragma unroll
                for (int i = 0; i < n; ++i) value[i] = to_float(from_float<T>(value[i]));  // as others read it
                moments.add(value);
            }
        }
        __syncthreads();
    }
    if (block.training)
        finish_moments<TileThreads<T>>(moments, place.row, place.column, shared, static_cast<float*>(block.workspace),
                                       part, grid.blocks, first_column, layer.outputs,
                                       block.statistics + layer.statistics, block.counters + column_tile, flag);
}

}  // namespace spos::cuda
