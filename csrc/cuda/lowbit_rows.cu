// Products of one row of codes, or of up to four, by packed codes: dp4a, no tiles to fill.
//
// Shapes    x [rows, k], weights [columns, k] packed. A warp computes four adjacent columns for all rows; its lanes
// have
//           16 codes each of a step of 512. Blocks of four warps share x; where columns are too few for the GPU,
//           several blocks share k.
// Method    x, quantized on the way, comes to shared memory 2048 codes at a time. Packed weights go from memory to
//           registers as aligned words, are spread to bytes there, and serve all rows before the next are loaded. Codes
//           are not centred: unsigned sums of 32 bits, which the caller's limit on k keeps exact, and a fifth sum of x
//           alone, which zeros need.
// Bytes     Packed weights once. x once a block, from L2: 16 columns' weights are 2 * w_bits bytes a code of k.
// Clocks    A warp's step: 4 * (w_bits / 2 + 1) loads, 4 * (20 to 50) operations to spread, 20 dp4a a row.
// Splits    Blocks leave their integers, the last one adds them up: the same result in any order.
#include "cuda/lowbit_bodies.cuh"
#include "cuda/lowbit_unpack.cuh"
#include "cuda/statistics.cuh"

namespace spos::cuda {
namespace {

constexpr uint32_t ones = 0x01010101u;
constexpr int tile_codes = 4 * LowbitRows::step, tile_chunks = tile_codes / LowbitRows::lane_codes;

__device__ __forceinline__ uint32_t dot(const uint4& a, const uint4& b, uint32_t sum) {
    return __dp4a(a.w, b.w, __dp4a(a.z, b.z, __dp4a(a.y, b.y, __dp4a(a.x, b.x, sum))));
}

template <int rows>
struct RowsBlock {
    static constexpr int columns = LowbitRows::warp_columns;
    const LowbitRows& p;
    uint4 (&x)[rows][tile_chunks];
    const int thread, lane, column;  // column: this warp's first
    uint32_t sums[rows][LowbitRows::warp_words] = {};

    __device__ __forceinline__ RowsBlock(const LowbitRows& p, uint4 (&x)[rows][tile_chunks])
        : p(p),
          x(x),
          thread(static_cast<int>(threadIdx.x)),
          lane(thread % 32),
          column(static_cast<int>(blockIdx.x) * LowbitRows::columns + thread / 32 * columns) {}

    // Codes `from` to `from` + tile_codes of all rows; zeros behind the last, and in rows that there are not.
    __device__ __forceinline__ void fetch_x(int64_t from) const {
        uint32_t* const to = reinterpret_cast<uint32_t*>(&x[0][0]);
#pragma unroll 1
        for (int i = thread; i < rows * tile_codes / 4; i += LowbitRows::threads) {
            const int row = i / (tile_codes / 4);
            const int64_t code = from + i % (tile_codes / 4) * 4;
            to[i] = row < p.x.rows && code < p.x.codes ? four_codes(p.x, row, 0, static_cast<int>(code)) : 0;
        }
    }

    // Products of the codes from `from` on that are in shared memory; `last` is behind this block's.
    template <int bits>
    __device__ __forceinline__ void multiply(int64_t from, int64_t last) {
        const LowbitWeight& weight = p.call.weight;
        const PackedBytes all{weight.packed, weight.packed + p.call.columns() * weight.row_bytes};
        constexpr int chunk_bits = LowbitRows::lane_codes * bits;
        for (int chunk = lane; chunk < tile_chunks && from + (chunk - lane) * LowbitRows::lane_codes < last;
             chunk += 32) {
            const int64_t code = from + chunk * LowbitRows::lane_codes;
            uint32_t packed[columns][(chunk_bits + 31) / 32 + 1];
            int shift[columns];
#pragma unroll
            for (int c = 0; c < columns; ++c) {
                const PackedPlace place(all.begin + (column + c) * weight.row_bytes,
                                        static_cast<uint32_t>(code) * static_cast<uint32_t>(bits));
                const bool exists = column + c < p.call.outputs && code < p.x.codes;
                load_packed(packed[c], all, place.first, exists ? place.words(chunk_bits) : 0);
                shift[c] = place.shift;
            }
            uint4 mine[rows];
#pragma unroll
            for (int r = 0; r < rows; ++r) {
                mine[r] = x[r][chunk];
                sums[r][columns] = dot(mine[r], make_uint4(ones, ones, ones, ones), sums[r][columns]);
            }
#pragma unroll
            for (int c = 0; c < columns; ++c) {
                const uint4 codes = unpack_bytes<bits>(packed[c], shift[c]);
#pragma unroll
                for (int r = 0; r < rows; ++r) sums[r][c] = dot(mine[r], codes, sums[r][c]);
            }
        }
    }

    __device__ __forceinline__ void run() {
        const int64_t first = int64_t{p.steps} * blockIdx.y / p.split.count * LowbitRows::step;
        const int64_t last = int64_t{p.steps} * (blockIdx.y + 1) / p.split.count * LowbitRows::step;
        for (int64_t from = first; from < last; from += tile_codes) {
            if (from > first) __syncthreads();
            fetch_x(from);
            __syncthreads();
            if (column < p.call.outputs)
                with_bits<8>(p.call.weight.bits, [&](auto bits) { multiply<decltype(bits)::value>(from, last); });
        }
    }

    // Lane r gets the warp's sums of row r.
    __device__ __forceinline__ void reduce(uint32_t (&mine)[LowbitRows::warp_words]) const {
#pragma unroll
        for (int r = 0; r < rows; ++r)
#pragma unroll
            for (int c = 0; c < LowbitRows::warp_words; ++c) {
                const uint32_t sum = __reduce_add_sync(~0u, sums[r][c]);
                if (lane == r) mine[c] = sum;
            }
    }

    // Puts them with those of the other blocks of these columns. Returns whether this is the last block.
    __device__ __forceinline__ bool join_splits(uint32_t (&mine)[LowbitRows::warp_words], int* flag) const {
        constexpr int words = rows * LowbitRows::threads / 32 * LowbitRows::warp_words;
        const int64_t first = int64_t{blockIdx.x} * p.split.count;
        int32_t* const part = p.split.partial + (thread / 32 * rows + lane) * LowbitRows::warp_words;
        if (lane < rows)
#pragma unroll
            for (int c = 0; c < LowbitRows::warp_words; ++c)
                part[(first + blockIdx.y) * words + c] = static_cast<int32_t>(mine[c]);
        if (!is_last_block(p.split.finished + blockIdx.x, static_cast<uint32_t>(p.split.count), flag)) return false;
        if (lane < rows)
            for (int other = 0; other < p.split.count; ++other)
                if (other != static_cast<int>(blockIdx.y))
#pragma unroll
                    for (int c = 0; c < LowbitRows::warp_words; ++c)
                        mine[c] += static_cast<uint32_t>(part[(first + other) * words + c]);
        return true;
    }

    __device__ __forceinline__ void write(const uint32_t (&mine)[LowbitRows::warp_words]) const {
        const int count = p.call.outputs - column;
        if (lane >= p.x.rows || count <= 0) return;
        ColumnTerms terms[4] = {};
        float bias[4] = {};
        int64_t exact[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            if (c < count) {
                terms[c] = column_terms(p.call, 0, column + c, p.call.k(), 0);
                if (p.finish.to.bias) bias[c] = p.finish.to.bias[column + c];
            }
            exact[c] = exact_sum(p.call, p.finish.wide, mine[c], static_cast<int32_t>(mine[4]), terms[c]);
        }
        p.finish.run(lane * p.call.columns() + column, count, exact, terms, bias);
    }
};

template <int rows>
__global__ void __launch_bounds__(LowbitRows::threads, 4) rows_kernel(LowbitRows product) {
    SHARED_ARRAY(uint4, x, [rows][tile_chunks]);
    SHARED_ARRAY(int, flag, [1]);
    RowsBlock<rows> block(product, x);
    block.run();
    uint32_t mine[LowbitRows::warp_words] = {};
    block.reduce(mine);
    if (product.split.count > 1 && !block.join_splits(mine, flag)) return;
    block.write(mine);
}

}  // namespace

int lowbit_rows(const LowbitRows& product, cudaStream_t stream) {
    const dim3 grid(static_cast<unsigned>((product.call.outputs + LowbitRows::columns - 1) / LowbitRows::columns),
                    static_cast<unsigned>(product.split.count));
    const auto kernel = LowbitRows::padded(product.x.rows) == 1 ? rows_kernel<1> : rows_kernel<LowbitRows::most>;
    return device::launch(kernel, grid, dim3(LowbitRows::threads), 0, stream, product);
}

}  // namespace spos::cuda
