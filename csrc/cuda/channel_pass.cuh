// One pass over tensors whose channels each have coefficients of their own, with a sum or a maximum for every channel
// if the pass is asked for one. Elementwise otherwise: every element is read once and written once.
//
// Shapes    `outer` times `channels` times `inner` adjacent elements; all tensors of a pass lie alike in memory.
// Method    Who works on what is chosen so that no thread looks for an element's channel:
//           runs     (a single channel, or inner from 128 on) A block has a part of one channel, and its coefficients
//                    are the same for all threads. Warps take pieces of up to 128 vectors, one division each. The
//                    vectors are memory's: a run may begin and end inside of one, and a few lanes take those elements.
//           columns  (short runs, or channels side by side) Memory is seen as rows of several periods of all channels,
//                    whole vectors long. A thread keeps its column of vectors, and so its coefficients in registers,
//                    while it goes down the rows. Neighbouring threads have neighbouring vectors, from row to row too.
//           A thread has two vectors of 16 bytes on their way at a time, of either input.
// Sums      In fp32 over at most 512 terms in a thread, then in a fixed order over the block. If that is not all of a
//           channel, blocks leave partial results, which a second kernel adds up in fp64. No counter, hence no memory
//           that has to be zero before: the last block to finish would save a launch and need another one for that.
//
// An Op has
//     Element, x, dy                     the type in memory, the inputs; dy where `inputs` is 2 and not 1
//     Coefficients, coefficients(channel)
//     visit(coefficients, x, dy, sum)    an element's result; adds to the sum
//     store(at, results, aligned), store_one(at, result)
//     Reduction, result, factor          Sum, Largest or None; [channels] floats, or null for no sums; theirs
#pragma once

#include <algorithm>
#include <numeric>

#include "cuda/elements.cuh"

namespace spos::cuda {

constexpr int pass_threads = 256, pass_warps = pass_threads / 32;
constexpr int pass_batch = 2;  // vectors that a thread loads of either input before it uses the first

struct Sum {
    using Total = double;
    __device__ static float add(float a, float b) { return a + b; }
    __device__ static double add(double a, float b) { return a + static_cast<double>(b); }
    __device__ static double add(double a, double b) { return a + b; }
    __device__ static float finish(double total, double factor) { return static_cast<float>(total * factor); }
};

// Of magnitudes. NaN is the largest.
struct Largest {
    using Total = float;
    __device__ static float add(float a, float b) {
        return __uint_as_float(max(__float_as_uint(a), __float_as_uint(b)));
    }
};

struct None {};

// How a tensor is cut, by its shape, its type and the kind of pass alone: the same order of additions on every device.
struct PassPlan {
    bool by_columns, aligned = true;
    unsigned blocks;
    int64_t size, channels, inner;
    // runs
    unsigned parts, pieces, pieces_of_part, splits;  // blocks of a channel; pieces of a channel, a block, a run
    int lane_vectors;                                // of a piece
    // columns
    unsigned chunks, chunk_vectors;  // of a row, for blocks side by side
    int64_t row_vectors, rows, rows_of_group, periods;

    PassPlan(int64_t outer, int64_t channels, int64_t inner, int vector, bool reduces);
    // Partial results: [partial_rows][channels][partial_run].
    int64_t partial_rows() const { return by_columns ? blocks / chunks * periods : 1; }
    int64_t partial_run() const { return by_columns ? inner : parts; }
    bool needs_second_kernel() const { return by_columns || parts > 1; }
    int64_t partials(int vector) const {
        return by_columns ? blocks / chunks * row_vectors * vector : channels * parts;
    }
};

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline PassPlan::PassPlan(int64_t outer, int64_t channels, int64_t inner, int vector, bool reduces)
    : size(outer * channels * inner), channels(channels), inner(inner) {
    constexpr int64_t shortest_run = 128;
    constexpr int64_t enough_threads = 1 << 17;  // to keep the memory of a large GPU busy
    constexpr int64_t most_vectors = 4;          // of a thread, or of a lane in a piece
    constexpr int64_t longest_sum = 512;         // terms that are added in fp32 one after another
    const int64_t vectors_of_thread = divide_up(size, vector * enough_threads);
    by_columns = channels > 1 && inner < shortest_run && channels * inner < int64_t{1} << 28;
    if (!by_columns) {
        const int64_t run = channels == 1 ? size : inner, runs = size / run / channels;
        const int64_t vectors = std::max<int64_t>(run / vector, 1);
        this->inner = run;
        lane_vectors = static_cast<int>(std::min<int64_t>({vectors_of_thread, most_vectors, divide_up(vectors, 32)}));
        splits = static_cast<unsigned>(divide_up(vectors, 32 * lane_vectors));
        pieces = static_cast<unsigned>(runs * splits);
        int64_t share = pass_warps;
        if (reduces) {
            const int64_t wanted_parts = divide_up(enough_threads / pass_threads, channels);
            const int64_t most = pass_warps * longest_sum / lane_vectors;
            const int64_t worth_a_block = pass_warps * divide_up(8, lane_vectors);
            share = std::min(std::max<int64_t>(divide_up(pieces, wanted_parts), worth_a_block), most);
        }
        pieces_of_part = static_cast<unsigned>(share);
        parts = static_cast<unsigned>(divide_up(pieces, share));
        blocks = static_cast<unsigned>(channels) * parts;
        return;
    }
    const int64_t period = channels * inner;
    periods = vector / std::gcd<int64_t>(vector, period);
    periods *= divide_up(32, periods * period / vector);  // a warp's accesses are adjacent
    periods = std::min(periods, outer);
    row_vectors = divide_up(periods * period, vector);  // not whole only if there is one row
    rows = divide_up(divide_up(size, vector), row_vectors);
    chunks = static_cast<unsigned>(divide_up(row_vectors, pass_threads));
    chunk_vectors = static_cast<unsigned>(divide_up(row_vectors, chunks));
    const int64_t rows_at_once = pass_threads / chunk_vectors;
    const int64_t rows_of_thread =
        std::clamp<int64_t>(vectors_of_thread, reduces ? most_vectors : 1, reduces ? longest_sum : most_vectors);
    rows_of_group = rows_at_once * rows_of_thread;
    blocks = chunks * static_cast<unsigned>(divide_up(rows, rows_of_group));
}

// The same coefficients for all elements of a vector, or for each its own.
template <class Coefficients>
struct OneForAll {
    Coefficients value;
    __device__ __forceinline__ const Coefficients& operator[](int) const { return value; }
};
template <class Coefficients, int vector>
struct OneForEach {
    Coefficients values[vector];
    __device__ __forceinline__ const Coefficients& operator[](int i) const { return values[i]; }
};

// Up to `batch` vectors, `step` elements apart.
template <int batch, typename T>
__device__ __forceinline__ void load_batch(const T* from, int64_t step, int count, bool aligned, uint4 (&to)[batch]) {
    if (aligned) {
#pragma unroll
        for (int u = 0; u < batch; ++u)
            if (u < count) to[u] = *reinterpret_cast<const uint4*>(from + u * step);
    } else {
#pragma unroll
        for (int u = 0; u < batch; ++u)
            if (u < count) to[u] = load_unaligned(from + u * step);
    }
}

// `count` vectors from element `at` on, `step` elements apart. Those of a batch are all on their way before the first
// is used.
template <class Op, class Coefficients, int vector>
__device__ __forceinline__ void visit_vectors(const Op& op, bool aligned, const Coefficients& k, int64_t at,
                                              int64_t step, int count, float (&sums)[vector]) {
    using T = typename Op::Element;
    constexpr int batch = pass_batch;
#pragma unroll 1
    for (; count > 0; count -= batch, at += batch * step) {
        uint4 x[batch], dy[batch];
        load_batch(op.x + at, step, count, aligned, x);
        if constexpr (Op::inputs == 2) load_batch(op.dy + at, step, count, aligned, dy);
#pragma unroll
        for (int u = 0; u < batch; ++u) {
            if (u >= count) break;
            float values[vector], gradients[vector] = {}, results[vector];
            unpack<T>(x[u], values);
            if constexpr (Op::inputs == 2) unpack<T>(dy[u], gradients);
#pragma unroll
            for (int i = 0; i < vector; ++i) results[i] = op.visit(k[i], values[i], gradients[i], sums[i]);
            op.store(at + u * step, results, aligned);
        }
    }
}

template <class Op>
__device__ __forceinline__ void visit_one(const Op& op, const typename Op::Coefficients& k, int64_t at, float& sum) {
    float gradient = 0;
    if constexpr (Op::inputs == 2) gradient = to_float(op.dy[at]);
    op.store_one(at, op.visit(k, to_float(op.x[at]), gradient, sum));
}

// Adds up a value of each thread; thread 0 has the result.
template <class Reduction>
__device__ __forceinline__ float block_total(float value) {
    SHARED_ARRAY(float, of_warp, [pass_warps]);
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2)
        value = Reduction::add(value, __shfl_xor_sync(0xffffffffu, value, lanes));
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x == 0)
        for (int warp = 1; warp < pass_warps; ++warp) value = Reduction::add(value, of_warp[warp]);
    return value;
}

template <class Op>
__global__ void __launch_bounds__(pass_threads, 3) runs_kernel(Op op, PassPlan plan, float* partials) {
    using Reduction = typename Op::Reduction;
    constexpr int vector = vector_of<typename Op::Element>;
    const unsigned lane = threadIdx.x % 32, channel = blockIdx.x / plan.parts, part = blockIdx.x % plan.parts;
    const OneForAll<typename Op::Coefficients> k{op.coefficients(channel)};
    float sums[vector] = {};
    const unsigned first = part * plan.pieces_of_part, end = first + min(plan.pieces_of_part, plan.pieces - first);
    for (unsigned piece = first + threadIdx.x / 32; piece < end; piece += pass_warps) {
        const unsigned run = piece / plan.splits, split = piece % plan.splits;
        const int64_t run_begin = (run * plan.channels + channel) * plan.inner, run_end = run_begin + plan.inner;
        const int64_t whole_begin = (run_begin + vector - 1) / vector * vector, whole_end = run_end / vector * vector;
        // Of the piece's vectors this lane has every 32nd.
        const int64_t begin = whole_begin + (int64_t{split} * 32 * plan.lane_vectors + lane) * vector;
        const int left = static_cast<int>((whole_end - begin + 31 * vector) / (32 * vector));
        visit_vectors(op, plan.aligned, k, begin, 32 * vector, min(left, plan.lane_vectors), sums);
        if (split == 0 && lane < whole_begin - run_begin) visit_one(op, k[0], run_begin + lane, sums[0]);
        if (split == plan.splits - 1 && lane < run_end - whole_end) visit_one(op, k[0], whole_end + lane, sums[0]);
    }
    if constexpr (!std::is_same_v<Reduction, None>) {
        if (!op.result) return;
        float sum = sums[0];
#pragma unroll
        for (int i = 1; i < vector; ++i) sum = Reduction::add(sum, sums[i]);
        sum = block_total<Reduction>(sum);
        if (threadIdx.x > 0) return;
        if (plan.parts == 1)
            op.result[channel] = Reduction::finish(sum, op.factor);
        else
            partials[blockIdx.x] = sum;
    }
}

template <class Op>
__global__ void __launch_bounds__(pass_threads, Op::inputs == 2 ? 2 : 3)
    columns_kernel(Op op, PassPlan plan, float* partials) {
    using Reduction = typename Op::Reduction;
    constexpr int vector = vector_of<typename Op::Element>;
    const unsigned chunk = blockIdx.x % plan.chunks, group = blockIdx.x / plan.chunks;
    const unsigned rows_at_once = pass_threads / plan.chunk_vectors, row_of_thread = threadIdx.x / plan.chunk_vectors;
    const unsigned column = chunk * plan.chunk_vectors + threadIdx.x % plan.chunk_vectors;
    float sums[vector] = {};
    if (row_of_thread < rows_at_once && column < plan.row_vectors) {
        OneForEach<typename Op::Coefficients, vector> k;
        const unsigned channels = static_cast<unsigned>(plan.channels), inner = static_cast<unsigned>(plan.inner);
        const unsigned place = column * vector % (channels * inner);
        unsigned channel = place / inner, in_run = place % inner;
#pragma unroll
        for (int i = 0; i < vector; ++i) {
            k.values[i] = op.coefficients(channel);
            if (++in_run == inner) in_run = 0, channel = channel + 1 == channels ? 0 : channel + 1;
        }
        const int64_t first = group * plan.rows_of_group, row = first + row_of_thread;
        const int64_t vectors = plan.size / vector, last_row = plan.rows - 1;  // whole ones
        const int64_t in_last_row = last_row * plan.row_vectors + column;
        const int64_t column_end = in_last_row < vectors ? plan.rows : last_row;
        const int64_t end = first + plan.rows_of_group < column_end ? first + plan.rows_of_group : column_end;
        // A row behind the end is so by less than rows_at_once.
        const int count = static_cast<int>(static_cast<unsigned>(end - row + rows_at_once - 1) / rows_at_once);
        visit_vectors(op, plan.aligned, k, (row * plan.row_vectors + column) * vector,
                      rows_at_once * plan.row_vectors * vector, count, sums);
        // The elements behind the last whole vector.
        const int64_t rows_before = last_row - first;
        if (in_last_row == vectors && rows_before >= 0 && rows_before < plan.rows_of_group &&
            static_cast<unsigned>(rows_before) % rows_at_once == row_of_thread)
#pragma unroll
            for (int i = 0; i < vector - 1; ++i)
                if (vectors * vector + i < plan.size) visit_one(op, k[i], vectors * vector + i, sums[i]);
    }
    if constexpr (!std::is_same_v<Reduction, None>) {
        if (!op.result) return;
        // Rows of the block's threads: a sum for every column.
        SHARED_ARRAY(float4, tile, [pass_threads * vector / 4]);
#pragma unroll
        for (int i = 0; i < vector / 4; ++i)
            tile[threadIdx.x * (vector / 4) + i] =
                make_float4(sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]);
        __syncthreads();
        const float* const terms = reinterpret_cast<const float*>(tile);
        const unsigned begin = chunk * plan.chunk_vectors, row = plan.chunk_vectors * vector;
        const unsigned width = min(plan.chunk_vectors, static_cast<unsigned>(plan.row_vectors) - begin) * vector;
        float* const to = partials + (group * plan.row_vectors + begin) * vector;
        for (unsigned i = threadIdx.x; i < width; i += pass_threads) {
            float sum = terms[i];
            for (unsigned r = 1; r < rows_at_once; ++r) sum = Reduction::add(sum, terms[r * row + i]);
            to[i] = sum;
        }
    }
}

// Partial results, [rows][channels][run], to one for each channel. A block has 256 / across threads for each of
// `across` channels: 8 where channels are side by side, so that whole sectors are read.
template <class Reduction>
__global__ void __launch_bounds__(pass_threads)
    finish_kernel(const float* partials, unsigned rows, int64_t channels, unsigned run, unsigned across, double factor,
                  float* result) {
    using Total = typename Reduction::Total;
    SHARED_ARRAY(Total, totals, [pass_threads]);
    const int64_t channel = int64_t{blockIdx.x} * across + threadIdx.x % across;
    Total total = 0;
    if (channel < channels)
        for (unsigned i = threadIdx.x / across; i < rows * run; i += pass_threads / across)
            total = Reduction::add(total, partials[(i / run * channels + channel) * run + i % run]);
    totals[threadIdx.x] = total;
    for (unsigned half = pass_threads / 2; half >= across; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) totals[threadIdx.x] = Reduction::add(totals[threadIdx.x], totals[threadIdx.x + half]);
    }
    if (threadIdx.x < across && channel < channels) result[channel] = Reduction::finish(totals[threadIdx.x], factor);
}

// Starts the pass, and a second kernel where sums need one.
template <class Op>
int run_pass(const Op& op, const PassPlan& plan, float* partials, cudaStream_t stream) {
    using Reduction = typename Op::Reduction;
    const cudaError_t error = device::launch(plan.by_columns ? columns_kernel<Op> : runs_kernel<Op>, dim3(plan.blocks),
                                             dim3(pass_threads), 0, stream, op, plan, partials);
    if constexpr (!std::is_same_v<Reduction, None>) {
        if (error == cudaSuccess && op.result && plan.needs_second_kernel()) {
            const unsigned across = plan.by_columns ? 8 : 1;
            return device::launch(finish_kernel<Reduction>,
                                  dim3(static_cast<unsigned>(divide_up(plan.channels, across))), dim3(pass_threads), 0,
                                  stream, partials, plan.partial_rows(), plan.channels, plan.partial_run(), across,
                                  op.factor, op.result);
        }
    }
    return error;
}

}  // namespace spos::cuda
