// The last kernel of choice_block.h's forward pass in training: y from the ends of both chains, each normalised,
// through ReLU, and the running statistics of all layers.
//
// Bytes  one read and one write of y's elements. Threads of a row of the block have neighbouring vectors of channels,
// and keep the coefficients of theirs for all pixels.
#pragma once

#include "cuda/choice_block_parts.cuh"

namespace spos::cuda {

// Vectors of y: first those beside main, then main's, each side with its own last vector.
template <typename T>
struct OutputGrid {
    static constexpr int threads = 256;
    int beside, vectors;  // of 16 bytes
    int across, rows;     // threads of a block: vectors next to each other, pixels below each other

    __host__ __device__ OutputGrid(int beside_channels, int main_channels)
        : beside(ceil_div(beside_channels, vector_of<T>)),
          vectors(beside + ceil_div(main_channels, vector_of<T>)),
          across(vectors < threads ? vectors : threads),
          rows(threads / across) {}
    __host__ __device__ int columns() const { return ceil_div(vectors, across); }
};

// count is incremented by one thread, as nn.BatchNorm2d does, before its value is used.
__device__ __forceinline__ void move_running_statistics(const ChoiceBlock& block, const ConvNorm& layer) {
    const float values = static_cast<float>(pixels_of(block, layer));
    const float seen = layer.count ? static_cast<float>(*layer.count + 1) : 0.0f;
    const float share = block.momentum >= 0 ? block.momentum : layer.count ? 1.0f / seen : 0.0f;
    __syncthreads();
    if (layer.count && threadIdx.x == 0) *layer.count += 1;
    if (layer.running_mean == nullptr) return;
    const float* const statistics = block.statistics + layer.statistics;
    for (int c = threadIdx.x; c < layer.outputs; c += blockDim.x) {
        float* const mean = layer.running_mean + c;
        float* const variance = layer.running_var + c;
        *mean = fmaf(share, statistics[c] - *mean, *mean);
        *variance = fmaf(share, statistics[layer.outputs + c] * (values / (values - 1.0f)) - *variance, *variance);
    }
}

// `blocks`: those next to each other in x that share the pixels.
template <typename T>
__device__ __forceinline__ void write_output(const ChoiceBlock& block, const Branch& branch, int64_t blocks) {
    constexpr int n = vector_of<T>;
    const OutputGrid<T> grid(block.beside, block.out_channels - block.beside);
    const int vector = static_cast<int>(blockIdx.y) * grid.across + static_cast<int>(threadIdx.x) % grid.across;
    const int row = static_cast<int>(threadIdx.x) / grid.across;
    if (vector >= grid.vectors || row >= grid.rows) return;
    const bool is_main = vector >= grid.beside, passes = !is_main && block.passes;
    const int channel = (is_main ? vector - grid.beside : vector) * n;
    const int channels = is_main ? block.out_channels - block.beside : block.beside, there = channels - channel;
    const ConvNorm& layer = layer_of(branch, is_main ? Stage{false, branch.main - 1} : Stage{true, branch.proj - 1});
    Coefficients of[n];
    if (!passes) {
#pragma unroll
        for (int i = 0; i < n; ++i)
            if (i < there) of[i] = coefficients_of(block, layer, channel + i);
    }
    const T* from = static_cast<const T*>(passes ? block.x : block.kept);
    int64_t from_pixel = passes ? block.x_pixel : layer.outputs;
    from += passes ? 2 * channel : layer.kept + channel;
    T* const to = static_cast<T*>(block.y) + (is_main ? block.beside : 0) + channel;
    const bool from_aligned = from_pixel % n == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0;
    const bool to_aligned = block.out_channels % n == 0 && reinterpret_cast<uintptr_t>(to) % 16 == 0;
    const int64_t pixels = int64_t{block.batch} * block.out_height * block.out_width;
    for (int64_t p = int64_t{blockIdx.x} * grid.rows + row; p < pixels; p += blocks * grid.rows) {
        const T* const at = from + p * from_pixel;
        float value[n];
        if (!passes) {
            load_some(at, there, from_aligned, value);
#pragma unroll
            for (int i = 0; i < n; ++i)
                if (i < there) value[i] = relu(fmaf(value[i] - of[i].mean, of[i].scale, of[i].beta));
        } else {
            load_alternate<0>(at, there, from_aligned, value);
        }
        store_some(to + p * block.out_channels, there, to_aligned, value);
    }
}

}  // namespace spos::cuda
