// What the kernels of choice_block.h share: where a layer's input comes from, how it is normalised on load, and how
// many blocks work on a layer.
#pragma once

#include "cuda/choice_block.h"
#include "cuda/elements.cuh"
#include "cuda/gemm.cuh"
#include "cuda/statistics.cuh"

namespace spos::cuda {

// Blocks that a layer is shared out among. It depends on the layer alone, not on the launch: the order of sums does.
constexpr int most_blocks = 512;

__host__ __device__ constexpr int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

__device__ __forceinline__ const Branch& branch_of(const ChoiceBlock& block) {
    return block.table ? block.table[*block.choice] : block.branch;
}

// Convolution number `index` of main or of proj.
struct Stage {
    bool proj;
    int index;
};
__host__ __device__ inline int count_of(const Branch& branch, Stage stage) {
    return stage.proj ? branch.proj : branch.main;
}
__host__ __device__ inline const ConvNorm& layer_of(const Branch& branch, Stage stage) {
    return branch.layer[(stage.proj ? branch.main : 0) + stage.index];
}

// A launch is for one slot of a chain: slots 0, 2, 4 are depthwise, 1, 3, 5 pointwise. A chain that begins with a
// pointwise convolution begins in slot 1. So each launch knows its kind, and a choice is a place in the chain.
struct Slot {
    bool proj;
    int number;

    __host__ __device__ bool pointwise() const { return number % 2 == 1; }
    __host__ __device__ Stage stage(const Branch& branch) const {
        return {proj, number - (layer_of(branch, {proj, 0}).kernel == 1 ? 1 : 0)};
    }
    __host__ __device__ bool is_used(const Branch& branch) const {
        const int index = stage(branch).index;
        return index >= 0 && index < count_of(branch, {proj, 0});
    }
};
constexpr int most_slots = Branch::most_main + 1;

// On the host: calls function(stage, layer) for what a slot may be.
template <typename Function>
void for_layers(const ChoiceBlock& block, Slot slot, const Function& function) {
    const int count = block.table ? block.choice_count : 1;
    for (int i = 0; i < count; ++i) {
        const Branch& branch = block.table ? block.choices[i] : block.branch;
        if (slot.is_used(branch)) function(branch, slot.stage(branch), layer_of(branch, slot.stage(branch)));
    }
}

__host__ __device__ inline int64_t pixels_of(const ChoiceBlock& block, const ConvNorm& layer) {
    return int64_t{block.batch} * layer.height * layer.width;
}

// The work on a pointwise layer's output: tiles of pixels, and of those `blocks` at a time, for each tile of channels.
struct PointwiseGrid {
    int row_tiles, column_tiles, blocks;
    __host__ __device__ PointwiseGrid(int64_t rows, int columns)
        : row_tiles(ceil_div(rows, GemmTile::rows)), column_tiles(ceil_div(columns, GemmTile::columns)) {
        const int most = most_blocks / (column_tiles > 0 ? column_tiles : 1);  // none where there are no columns
        blocks = row_tiles < most ? row_tiles : most > 0 ? most : 1;
    }
    __host__ __device__ int size() const { return blocks * column_tiles; }
};

// A map as a layer reads it: channel c of a pixel is element c, or, step 2, the odd one 2 * c + 1; normalised it is
// (value - mean) * scale + beta, then goes through ReLU.
template <typename T>
struct Map {
    const T* base;
    int64_t pixel;  // elements from one pixel to the next
    int step, channels;
    bool aligned;  // vectors of 16 bytes can be loaded
    bool normalised, relu;
    const float *mean, *scale, *beta;  // of channel 0 onwards, as far as they are there; shared memory

    // Channels c onwards of the pixel at `from`, zeros behind the last.
    __device__ __forceinline__ void load(const T* from, int c, float (&value)[vector_of<T>]) const {
        if (step == 1) {
            load_some(from + c, channels - c, aligned, value);
        } else {
            load_alternate<1>(from + 2 * c, channels - c, aligned, value);
        }
        if (normalised) normalise(c, value);
    }
    __device__ __forceinline__ void normalise(int c, float (&value)[vector_of<T>]) const {
#pragma unroll
        for (int i = 0; i < vector_of<T>; ++i) {
            if (c + i >= channels) continue;
            const float result = fmaf(value[i] - mean[c + i], scale[c + i], beta[c + i]);
            value[i] = relu ? cuda::relu(result) : result;
        }
    }
    __device__ __forceinline__ const T* at(int64_t pixel_number) const { return base + pixel_number * pixel; }
};

// 1 / sqrt(variance + eps) to the last bit or so, by a Newton step with the rounding errors of the sum and of the first
// guess in it. Gradients through normalisation are differences of large terms, which one unit more here would show in.
__device__ __forceinline__ float inverse_root(float variance, float eps) {
    const float sum = variance + eps, larger = fmaxf(variance, eps), lost = fminf(variance, eps) - (sum - larger);
    const float guess = 1.0f / sqrtf(sum), product = sum * guess, product_lost = fmaf(sum, guess, -product);
    const float error = fmaf(-product, guess, 1.0f) - fmaf(lost, guess, product_lost) * guess;
    return fmaf(0.5f * guess, error, guess);
}

// Mean, one over the deviation, and the factor and the addend of the normalisation behind a layer.
struct Coefficients {
    float mean, inverse_deviation, scale, beta;
};
__device__ __forceinline__ Coefficients coefficients_of(const ChoiceBlock& block, const ConvNorm& layer, int channel) {
    const float* const mean = block.statistics ? block.statistics + layer.statistics : layer.running_mean;
    const float* const variance = block.statistics ? mean + layer.outputs : layer.running_var;
    const float inverse = inverse_root(variance[channel], block.eps);
    return {mean[channel], inverse, layer.gamma ? layer.gamma[channel] * inverse : inverse,
            layer.beta ? layer.beta[channel] : 0.0f};
}

// Those of `columns` neighbouring channels in shared memory, where they take no registers.
struct ColumnCoefficients {
    static constexpr int numbers = 4;  // floats for each channel
    float* shared;
    int columns;

    // By all threads of the block; the caller synchronises before reading.
    __device__ __forceinline__ void fill(const ChoiceBlock& block, const ConvNorm& layer, int first) const {
        for (int i = threadIdx.x; i < columns && first + i < layer.outputs; i += blockDim.x) {
            const Coefficients of = coefficients_of(block, layer, first + i);
            shared[i] = of.mean, shared[columns + i] = of.inverse_deviation;
            shared[2 * columns + i] = of.scale, shared[3 * columns + i] = of.beta;
        }
    }
    __device__ __forceinline__ Coefficients operator[](int column) const {
        return {shared[column], shared[columns + column], shared[2 * columns + column], shared[3 * columns + column]};
    }
};

// The input of a stage. Where that is another layer's output, all threads of the block put the coefficients of channels
// [first, first + count) into `shared`, 3 * count floats, and the caller synchronises before loading these.
template <typename T>
__device__ __forceinline__ Map<T> input_of(const ChoiceBlock& block, const Branch& branch, Stage stage, int first,
                                           int count, float* shared) {
    const int channels = layer_of(branch, stage).inputs;
    constexpr int n = vector_of<T>;
    if (stage.index == 0) {
        const T* const x = static_cast<const T*>(block.x);
        const int step = block.passes ? 2 : 1;
        const bool aligned = block.x_pixel % n == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
        return {x, block.x_pixel, step, channels, aligned, false, false, nullptr, nullptr, nullptr};
    }
    const ConvNorm& before = layer_of(branch, {stage.proj, stage.index - 1});
    for (int i = threadIdx.x; i < count && first + i < channels; i += blockDim.x) {
        const Coefficients of = coefficients_of(block, before, first + i);
        shared[i] = of.mean;
        shared[count + i] = of.scale;
        shared[2 * count + i] = of.beta;
    }
    const T* const kept = static_cast<const T*>(block.kept) + before.kept;
    const bool aligned = channels % n == 0 && reinterpret_cast<uintptr_t>(kept) % 16 == 0;
    const float* const mean = shared - first;
    return {kept, channels, 1, channels, aligned, true, before.kernel == 1, mean, mean + count, mean + 2 * count};
}

template <Math value_>
struct MathValue {
    static constexpr Math value = value_;
};
// Calls function(MathValue of what multiplies these elements).
template <typename Function>
int with_math(Element element, Product product, const Function& function) {
    if (element == Element::float16) return function(MathValue<Math::f16>{});
    if (element == Element::bfloat16) return function(MathValue<Math::bf16>{});
    return product == Product::tf32 ? function(MathValue<Math::tf32>{}) : function(MathValue<Math::ffma>{});
}

// Vectors as the operands of gemm.cuh have them.
__device__ __forceinline__ uint4 bits_of(float, const float (&value)[4]) {
    return make_uint4(__float_as_uint(value[0]), __float_as_uint(value[1]), __float_as_uint(value[2]),
                      __float_as_uint(value[3]));
}
template <typename T>
__device__ __forceinline__ uint4 bits_of(T, const float (&value)[8]) {
    return make_uint4(pack2<T>(value[0], value[1]), pack2<T>(value[2], value[3]), pack2<T>(value[4], value[5]),
                      pack2<T>(value[6], value[7]));
}

// a: rows are pixels, k the channels of a map.
template <typename T>
struct PixelRows {
    static constexpr bool k_major = true;
    using Place = const T*;
    const Map<T>& map;
    int64_t pixels;

    __device__ __forceinline__ Place place(int row) const { return row < pixels ? map.at(row) : nullptr; }
    __device__ __forceinline__ uint4 load(Place place, int k) const {
        float value[vector_of<T>] = {};
        if (place) map.load(place, k, value);
        return bits_of(T{}, value);
    }
};

// b: columns are a pointwise layer's outputs, k its inputs.
template <typename T>
struct WeightRows {
    static constexpr bool k_major = true;
    using Place = const T*;
    const T* weight;
    int outputs, inputs, stride;
    bool aligned;

    __device__ __forceinline__ Place place(int column) const {
        return column < outputs ? weight + int64_t{column} * stride : nullptr;
    }
    __device__ __forceinline__ uint4 load(Place place, int k) const {
        float value[vector_of<T>] = {};
        if (place) load_some(place + k, inputs - k, aligned, value);
        return bits_of(T{}, value);
    }
};

template <typename T>
__device__ __forceinline__ bool weight_is_aligned(const ConvNorm& layer) {
    return layer.weight_stride % vector_of<T> == 0 && reinterpret_cast<uintptr_t>(layer.weight) % 16 == 0;
}

}  // namespace spos::cuda
