// Sums whose parts several blocks left in a workspace [part][element]: added in a fixed order by a kernel of their own,
// so that every run gives the same bits.
#pragma once

#include "cuda_emulation/device.h"

namespace spos::cuda {

struct SplitSums {
    // A warp reads one part of 32 elements; eight warps, which take every eighth part, keep enough reads on their way
    // where elements are few and parts are many.
    static constexpr int elements = 32, ways = 8, threads = elements * ways;

    static unsigned blocks(int64_t size) { return static_cast<unsigned>((size + elements - 1) / elements); }
};

// Calls take(element, sum) once for each of `size` elements, by all threads of SplitSums::blocks blocks.
template <typename Take>
__device__ __forceinline__ void sum_parts(const float* partial, int parts, int64_t size, const Take& take) {
    SHARED_ARRAY(float, sums, [SplitSums::ways][SplitSums::elements]);
    const int lane = threadIdx.x % SplitSums::elements, way = threadIdx.x / SplitSums::elements;
    const int64_t element = int64_t{blockIdx.x} * SplitSums::elements + lane;
    float sum = 0.0f;
    if (element < size) {
#pragma unroll 4
        for (int part = way; part < parts; part += SplitSums::ways) sum += partial[part * size + element];
    }
    sums[way][lane] = sum;
    __syncthreads();
    if (way != 0 || element >= size) return;
    for (int other = 1; other < SplitSums::ways; ++other) sum += sums[other][lane];
    take(element, sum);
}

}  // namespace spos::cuda
