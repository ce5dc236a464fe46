// A block for each piece of sgd.h's table.
//
// Bytes     20 an element (w and m read and written, gradient read; 12 without m), in accesses of 16 bytes, and 128 a
//           piece of 4,096 elements: bound by memory. A piece that was not chosen costs its line and the choice.
// Method    A thread has at most four accesses to each buffer, at a constant distance: along the only row, or down the
//           rows of a column. Two of them, six loads, are on their way at a time. Which elements exist is decided for
//           each access, as a width that is known at run time may end anywhere.
// Rounding  Multiply-adds are fused and written out as such: the bits do not depend on how a parameter is cut.
#include "cuda/sgd.h"

#include "cuda/elements.cuh"

namespace spos::cuda {
namespace {

struct SgdFactors {
    float rate, momentum, weight_decay;
    bool nesterov, has_momentum;

    __device__ __forceinline__ void update(float& w, float gradient, float& m) const {
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

// The elements of an access: a vector, or one.
__device__ __forceinline__ void load_elements(const float* from, float (&to)[4]) { load_vector(from, to); }
__device__ __forceinline__ void load_elements(const float* from, float (&to)[1]) { to[0] = *from; }
__device__ __forceinline__ void store_elements(float* to, const float (&from)[4]) { store_vector(to, from); }
__device__ __forceinline__ void store_elements(float* to, const float (&from)[1]) { *to = from[0]; }

// The first `rows` rows and `columns` columns of the piece, in accesses of `vector` elements.
template <int vector>
__device__ __forceinline__ void update_piece(const SgdPiece& piece, const SgdFactors& factors, int rows, int columns) {
    constexpr int together = 2;
    float* const w = piece.w;
    float* const m = piece.m;
    const float* const gradient = piece.gradient;
    const int lanes = 1 << piece.lane_bits, thread = threadIdx.x;
    const bool one_row = piece.rows == 1;
    const int next_column = one_row ? SgdPiece::threads * vector : 0,
              next_row = one_row ? 0 : SgdPiece::threads / lanes;
    int column = thread % lanes * vector, row = thread / lanes;
#pragma unroll 1
    for (int i = 0; i < SgdPiece::accesses && row < rows && column < columns; i += together) {
        int64_t at[together];
        int left[together];  // elements that exist, from the access's first
        float weights[together][vector], gradients[together][vector], momenta[together][vector] = {};
#pragma unroll
        for (int u = 0; u < together; ++u, row += next_row, column += next_column) {
            at[u] = row * piece.stride + column;
            left[u] = row < rows ? columns - column : 0;
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

__global__ void __launch_bounds__(SgdPiece::threads) sgd_kernel(const SgdPiece* pieces, const float* rates) {
    const SgdPiece& piece = pieces[blockIdx.x];
    if (piece.choice && *piece.choice != piece.chosen) return;
    const int rows = within_width(piece.rows, piece.first_row, piece.row_count, piece.row_unit);
    const int columns = within_width(piece.columns, piece.first_column, piece.column_count, piece.column_unit);
    const SgdFactors factors{rates[piece.rate], piece.momentum, piece.weight_decay, piece.nesterov != 0,
                             piece.m != nullptr};
    if (piece.vectors)
        update_piece<4>(piece, factors, rows, columns);
    else
        update_piece<1>(piece, factors, rows, columns);
}

}  // namespace

int sgd_step(const SgdPiece* pieces, int64_t count, const float* rates, void* stream) {
    if (count == 0) return cudaSuccess;
    return device::launch(sgd_kernel, dim3(static_cast<unsigned>(count)), dim3(SgdPiece::threads), 0,
                          static_cast<cudaStream_t>(stream), pieces, rates);
}

}  // namespace spos::cuda
