// Mean and variance of each column of a matrix that many blocks make parts of, and sums of columns, without atomics on
// floats: each block leaves what it has of its columns, and the last to finish puts the parts together in their order.
//
// Method    Within a thread Welford's update, so that no mean of any size cancels; parts are merged by Chan, Golub and
//           LeVeque's formula ("Updating formulae and a pairwise algorithm for computing sample variances", 1979).
#pragma once

#include "cuda/elements.cuh"

namespace spos::cuda {

// A thread's values of `n` columns.
template <int n>
struct Moments {
    float count = 0.0f, mean[n] = {}, m2[n] = {};

    __device__ __forceinline__ void add(const float (&value)[n]) {
        count += 1.0f;
        const float share = 1.0f / count;
#pragma unroll
        for (int i = 0; i < n; ++i) {
            const float distance = value[i] - mean[i];
            mean[i] = fmaf(distance, share, mean[i]);
            m2[i] = fmaf(distance, value[i] - mean[i], m2[i]);
        }
    }
};

// One part's, or one thread's, of one column.
struct Part {
    float count, mean, m2;
};

// The parts of one column: part(i) for i from `first` in steps of `step`.
template <typename Parts>
__device__ __forceinline__ Part merge_parts(int first, int step, int parts, const Parts& part) {
    Part all{0.0f, 0.0f, 0.0f};
    float sum = 0.0f;
    for (int i = first; i < parts; i += step) {
        const Part one = part(i);
        all.count += one.count;
        sum += one.count * one.mean;
        all.m2 += one.m2;
    }
    if (all.count == 0.0f) return all;
    all.mean = sum / all.count;
    for (int i = first; i < parts; i += step) {
        const Part one = part(i);
        const float distance = one.mean - all.mean;
        all.m2 = fmaf(one.count * distance, distance, all.m2);
    }
    return all;
}

// Whether this block is the last of `blocks` to come here; then it sees what the others wrote before they came, and the
// counter is zero again. All threads of the block call it; `flag` is shared.
__device__ __forceinline__ bool is_last_block(uint32_t* counter, uint32_t blocks, int* flag) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        const bool last = atomicAdd(counter, 1u) == blocks - 1;
        if (last) atomicExch(counter, 0u);
        *flag = last;
    }
    __syncthreads();
    const bool last = *flag != 0;
    if (last) __threadfence();
    return last;
}

// How the threads of a block share columns: each has `n` neighbours of the `columns`, in one of `rows` rows.
template <int n_, int rows_, int columns_>
struct ColumnThreads {
    static constexpr int n = n_, rows = rows_, columns = columns_, threads = rows * columns / n;
    static constexpr int slices = threads / columns;  // that share out the parts of a column in the end
    static_assert(slices * columns == threads);
};

// Merges what the threads have of each column, leaves it as part `part` of `parts`, and lets the last block write mean
// and biased variance. (row, column): where this thread's columns are. shared: rows * columns * 3 floats, in use by
// nobody.
template <typename Threads>
__device__ __forceinline__ void finish_moments(const Moments<Threads::n>& own, int row, int column, float* shared,
                                               float* parts, int part, int part_count, int first_channel, int channels,
                                               float* statistics, uint32_t* counter, int* flag) {
    constexpr int columns = Threads::columns;
    const int thread = static_cast<int>(threadIdx.x), mine = thread % columns, slice = thread / columns;
    const int channel = first_channel + mine;
    const auto put = [](float* to, int stride, Part value) {
        to[0] = value.count, to[stride] = value.mean, to[2 * stride] = value.m2;
    };
    const auto get = [](const float* from, int stride) { return Part{from[0], from[stride], from[2 * stride]}; };
#pragma unroll
    for (int i = 0; i < Threads::n; ++i)
        put(shared + row * 3 * columns + column + i, columns, {own.count, own.mean[i], own.m2[i]});
    __syncthreads();
    if (slice == 0 && channel < channels)
        put(parts + int64_t{part} * 3 * channels + channel, channels,
            merge_parts(0, 1, Threads::rows, [&](int i) { return get(shared + i * 3 * columns + mine, columns); }));
    if (!is_last_block(counter, static_cast<uint32_t>(part_count), flag)) return;
    if (channel < channels)
        put(shared + slice * 3 * columns + mine, columns, merge_parts(slice, Threads::slices, part_count, [&](int i) {
                return get(parts + int64_t{i} * 3 * channels + channel, channels);
            }));
    __syncthreads();
    if (slice > 0 || channel >= channels) return;
    const Part whole =
        merge_parts(0, 1, Threads::slices, [&](int i) { return get(shared + i * 3 * columns + mine, columns); });
    statistics[channel] = whole.mean;
    statistics[channels + channel] = whole.m2 / whole.count;
}

// Two sums of values of `n` columns.
template <int n>
struct Sums {
    float first[n] = {}, second[n] = {};
};

// The same for sums: take(which of the two, channel, sum) is called by the last block. shared: rows * columns * 2
// floats.
template <typename Threads, typename Take>
__device__ __forceinline__ void finish_sums(const Sums<Threads::n>& own, int row, int column, float* shared,
                                            float* parts, int part, int part_count, int first_channel, int channels,
                                            uint32_t* counter, int* flag, const Take& take) {
    constexpr int columns = Threads::columns, slices = Threads::slices / 2;
    static_assert(slices * 2 == Threads::slices, "half of the threads for either sum");
    const int thread = static_cast<int>(threadIdx.x), mine = thread % columns;
    const int which = thread / columns % 2, slice = thread / columns / 2;
    const int channel = first_channel + mine;
#pragma unroll
    for (int i = 0; i < Threads::n; ++i) {
        float* const to = shared + row * 2 * columns + column + i;
        to[0] = own.first[i], to[columns] = own.second[i];
    }
    __syncthreads();
    if (slice == 0 && channel < channels) {
        float sum = 0.0f;
        for (int i = 0; i < Threads::rows; ++i) sum += shared[(i * 2 + which) * columns + mine];
        parts[(int64_t{part} * 2 + which) * channels + channel] = sum;
    }
    if (!is_last_block(counter, static_cast<uint32_t>(part_count), flag)) return;
    float sum = 0.0f;
    if (channel < channels)
        for (int i = slice; i < part_count; i += slices) sum += parts[(int64_t{i} * 2 + which) * channels + channel];
    shared[thread] = sum;
    __syncthreads();
    if (slice > 0 || channel >= channels) return;
    for (int i = 1; i < slices; ++i) sum += shared[thread + 2 * i * columns];
    take(which, channel, sum);
}

}  // namespace spos::cuda
