// A block for each piece of sgd.h's table.
//
// Bytes     20 an element (w and m read and written, gradient read; 12 without m), in accesses of 16 bytes, and 128 a
//           piece of 4,096 elements: bound by memory. A piece that was not chosen costs its line and the choice.
// Method    A thread has at most four accesses to each buffer, at a constant distance: along the only row, or down the
//           rows of a column. Two of them, six loads, are on their way at a time. Which elements exist is decided for
//           each access, as a width that is known at run time may end anywhere.
// Rounding  Multiply-adds are fused and written out as such: the bits do not depend on how a parameter is cut.
// Clipping  One more pass over the gradients, 4 bytes an element, whose squares are added in fp64: a block leaves its
// sum,
//           the last to finish adds them in their order.
#include "cuda/sgd.h"

#include "cuda/elements.cuh"
#include "cuda/statistics.cuh"

namespace spos::cuda {
namespace {

struct SgdFactors {
    float rate, momentum, weight_decay, scale;
    bool nesterov, has_momentum;

    __device__ __forceinline__ void update(float& w, float gradient, float& m) const {
        gradient *= scale;
        if (weight_decay != 0.0f) gradient = fmaf(weight_decay, w, gradient);
        float step = gradient;
        if (has_momentum) {
            m = fmaf(momentum, m, gradient);
            step = nesterov ? fmaf(momentum, m, gradient) : m;
        }
        w = fmaf(-rate, step, w);
    }
};

// How many of `size` rows or columns, behind `before` others, a run-time width leaves.
__device__ __forceinline__ int within_width(int size, int64_t before, const int32_t* count, int64_t unit) {
    if (!count) return size;
    const int64_t left = *count * unit - before;
    return left < 0 ? 0 : left < size ? static_cast<int>(left) : size;
}

__device__ __forceinline__ bool is_chosen(const SgdPiece& piece) {
    return !piece.choice || *piece.choice == piece.chosen;
}

// How much of a piece there is at this run.
struct Extent {
    int rows, columns;
    __device__ __forceinline__ explicit Extent(const SgdPiece& piece)
        : rows(within_width(piece.rows, piece.first_row, piece.row_count, piece.row_unit)),
          columns(within_width(piece.columns, piece.first_column, piece.column_count, piece.column_unit)) {}
};

// Where a thread's accesses of `vector` elements are: the first, and the distance from one to the next.
template <int vector>
struct Walk {
    int row, column, next_row, next_column;
    __device__ __forceinline__ explicit Walk(const SgdPiece& piece) {
        const int lanes = 1 << piece.lane_bits, thread = threadIdx.x;
        const bool one_row = piece.rows == 1;
        row = thread / lanes, column = thread % lanes * vector;
        next_row = one_row ? 0 : SgdPiece::threads / lanes;
        next_column = one_row ? SgdPiece::threads * vector : 0;
    }
    __device__ __forceinline__ bool is_within(const Extent& extent) const {
        return row < extent.rows && column < extent.columns;
    }
    __device__ __forceinline__ void advance() { row += next_row, column += next_column; }
};

// The elements of an access: a vector, or one.
__device__ __forceinline__ void load_elements(const float* from, float (&to)[4]) { load_vector(from, to); }
__device__ __forceinline__ void load_elements(const float* from, float (&to)[1]) { to[0] = *from; }
__device__ __forceinline__ void store_elements(float* to, const float (&from)[4]) { store_vector(to, from); }
__device__ __forceinline__ void store_elements(float* to, const float (&from)[1]) { *to = from[0]; }

// In accesses of `vector` elements.
template <int vector>
__device__ __forceinline__ void update_piece(const SgdPiece& piece, const SgdFactors& factors, const Extent& extent) {
    constexpr int together = 2;
    float* const w = piece.w;
    float* const m = piece.m;
    const float* const gradient = piece.gradient;
    Walk<vector> walk(piece);
#pragma unroll 1
    for (int i = 0; i < SgdPiece::accesses && walk.is_within(extent); i += together) {
        int64_t at[together];
        int left[together];  // elements that exist, from the access's first
        float weights[together][vector], gradients[together][vector], momenta[together][vector] = {};
#pragma unroll
        for (int u = 0; u < together; ++u, walk.advance()) {
            at[u] = walk.row * piece.stride + walk.column;
            left[u] = walk.row < extent.rows ? extent.columns - walk.column : 0;
            if (left[u] < vector) continue;
            load_elements(w + at[u], weights[u]);
            load_elements(gradient + at[u], gradients[u]);
            if (factors.has_momentum) load_elements(m + at[u], momenta[u]);
        }
#pragma unroll
        for (int u = 0; u < together; ++u) {
            if (left[u] >= vector) {
#pragma unroll
                for (int j = 0; j < vector; ++j) factors.update(weights[u][j], gradients[u][j], momenta[u][j]);
                store_elements(w + at[u], weights[u]);
                if (factors.has_momentum) store_elements(m + at[u], momenta[u]);
                continue;
            }
            for (int j = 0; j < left[u]; ++j) {
                float weight = w[at[u] + j], momentum = factors.has_momentum ? m[at[u] + j] : 0.0f;
                factors.update(weight, gradient[at[u] + j], momentum);
                w[at[u] + j] = weight;
                if (factors.has_momentum) m[at[u] + j] = momentum;
            }
        }
    }
}

__global__ void __launch_bounds__(SgdPiece::threads)
    sgd_kernel(const SgdPiece* pieces, const float* rates, const float* scale) {
    const SgdPiece& piece = pieces[blockIdx.x];
    if (!is_chosen(piece)) return;
    const SgdFactors factors{rates[piece.rate],     piece.momentum,      piece.weight_decay,
                             scale ? *scale : 1.0f, piece.nesterov != 0, piece.m != nullptr};
    if (piece.vectors)
        update_piece<4>(piece, factors, Extent(piece));
    else
        update_piece<1>(piece, factors, Extent(piece));
}

// The squares of this thread's elements of a piece.
template <int vector>
__device__ __forceinline__ double squares_of(const SgdPiece& piece, const Extent& extent) {
    double sum = 0.0;
    const auto add = [&](float value) { sum = fma(static_cast<double>(value), static_cast<double>(value), sum); };
    Walk<vector> walk(piece);
#pragma unroll 1
    for (int i = 0; i < SgdPiece::accesses && walk.is_within(extent); ++i, walk.advance()) {
        const float* const at = piece.gradient + walk.row * piece.stride + walk.column;
        const int left = extent.columns - walk.column;
        float value[vector];
        if (left >= vector) {
            load_elements(at, value);
#pragma unroll
            for (int j = 0; j < vector; ++j) add(value[j]);
        } else {
            for (int j = 0; j < left; ++j) add(at[j]);
        }
    }
    return sum;
}

// The sum over the block's threads, in thread 0. shared: a number for each thread, in use by nobody.
__device__ __forceinline__ double block_sum(double value, double* shared) {
    shared[threadIdx.x] = value;
    for (int distance = SgdPiece::threads / 2; distance > 0; distance /= 2) {
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < distance) shared[threadIdx.x] += shared[threadIdx.x + distance];
    }
    return shared[threadIdx.x];
}

__global__ void __launch_bounds__(SgdPiece::threads) clip_kernel(const SgdPiece* pieces, SgdClip clip) {
    SHARED_ARRAY(double, shared, [SgdPiece::threads]);
    SHARED_ARRAY(int, flag, [1]);
    const SgdPiece& piece = pieces[blockIdx.x];
    double sum = 0.0;
    if (is_chosen(piece))
        sum = piece.vectors ? squares_of<4>(piece, Extent(piece)) : squares_of<1>(piece, Extent(piece));
    sum = block_sum(sum, shared);
    if (threadIdx.x == 0) clip.parts[blockIdx.x] = sum;
    if (!is_last_block(clip.counter, gridDim.x, flag)) return;
    sum = 0.0;
    for (unsigned i = threadIdx.x; i < gridDim.x; i += SgdPiece::threads) sum += clip.parts[i];
    sum = block_sum(sum, shared);
    if (threadIdx.x > 0) return;
    const double scale = static_cast<double>(clip.most) / (sqrt(sum) + 1e-6);
    *clip.scale = scale > 1.0 ? 1.0f : static_cast<float>(scale);
}

}  // namespace

int sgd_clip(const SgdPiece* pieces, int64_t count, const SgdClip& clip, void* stream) {
    if (count == 0) return cudaSuccess;
    return device::launch(clip_kernel, dim3(static_cast<unsigned>(count)), dim3(SgdPiece::threads), 0,
                          static_cast<cudaStream_t>(stream), pieces, clip);
}

int sgd_step(const SgdPiece* pieces, int64_t count, const float* rates, const float* scale, void* stream) {
    if (count == 0) return cudaSuccess;
    return device::launch(sgd_kernel, dim3(static_cast<unsigned>(count)), dim3(SgdPiece::threads), 0,
                          static_cast<cudaStream_t>(stream), pieces, rates, scale);
}

}  // namespace spos::cuda
