// What the backward kernels of choice_block.h share: a layer's gradient on load, and what becomes of the gradient of
// its input on store.
//
// Batch normalisation y = (z - mean) * scale + beta of n values, scale = gamma / deviation, has
//     dz = scale * (dy - sum(dy) / n - (z - mean) / deviation * sum(dy * (z - mean) / deviation) / n)
// in training, scale * dy otherwise. Both sums are ready when a kernel asks for dz: whoever wrote dy took them.
#pragma once

#include "cuda/choice_block_parts.cuh"
#include "cuda/choice_block_pointwise.cuh"

namespace spos::cuda {

// Where a backward pass keeps what: 16-byte aligned parts of its workspace.
struct BackwardPlan {
    int64_t map;           // elements of the largest gradient between layers; there are two
    int64_t statistics;    // floats of the sums: two for each output of each layer
    int64_t parts;         // floats, of the sums of a layer, or of two at the ends of the chains
    int64_t weight_parts;  // floats, of a weight's gradient
};

template <typename T>
struct BackwardMemory {
    T* maps;
    int64_t map;
    float *sums, *parts, *weight_parts;

    __device__ __forceinline__ BackwardMemory(void* workspace, const BackwardPlan& plan)
        : maps(static_cast<T*>(workspace)),
          map(plan.map),
          sums(reinterpret_cast<float*>(maps + 2 * plan.map)),
          parts(sums + plan.statistics),
          weight_parts(parts + plan.parts) {}
    // The gradient behind layer `index` of a chain.
    __device__ __forceinline__ T* behind(int index) const { return maps + index % 2 * map; }
};

// A layer's gradient dz, made of the gradient dy behind its normalisation, which lies in memory, or in front of the
// block's ReLU where the layer is the last of its chain.
template <typename T>
struct GradientMap {
    const T* base;  // of dy
    int64_t pixel;
    const T* kept;  // z
    int channels;
    bool aligned, masked;
    const float *mean, *scale, *beta, *slope, *share;  // of channel 0 onwards, as far as they are there; shared memory

    __device__ __forceinline__ void load(int64_t number, int c, float (&value)[vector_of<T>]) const {
        constexpr int n = vector_of<T>;
        float z[n];
        load_some(base + number * pixel + c, channels - c, aligned, value);
        load_some(kept + number * channels + c, channels - c, aligned, z);
#pragma unroll
        for (int i = 0; i < n; ++i) {
            if (c + i >= channels) continue;
            const float centred = z[i] - mean[c + i];
            if (masked && !(fmaf(centred, scale[c + i], beta[c + i]) > 0.0f)) value[i] = 0.0f;
            value[i] = scale[c + i] * fmaf(-centred, slope[c + i], value[i] - share[c + i]);
        }
    }
};

// All threads of the block put the coefficients of channels [first, first + count) into `shared`, 5 * count floats, and
// the caller synchronises before loading these.
template <typename T>
__device__ __forceinline__ GradientMap<T> gradient_of(const ChoiceBlock& block, const Branch& branch, Stage stage,
                                                      const BackwardMemory<T>& memory, int first, int count,
                                                      float* shared) {
    const ConvNorm& layer = layer_of(branch, stage);
    const int channels = layer.outputs;
    const float values = static_cast<float>(pixels_of(block, layer));
    const float* const sums = memory.sums + layer.statistics;
    for (int i = threadIdx.x; i < count && first + i < channels; i += blockDim.x) {
        const Coefficients of = coefficients_of(block, layer, first + i);
        shared[i] = of.mean;
        shared[count + i] = of.scale;
        shared[2 * count + i] = of.beta;
        shared[3 * count + i] = block.training ? of.inverse_deviation * (sums[channels + first + i] / values) : 0.0f;
        shared[4 * count + i] = block.training ? sums[first + i] / values : 0.0f;
    }
    const bool last = stage.index == count_of(branch, stage) - 1;
    const T* const base =
        last ? static_cast<const T*>(block.dy) + (stage.proj ? 0 : block.beside) : memory.behind(stage.index);
    const int64_t pixel = last ? block.dy_pixel : channels;
    const T* const kept = static_cast<const T*>(block.kept) + layer.kept;
    const bool aligned = (pixel | channels) % vector_of<T> == 0 &&
                         (reinterpret_cast<uintptr_t>(base) | reinterpret_cast<uintptr_t>(kept)) % 16 == 0;
    const float* const mean = shared - first;
    return {base,
            pixel,
            kept,
            channels,
            aligned,
            last,
            mean,
            mean + count,
            mean + 2 * count,
            mean + 3 * count,
            mean + 4 * count};
}

// Takes the sums of a layer's gradients: what its normalisation needs, and the gradients of gamma and beta.
struct TakeSums {
    const ConvNorm& layer;
    float* sums;

    __device__ __forceinline__ void operator()(int which, int channel, float sum) const {
        sums[layer.statistics + which * layer.outputs + channel] = sum;
        float* const gradient = which ? layer.dgamma : layer.dbeta;
        if (gradient) gradient[channel] = sum;
    }
};

// n channels, which are a vector or one that exists.
template <typename T, int n>
__device__ __forceinline__ void load_channels(const T* from, int there, bool aligned, float (&value)[n]) {
    if constexpr (n == 1)
        value[0] = to_float(*from);
    else
        load_some(from, there, aligned, value);
}

// Takes the gradient of a stage's input, n channels of a pixel at a time, always the same: where that is another
// layer's output, through the ReLU between them into the buffer of that layer's gradients, with its sums; else into dx.
template <typename T, int n>
struct InputGradient {
    T* to;
    const T* kept;     // of the layer before; null: there is none
    const T* passing;  // the gradient of the channels that pass, next to these in dx
    int64_t pixel, passing_pixel;
    int channel, there;
    bool relu, adds, aligned;
    ColumnCoefficients of;  // of the layer before
    int column;             // of the first channel among these
    Sums<n> sums;

    // Channels `first_channel + column` onwards. All threads of the block fill `of` from first_channel on, and the
    // caller synchronises before anything is taken.
    __device__ __forceinline__ InputGradient(const ChoiceBlock& block, const Branch& branch, Stage stage,
                                             const BackwardMemory<T>& memory, int first_channel, int column,
                                             ColumnCoefficients of)
        : channel(first_channel + column), there(layer_of(branch, stage).inputs - channel), of(of), column(column) {
        const int channels = layer_of(branch, stage).inputs;
        const bool first = stage.index == 0;
        const ConvNorm& before = layer_of(branch, {stage.proj, first ? 0 : stage.index - 1});
        to = first ? static_cast<T*>(block.dx) : memory.behind(stage.index - 1);
        pixel = first ? block.channels : channels;
        kept = first ? nullptr : static_cast<const T*>(block.kept) + before.kept;
        passing = first && block.passes ? static_cast<const T*>(block.dy) : nullptr;
        passing_pixel = block.dy_pixel;
        relu = before.kernel == 1;
        adds = first && stage.proj;
        const uintptr_t addresses =
            reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(kept) | reinterpret_cast<uintptr_t>(passing);
        aligned = (pixel | (passing ? passing_pixel : 0)) % n == 0 && addresses % 16 == 0;
        if (!first) of.fill(block, before, first_channel);
    }

    __device__ __forceinline__ void take(int64_t number, float (&value)[n]) {
        if (passing) return store_between(number, value);
        T* const at = to + number * pixel + channel;
        if (kept) {
            float z[n];
            load_channels(kept + number * pixel + channel, there, aligned, z);
#pragma unroll
            for (int i = 0; i < n; ++i) {
                if (i >= there) continue;
                const Coefficients k = of[column + i];
                const float centred = z[i] - k.mean;
                if (relu && !(fmaf(centred, k.scale, k.beta) > 0.0f)) value[i] = 0.0f;
                value[i] = to_float(from_float<T>(value[i]));  // as it will be read
                sums.first[i] += value[i];
                sums.second[i] = fmaf(value[i], centred * k.inverse_deviation, sums.second[i]);
            }
        } else if (adds) {
            float other[n];
            load_channels(at, there, aligned, other);
#pragma unroll
            for (int i = 0; i < n; ++i) value[i] += other[i];
        }
        if constexpr (n == 1)
            *at = from_float<T>(value[0]);
        else
            store_some(at, there, aligned, value);
    }

  private:
    // Odd channels of dx, with the even ones between.
    __device__ __forceinline__ void store_between(int64_t number, const float (&value)[n]) const {
        T* const at = to + number * pixel + 2 * channel;
        float even[n];
        load_channels(passing + number * passing_pixel + channel, there, aligned, even);
        if constexpr (n > 1) {
            if (aligned && there >= n) {
                float both[2][n];
#pragma unroll
                for (int i = 0; i < 2 * n; ++i) both[i / n][i % n] = i % 2 ? value[i / 2] : even[i / 2];
                store_vector(at, both[0]);
                store_vector(at + n, both[1]);
                return;
            }
        }
#pragma unroll
        for (int i = 0; i < n; ++i) {
            if (i >= there) continue;
            at[2 * i] = from_float<T>(even[i]);
            at[2 * i + 1] = from_float<T>(value[i]);
        }
    }
};

}  // namespace spos::cuda
