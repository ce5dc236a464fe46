// Pointwise, depthwise and pointwise convolution with given statistics in one kernel, through shared memory: the first
// convolution's output exists only there. A chain that begins with a depthwise convolution has parts without the first.
//
// Shapes    A block has a tile of the output, 8 x 8 pixels (stride 2: 4 x 8), and all channels. What the depthwise
//           convolution reads of it, the region, is larger by k - 1.
// Method    The region's pixels go through the first product, 64 x 64 sums at a time (gemm.cuh), are normalised and
//           lie in shared memory as planes of 32 channels, zero outside of the image. A warp convolves a patch of each
//           plane; its sums take the plane's place, and are the rows of the second product.
// Bytes     The input's region, both weights from L2, and y: nothing in between. The first product is done again where
//           regions overlap: (8 + k - 1)^2 / 64 times.
#pragma once

#include "cuda/choice_block_depthwise.cuh"
#include "cuda/choice_block_pointwise.cuh"

namespace spos::cuda {

// Layers first .. depthwise .. depthwise + 1 of a chain, first being depthwise - 1 or depthwise itself.
struct Part3 {
    bool proj;
    int first, depthwise;

    __host__ __device__ bool expands() const { return first < depthwise; }
};

struct InferenceTile {
    int rows, columns, region_rows, region_columns, row_tiles, column_tiles;

    __host__ __device__ explicit InferenceTile(const ConvNorm& layer)
        : rows(layer.stride == 1 ? 8 : 4),
          columns(8),
          region_rows((rows - 1) * layer.stride + layer.kernel),
          region_columns((columns - 1) * layer.stride + layer.kernel),
          row_tiles(ceil_div(layer.height, rows)),
          column_tiles(ceil_div(layer.width, columns)) {}
    __host__ __device__ int region() const { return region_rows * region_columns; }
    __host__ __device__ int plane() const { return region() * depthwise_lanes; }  // floats
};

// Floats of shared memory: the products' tile, coefficients of three layers, planes.
inline int inference_shared(const ConvNorm& depthwise, int outputs) {
    const InferenceTile tile(depthwise);
    return GemmTile::shared_bytes / 4 + 6 * depthwise.outputs + 3 * ((outputs + 3) / 4 * 4) +
           ceil_div(depthwise.outputs, depthwise_lanes) * tile.plane() + 8;
}

struct Normalisation {
    const float *mean, *scale, *beta;

    __device__ __forceinline__ float operator()(int channel, float value) const {
        return fmaf(value - mean[channel], scale[channel], beta[channel]);
    }
};
// All threads of the block fill 3 * outputs floats; the caller synchronises.
__device__ __forceinline__ Normalisation normalisation_of(const ChoiceBlock& block, const ConvNorm& layer,
                                                          float* shared) {
    const int channels = layer.outputs;
    for (int c = threadIdx.x; c < channels; c += blockDim.x) {
        const Coefficients of = coefficients_of(block, layer, c);
        shared[c] = of.mean, shared[channels + c] = of.scale, shared[2 * channels + c] = of.beta;
    }
    return {shared, shared + channels, shared + 2 * channels};
}

// Where a region lies in a map.
struct Region {
    int64_t image;  // its first pixel
    int row, column, columns, height, width;

    // The number of a pixel of the region in the map, -1 outside of it.
    __device__ __forceinline__ int64_t pixel(int number) const {
        const int r = row + number / columns, c = column + number % columns;
        const bool inside = static_cast<unsigned>(r) < static_cast<unsigned>(height) &&
                            static_cast<unsigned>(c) < static_cast<unsigned>(width);
        return inside ? image + int64_t{r} * width + c : -1;
    }
};

// a: rows are the pixels of a region, k the channels of a map.
template <typename T>
struct RegionRows {
    static constexpr bool k_major = true;
    using Place = const T*;
    const Map<T>& map;
    const Region& region;
    int pixels;

    __device__ __forceinline__ Place place(int row) const {
        const int64_t pixel = row < pixels ? region.pixel(row) : -1;
        return pixel < 0 ? nullptr : map.at(pixel);
    }
    __device__ __forceinline__ uint4 load(Place place, int k) const {
        float value[vector_of<T>] = {};
        if (place && k < map.channels) map.load(place, k, value);
        return bits_of(T{}, value);
    }
};

// a: rows are pixels, k the channels, in planes of 32.
template <typename T>
struct PlaneRows {
    static constexpr bool k_major = true;
    using Place = const float*;
    const float* planes;
    int plane, pixels, channels;

    __device__ __forceinline__ Place place(int row) const {
        return row < pixels ? planes + row * depthwise_lanes : nullptr;
    }
    __device__ __forceinline__ uint4 load(Place place, int k) const {
        float value[vector_of<T>] = {};
        if (place) {
            const float* const from = place + k / depthwise_lanes * plane + k % depthwise_lanes;
#pragma unroll
            for (int i = 0; i < vector_of<T>; ++i)
                if (k + i < channels) value[i] = from[i];
        }
        return bits_of(T{}, value);
    }
};

template <typename T>
__device__ __forceinline__ WeightRows<T> weight_rows(const ConvNorm& layer) {
    return {static_cast<const T*>(layer.weight), layer.outputs, layer.inputs, layer.weight_stride,
            weight_is_aligned<T>(layer)};
}

// The region's input in planes, through the first convolution if there is one. `norm` is there after a product's
// barriers.
template <Math math, typename T>
__device__ __forceinline__ void fill_planes(const Map<T>& input, const ConvNorm& first, bool expands,
                                            const Normalisation& norm, const Region& region, int pixels, int plane,
                                            float* product, float* planes) {
    constexpr int n = vector_of<T>;
    const int channels = expands ? first.outputs : input.channels;
    const auto put = [&](int pixel, int channel, const float (&value)[n]) {
        float* const to =
            planes + channel / depthwise_lanes * plane + pixel * depthwise_lanes + channel % depthwise_lanes;
#pragma unroll
        for (int i = 0; i < n; i += 4)  // behind the last channel too, where nobody reads
            *reinterpret_cast<float4*>(to + i) = make_float4(value[i], value[i + 1], value[i + 2], value[i + 3]);
    };
    if (!expands) {
        const int vectors = ceil_div(channels, n);
        for (int i = threadIdx.x; i < pixels * vectors; i += GemmTile::threads) {
            const int64_t pixel = region.pixel(i / vectors);
            float value[n] = {};
            if (pixel >= 0) input.load(input.at(pixel), i % vectors * n, value);
            put(i / vectors, i % vectors * n, value);
        }
        return;
    }
    const ResultPlace<T> place;
    for (int row = 0; row < pixels; row += GemmTile::rows)
        for (int column = 0; column < channels; column += GemmTile::columns) {
            gemm_tile<math>(RegionRows<T>{input, region, pixels}, weight_rows<T>(first), row, column, 0, first.inputs,
                            product);
            for (int r = place.row; r < GemmTile::rows && row + r < pixels; r += ResultPlace<T>::rows) {
                const int channel = column + place.column;
                if (channel >= channels) break;
                float value[n];
                place.read(product, r, value);
                const bool inside = region.pixel(row + r) >= 0;
#pragma unroll
                for (int i = 0; i < n; ++i)
                    if (channel + i < channels)
                        value[i] = inside ? relu(norm(channel + i, to_float(from_float<T>(value[i])))) : 0.0f;
                put(row + r, channel, value);
            }
            __syncthreads();
        }
}

// Each plane's region becomes the depthwise convolution's normalised output, in its first pixels.
template <int kernel, Reach reach, typename T>
__device__ __forceinline__ void convolve_planes(const ConvNorm& layer, const Normalisation& norm,
                                                const InferenceTile& tile, float* planes) {
    constexpr int taps = kernel * kernel, rows = depthwise_patch_rows(reach), columns = depthwise_patch_columns;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;  // a patch a warp
    const int row = warp / 2 * rows, column = warp % 2 * columns;
    for (int first = 0; first < layer.outputs; first += depthwise_lanes) {
        const int channel = first + lane;
        const bool there = channel < layer.outputs;
        float* const plane = planes + first / depthwise_lanes * tile.plane() + lane;
        float sums[rows][columns] = {};
        if (there) {
            float filter[taps];
#pragma unroll
            for (int tap = 0; tap < taps; ++tap)
                filter[tap] = to_float(static_cast<const T*>(layer.weight)[channel * taps + tap]);
            const int source = depthwise_scaled(reach, row) * tile.region_columns + depthwise_scaled(reach, column);
            depthwise_patch<kernel, reach, depthwise_lanes>(
                plane + source * depthwise_lanes, tile.region_columns * depthwise_lanes,
                [&](int q, int p, int tap, float value) { sums[q][p] = fmaf(value, filter[tap], sums[q][p]); });
        }
        __syncthreads();  // all warps have read the plane
        if (!there) continue;
#pragma unroll
        for (int q = 0; q < rows; ++q)
#pragma unroll
            for (int p = 0; p < columns; ++p)
                plane[((row + q) * tile.columns + column + p) * depthwise_lanes] =
                    norm(channel, to_float(from_float<T>(sums[q][p])));
    }
}

}  // namespace spos::cuda
