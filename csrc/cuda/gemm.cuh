// One block's tile of a matrix product c = a * b, 64 x 64 elements, with operands that functors load.
//
// Shapes    a (rows, k), b (k, columns); sums in fp32. Of a tile 128 threads make 64 x 64 sums, in steps of 64 bytes
//           of k (16 elements of fp32, 32 of fp16 and bf16).
// Method    Two buffers in shared memory. While one is multiplied, the next step's vectors are on their way to
//           registers: not by cp.async, because loaders transform what they load (normalisation, ReLU, index maps).
//           fp32: FFMA, 8 x 4 sums a thread, three 16-byte shared loads for 32 FFMA. tf32, fp16, bf16: mma.sync,
//           32 x 32 sums a warp, fragments by ldmatrix.
// Bytes     Each step reads 64 * 64 bytes of either operand for 64 * 64 products of 64 bytes' worth of k: 16 (fp32) or
//           32 (16-bit) multiply-adds a byte. L2 serves what several blocks read.
// Result    The sums go through shared memory, so that whoever takes them (statistics, index maps, 16-byte stores) has
//           whole rows, whatever fragments an instruction leaves.
//
// A loader is a struct with
//     static constexpr bool k_major       are neighbours in k neighbours in memory?
//     Place place(int outer) const        what follows from the row of a or the column of b: taken once a tile
//     uint4 load(const Place&, int k) const
// `load` returns 16 bytes of elements: k_major: (outer, k), (outer, k + 1) ...; else: (outer, k), (outer + 1, k) ...
// with zeros for whatever is not there, rows, columns and k alike.
#pragma once

#include "cuda/elements.cuh"

namespace spos::cuda {

enum class Math { ffma, tf32, f16, bf16 };

template <Math math>
struct MathElement {
    using Type = float;
};
template <>
struct MathElement<Math::f16> {
    using Type = __half;
};
template <>
struct MathElement<Math::bf16> {
    using Type = __nv_bfloat16;
};

struct GemmTile {
    static constexpr int threads = 128, rows = 64, columns = 64;
    static constexpr int step_bytes = 64;                          // of k
    static constexpr int operand_vectors = 64 * step_bytes / 16;   // of one operand in one step
    static constexpr int slots = operand_vectors / threads;        // vectors a thread loads of it
    static constexpr int result_stride = columns + 4;              // rows of the result start in different banks
    static constexpr int shared_bytes = rows * result_stride * 4;  // more than the four operand buffers
    static_assert(4 * operand_vectors * 16 <= shared_bytes, "the result takes the place of the buffers");
};

// Where a vector of an operand lies in its buffer, in units of 16 bytes (mma) or elements (FFMA).
//
// FFMA reads four neighbours of one k: rows of k, 64 elements each. Loaders along k write four of them at once; groups
// of four elements are exchanged by an exclusive or with k, so that the lanes of a store meet different banks.
__device__ __forceinline__ int ffma_place(int outer, int k) {
    return k * 64 + ((outer / 4 ^ k / 4 * 2) * 4) + outer % 4;
}
// mma.sync, k_major: rows of 64 bytes, four chunks of 16 bytes; eight rows of a matrix lie in different banks.
__device__ __forceinline__ int row_chunk(int outer, int chunk) { return outer * 4 + (chunk ^ outer / 2 % 4); }
// mma.sync, 16-bit, not k_major: rows of one k, eight chunks of 8 elements, read by ldmatrix.trans.
__device__ __forceinline__ int k_chunk(int k, int chunk) { return k * 8 + (chunk ^ k % 8); }

__device__ __forceinline__ uint4 rounded_to_tf32(uint4 value) {
    return make_uint4(ptx::to_tf32(__uint_as_float(value.x)), ptx::to_tf32(__uint_as_float(value.y)),
                      ptx::to_tf32(__uint_as_float(value.z)), ptx::to_tf32(__uint_as_float(value.w)));
}

// One operand's way from memory to shared memory.
template <Math math, typename Loader>
struct GemmOperand {
    static constexpr int vector = math == Math::f16 || math == Math::bf16 ? 8 : 4;  // elements
    static constexpr int k_step = GemmTile::step_bytes / (16 / vector);
    static constexpr int vectors_across = Loader::k_major ? 4 : 64 / vector;  // in a row of the buffer

    const Loader& loader;
    typename Loader::Place place[GemmTile::slots];
    uint4 staged[GemmTile::slots];

    __device__ __forceinline__ GemmOperand(const Loader& loader, int first, int thread) : loader(loader) {
#pragma unroll
        for (int i = 0; i < GemmTile::slots; ++i) place[i] = loader.place(first + outer(thread, i));
    }
    __device__ __forceinline__ static int outer(int thread, int i) {
        const int slot = thread + i * GemmTile::threads;
        return Loader::k_major ? slot / vectors_across : slot % vectors_across * vector;
    }
    __device__ __forceinline__ static int k_of(int thread, int i) {
        const int slot = thread + i * GemmTile::threads;
        return Loader::k_major ? slot % vectors_across * vector : slot / vectors_across;
    }

    __device__ __forceinline__ void fetch(int k, int thread) {
#pragma unroll
        for (int i = 0; i < GemmTile::slots; ++i) staged[i] = loader.load(place[i], k + k_of(thread, i));
    }

    __device__ __forceinline__ void keep(uint4* buffer, int thread) const {
#pragma unroll
        for (int i = 0; i < GemmTile::slots; ++i) {
            const int row = outer(thread, i), k = k_of(thread, i);
            if constexpr (math == Math::ffma) {
                float* const floats = reinterpret_cast<float*>(buffer);
                if constexpr (Loader::k_major) {
                    floats[ffma_place(row, k)] = __uint_as_float(staged[i].x);
                    floats[ffma_place(row, k + 1)] = __uint_as_float(staged[i].y);
                    floats[ffma_place(row, k + 2)] = __uint_as_float(staged[i].z);
                    floats[ffma_place(row, k + 3)] = __uint_as_float(staged[i].w);
                } else {
                    buffer[ffma_place(row, k) / 4] = staged[i];
                }
            } else if constexpr (math == Math::tf32) {
                const uint4 value = rounded_to_tf32(staged[i]);
                if constexpr (Loader::k_major) {
                    buffer[row_chunk(row, k / 4)] = value;
                } else {
                    uint32_t* const words = reinterpret_cast<uint32_t*>(buffer);
                    words[row_chunk(row, k / 4) * 4 + k % 4] = value.x;
                    words[row_chunk(row + 1, k / 4) * 4 + k % 4] = value.y;
                    words[row_chunk(row + 2, k / 4) * 4 + k % 4] = value.z;
                    words[row_chunk(row + 3, k / 4) * 4 + k % 4] = value.w;
                }
            } else {
                buffer[Loader::k_major ? row_chunk(row, k / 8) : k_chunk(k, row / 8)] = staged[i];
            }
        }
    }
};

// 8 x 4 sums of thread (thread / 16, thread % 16).
struct FfmaSums {
    float sum[8][4] = {};

    template <bool, bool>
    __device__ __forceinline__ void multiply(const uint4* a, const uint4* b, int thread) {
        const int row = thread / 16 * 8, column = thread % 16 * 4;
#pragma unroll 4  // the loads of four steps are on their way at a time: more would take the registers of the sums
        for (int k = 0; k < 16; ++k) {
            const float4 low = reinterpret_cast<const float4*>(a)[ffma_place(row, k) / 4];
            const float4 high = reinterpret_cast<const float4*>(a)[ffma_place(row + 4, k) / 4];
            const float4 right = reinterpret_cast<const float4*>(b)[ffma_place(column, k) / 4];
            const float left[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                sum[i][0] = fmaf(left[i], right.x, sum[i][0]);
                sum[i][1] = fmaf(left[i], right.y, sum[i][1]);
                sum[i][2] = fmaf(left[i], right.z, sum[i][2]);
                sum[i][3] = fmaf(left[i], right.w, sum[i][3]);
            }
        }
    }

    __device__ __forceinline__ void write(float* result, int thread) const {
        const int row = thread / 16 * 8, column = thread % 16 * 4;
#pragma unroll
        for (int i = 0; i < 8; ++i)
            *reinterpret_cast<float4*>(result + (row + i) * GemmTile::result_stride + column) =
                make_float4(sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
    }
};

// 32 x 32 sums of warp (warp / 2, warp % 2), as two by four fragments of 16 x 8.
template <Math math>
struct MmaSums {
    float sum[2][4][4] = {};

    template <bool a_k_major, bool b_k_major>
    __device__ __forceinline__ void multiply(const uint4* a, const uint4* b, int thread) {
        const int lane = thread % 32, warp = thread / 32;
        const int row = warp / 2 * 32, column = warp % 2 * 32;
        // An instruction takes 32 bytes of k. tf32 is kept k_major always.
#pragma unroll
        for (int part = 0; part < 2; ++part) {
            uint32_t left[2][4], right[4][2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int first = row + 16 * i;
                if constexpr (a_k_major || math == Math::tf32)
                    ptx::ldmatrix(left[i], a + row_chunk(first + lane % 16, 2 * part + lane / 16));
                else  // matrices: k 0-7 and rows 0-7; rows 8-15; k 8-15 and rows 0-7; rows 8-15
                    ptx::ldmatrix_trans(left[i],
                                        a + k_chunk(16 * part + lane / 16 * 8 + lane % 8, first / 8 + lane / 8 % 2));
            }
#pragma unroll
            for (int j = 0; j < 4; j += 2) {
                uint32_t both[4];
                const int first = column + 8 * j;
                if constexpr (b_k_major || math == Math::tf32)
                    ptx::ldmatrix(both, b + row_chunk(first + lane / 16 * 8 + lane % 8, 2 * part + lane / 8 % 2));
                else
                    ptx::ldmatrix_trans(both, b + k_chunk(16 * part + lane % 16, first / 8 + lane / 16));
                right[j][0] = both[0], right[j][1] = both[1];
                right[j + 1][0] = both[2], right[j + 1][1] = both[3];
            }
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    if constexpr (math == Math::tf32)
                        ptx::mma_m16n8k8_tf32(sum[i][j], left[i], right[j], sum[i][j]);
                    else if constexpr (math == Math::f16)
                        ptx::mma_m16n8k16_f16(sum[i][j], left[i], right[j], sum[i][j]);
                    else
                        ptx::mma_m16n8k16_bf16(sum[i][j], left[i], right[j], sum[i][j]);
                }
        }
    }

    __device__ __forceinline__ void write(float* result, int thread) const {
        const int lane = thread % 32, warp = thread / 32;
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const int row = warp / 2 * 32 + 16 * i + lane / 4, column = warp % 2 * 32 + 8 * j + lane % 4 * 2;
                float* const at = result + row * GemmTile::result_stride + column;
                *reinterpret_cast<float2*>(at) = make_float2(sum[i][j][0], sum[i][j][1]);
                *reinterpret_cast<float2*>(at + 8 * GemmTile::result_stride) = make_float2(sum[i][j][2], sum[i][j][3]);
            }
    }
};

template <Math math>
struct GemmSums {
    using Type = MmaSums<math>;
};
template <>
struct GemmSums<Math::ffma> {
    using Type = FfmaSums;
};

// Computes the tile from (first_row, first_column) on over k from k_begin to k_end, by all threads of the block.
// shared: GemmTile::shared_bytes, 16-byte aligned. Afterwards shared[row * result_stride + column] are the sums, and
// all threads may read them; before the next tile the caller has to synchronise.
template <Math math, typename A, typename B>
__device__ __forceinline__ void gemm_tile(const A& a_loader, const B& b_loader, int first_row, int first_column,
                                          int k_begin, int k_end, float* shared) {
    const int thread = threadIdx.x;
    uint4* const buffers = reinterpret_cast<uint4*>(shared);
    constexpr int operand = GemmTile::operand_vectors;
    GemmOperand<math, A> a(a_loader, first_row, thread);
    GemmOperand<math, B> b(b_loader, first_column, thread);
    constexpr int k_step = GemmOperand<math, A>::k_step;
    typename GemmSums<math>::Type sums;
    a.fetch(k_begin, thread);
    b.fetch(k_begin, thread);
    a.keep(buffers, thread);
    b.keep(buffers + operand, thread);
    __syncthreads();
    int current = 0;
    for (int k = k_begin; k < k_end; k += k_step) {
        const bool more = k + k_step < k_end;
        if (more) {
            a.fetch(k + k_step, thread);
            b.fetch(k + k_step, thread);
        }
        const uint4* const from = buffers + current * 2 * operand;
        sums.template multiply<A::k_major, B::k_major>(from, from + operand, thread);
        current ^= 1;
        if (more) {
            a.keep(buffers + current * 2 * operand, thread);
            b.keep(buffers + current * 2 * operand + operand, thread);
        }
        __syncthreads();
    }
    sums.write(shared, thread);
    __syncthreads();
}

}  // namespace spos::cuda
