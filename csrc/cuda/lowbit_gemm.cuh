// Convolution of codes by packed codes on tensor cores: implicit GEMM, NHWC.
//
// Shapes    Rows are pixels of the result, columns are outputs of one group, k runs over taps and channels in chunks of
//           16 bytes: 16 bytes, 32 nibbles or 128 bits; each tap starts a new chunk. A step is 4 chunks. Products that
//           need more than one sum of steps go over k in segments: a pair of bit planes each, or a group of scales.
// Method    A block of four warps computes a tile of 128 x 128 or 64 x 64, a warp a quarter of it. Codes of x come by
//           cp.async through four buffers, zeros where there is nothing; chunk j of a row of 64 bytes is stored at
//           place j ^ (row / 2 % 4), so that ldmatrix meets no bank twice. Packed weights are read to registers one
//           step ahead of where they are unpacked, that is two ahead of their use, and unpacked into the other of two
//           buffers while the current one is multiplied: one barrier a step.
// Clocks    Of a step of the large tile on an A100: tensor cores 512 (2048 multiply-adds of s8 a clock and SM), shared
//           memory 256 for ldmatrix (64 x 64 a warp: 16 rows of fragments for 32 mma) and 128 for filling both buffers.
// Bytes     x once for each column of tiles and tap (L2 serves taps and neighbours), packed weights once for each row
// of
//           tiles, results once.
// Sums      acc in 32 bits, which the caller's limit on k keeps exact. The sum of x over each row, which zeros need, is
//           made of the fragments by dp4a or popc. With bit planes, acc = 2 * acc at each lower power.
// Splits    Where tiles are too few for the GPU, several blocks share a tile's steps: each leaves its integers in the
//           workspace, the last one to finish adds them up. Integers: the same result in any order.
// Sources   PTX ISA, "Matrix Fragments for mma.m16n8k32, k64, k256"; bit-serial sums: Cowan et al. 2020 (CGO),
//           "Automatic generation of high-performance quantized machine learning kernels".
#pragma once

#include "cuda/lowbit_product.cuh"
#include "cuda/lowbit_unpack.cuh"
#include "cuda/statistics.cuh"

namespace spos::cuda {

// One block's work. scaled: each segment has scales of its own, and its sums become floats when it ends.
template <LowbitBody body, int warp_tile, bool scaled>
struct LowbitBlock {
    using Tile = LowbitTile<warp_tile>;
    using Traits = BodyTraits<body>;
    static constexpr bool segmented = scaled || body == LowbitBody::b1;
    static constexpr int rows_m = Tile::row_fragments, columns_n = Tile::column_fragments;
    using Sum = std::conditional_t<body == LowbitBody::b1, uint32_t, int32_t>;  // of codes, or of centred codes

    const LowbitProduct& p;
    uint8_t* const shared;
    const int thread, lane, number;  // number: of this thread's chunk in every step
    const int warp_row, warp_column;
    int group, first_row, first_column, first_step, last_step;

    Walk x_at, weight_at;
    uint32_t packed[Tile::slots][Traits::words];
    int packed_shift, packed_plane;
    int32_t acc[rows_m][columns_n][4] = {};
    int32_t row_sum[rows_m][2] = {};
    float y[scaled ? rows_m : 1][scaled ? columns_n : 1][4] = {};

    __device__ __forceinline__ LowbitBlock(const LowbitProduct& p, uint8_t* shared)
        : p(p),
          shared(shared),
          thread(threadIdx.x),
          lane(thread % 32),
          number(thread % 4),
          warp_row(thread / 64 * warp_tile),
          warp_column(thread / 32 % 2 * warp_tile) {
        const int tile = static_cast<int>(blockIdx.x), tiles = p.tile_rows * p.tile_columns, in_group = tile % tiles;
        group = tile / tiles;
        first_column = in_group % p.tile_columns * Tile::size;  // neighbours read the same rows of x
        first_row = in_group / p.tile_columns * Tile::size;
        first_step = static_cast<int>(int64_t{p.steps} * blockIdx.y / p.split.count);
        last_step = static_cast<int>(int64_t{p.steps} * (blockIdx.y + 1) / p.split.count);
        find_rows();
        x_at.start(0, first_step, p.x, number);
        weight_at = x_at;
    }

    // The pixels under the first taps of the tile's rows: their image's first pixel, row and column in it.
    __device__ __forceinline__ int* row_places() const {
        return reinterpret_cast<int*>(shared + (Tile::stages + 2) * Tile::operand_bytes);
    }
    __device__ __forceinline__ void find_rows() const {
        const LowbitMap& map = p.x.map;
        if (map.plain()) return;
        int* const to = row_places();
        for (int i = thread; i < Tile::size; i += Tile::threads) {
            const uint32_t pixel = static_cast<uint32_t>(min(first_row + i, p.pixels - 1));
            const uint32_t line = pixel / map.out_width, image = line / map.out_height;
            to[i] = static_cast<int>(image) * map.in_height * map.in_width;
            to[i + Tile::size] = static_cast<int>(line % map.out_height) * map.stride.height - map.padding.height;
            to[i + 2 * Tile::size] = static_cast<int>(pixel % map.out_width) * map.stride.width - map.padding.width;
        }
        __syncthreads();
    }

    // Where this thread's chunks go.
    __device__ __forceinline__ int tile_row(int slot) const { return thread / 4 + 32 * slot; }
    __device__ __forceinline__ int tile_place(int slot) const {
        return Tile::place(thread / 4, number) + 32 * 64 * slot;
    }
    __device__ __forceinline__ uint8_t* x_buffer(int stage) const { return shared + stage * Tile::operand_bytes; }
    __device__ __forceinline__ uint8_t* weight_buffer(int stage) const { return x_buffer(Tile::stages + stage); }
    __device__ __forceinline__ Planes planes(int segment) const {
        return Planes(segment, p.call.x.bits, p.call.weight.bits);
    }

    // Starts copies of this thread's chunks of x, and goes on to the next step.
    __device__ __forceinline__ void fetch_x(int stage) {
        const LowbitOperand& x = p.x;
        const LowbitMap& map = x.map;
        const bool exists = x_at.exists(x);
        int64_t in_pixel = group * x.group_bytes + 16 * x_at.chunk;
        if constexpr (body == LowbitBody::b1) in_pixel += planes(x_at.segment).x * x.segment_bytes;
        if constexpr (scaled) in_pixel += x_at.segment * x.segment_bytes;
        const int dy = x_at.tap_row * map.dilation.height, dx = x_at.tap_column * map.dilation.width;
#pragma unroll
        for (int i = 0; i < Tile::slots; ++i) {
            int pixel = first_row + tile_row(i);
            bool inside = exists && pixel < p.pixels;
            if (!map.plain()) {
                const int* const place = row_places() + tile_row(i);
                const int row = place[Tile::size] + dy, column = place[2 * Tile::size] + dx;
                inside = inside && row >= 0 && row < map.in_height && column >= 0 && column < map.in_width;
                pixel = place[0] + row * map.in_width + column;
            }
            const uint8_t* from = x.rows;
            int bytes = 0;
            if (inside)
                from += int64_t{pixel} * x.row_bytes + in_pixel, bytes = min(16, x.valid - 16 * x_at.chunk);
            else if (exists && x.outside)
                from = x.outside + in_pixel, bytes = 16;
            ptx::cp_async<16>(x_buffer(stage) + tile_place(i), from, bytes);
        }
        x_at.template advance<segmented>(first_step, last_step, x, number);
    }

    // Reads this thread's chunks of packed weights, and goes on to the next step. They are of rows 32 apart, which are
    // whole words apart: all chunks start at the same bit of a word.
    __device__ __forceinline__ void load_weight() {
        const LowbitWeight& weight = p.call.weight;
        const PackedBytes all{weight.packed, weight.packed + p.call.columns() * weight.row_bytes};
        const int tap =
            weight_at.tap_row * p.x.map.kernel.width + weight_at.tap_column + (scaled ? weight_at.segment : 0);
        const uint32_t code = static_cast<uint32_t>(tap) * static_cast<uint32_t>(p.x.codes) +
                              static_cast<uint32_t>(weight_at.chunk * Traits::codes);
        const int column = first_column + tile_row(0);
        const PackedPlace place(all.begin + (int64_t{group} * p.call.outputs + column) * weight.row_bytes,
                                code * static_cast<uint32_t>(weight.bits));
        const int count = weight_at.exists(p.x) ? place.words(Traits::codes * weight.bits) : 0;
#pragma unroll
        for (int i = 0; i < Tile::slots; ++i)
            load_packed(packed[i], all, place.first + 32 * weight.row_bytes * i,
                        column + 32 * i < p.call.outputs ? count : 0);
        packed_shift = place.shift;
        if constexpr (body == LowbitBody::b1) packed_plane = planes(weight_at.segment).weight;
        weight_at.template advance<segmented>(first_step, last_step, p.x, number);
    }

    __device__ __forceinline__ void store_weight(int stage) {
        constexpr int most = body == LowbitBody::s8 ? 8 : body == LowbitBody::s4 ? 4 : 2;
        with_bits<most>(p.call.weight.bits, [&](auto bits) {
#pragma unroll
            for (int i = 0; i < Tile::slots; ++i) {
                uint4 chunk;
                if constexpr (body == LowbitBody::b1)
                    chunk = unpack_plane<decltype(bits)::value>(packed[i], packed_shift, packed_plane);
                else
                    chunk = unpack_fields<decltype(bits)::value, 128 / Traits::codes>(packed[i], packed_shift);
                *reinterpret_cast<uint4*>(weight_buffer(stage) + tile_place(i)) = chunk;
            }
        });
    }

    // A step's products of this warp's quarter of the tile.
    __device__ __forceinline__ void multiply(const uint8_t* x, const uint8_t* weight, bool count_x) {
#pragma unroll
        for (int part = 0; part < 2; ++part) {
            const uint8_t* const from_x = x + Tile::place(warp_row + lane % 16, 2 * part + lane / 16);
            const uint8_t* const from_weight =
                weight + Tile::place(warp_column + lane / 16 * 8 + lane % 8, 2 * part + lane / 8 % 2);
            uint32_t right[columns_n][2];
#pragma unroll
            for (int j = 0; j < columns_n; j += 2) {
                uint32_t both[4];
                ptx::ldmatrix(both, from_weight + 8 * 64 * j);
                right[j][0] = both[0], right[j][1] = both[1];
                right[j + 1][0] = both[2], right[j + 1][1] = both[3];
            }
#pragma unroll
            for (int i = 0; i < rows_m; ++i) {
                uint32_t left[4];
                ptx::ldmatrix(left, from_x + 16 * 64 * i);
                if (count_x) {
#pragma unroll
                    for (int r = 0; r < 4; ++r) row_sum[i][r % 2] = add_codes<body>(row_sum[i][r % 2], left[r]);
                }
#pragma unroll
                for (int j = 0; j < columns_n; ++j) multiply_add<body>(acc[i][j], left, right[j]);
            }
        }
    }

    // Of this thread's rows: lanes of four have a quarter each.
    __device__ __forceinline__ void complete_row_sums() {
#pragma unroll
        for (int i = 0; i < rows_m; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                row_sum[i][h] += __shfl_xor_sync(~0u, row_sum[i][h], 1);
                row_sum[i][h] += __shfl_xor_sync(~0u, row_sum[i][h], 2);
            }
    }

    // y += float(S) * multiplier, and sums start again.
    __device__ __forceinline__ void add_scaled(int segment) {
        if (p.row_sums) complete_row_sums();
#pragma unroll
        for (int j = 0; j < columns_n; ++j)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                const int column = first_column + warp_column + 8 * j + lane % 4 * 2 + c;
                if (column >= p.call.outputs) continue;
                const ColumnTerms terms = terms_of(segment, column);
#pragma unroll
                for (int i = 0; i < rows_m; ++i)
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        const int64_t sum =
                            exact_sum(p.call, p.finish.wide, acc[i][j][2 * h + c], row_sum[i][h], terms);
                        const float value = scaled_sum(p.finish.wide, sum, terms.multiplier);
                        float& to = y[i][j][2 * h + c];
                        to = segment ? __fadd_rn(to, value) : value;
                    }
            }
        clear();
    }
    __device__ __forceinline__ ColumnTerms terms_of(int scale_group, int column) const {
        const int half = body == LowbitBody::b1 ? 0 : 1 << (p.call.weight.bits - 1);
        const int64_t k = p.call.k() / p.call.weight.scale_groups;
        return column_terms(p.call, scale_group, int64_t{group} * p.call.outputs + column, k, half);
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < rows_m; ++i) {
            row_sum[i][0] = row_sum[i][1] = 0;
#pragma unroll
            for (int j = 0; j < columns_n; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) acc[i][j][e] = 0;
        }
    }
    __device__ __forceinline__ void twice() {
#pragma unroll
        for (int i = 0; i < rows_m; ++i) {
            row_sum[i][0] *= 2, row_sum[i][1] *= 2;
#pragma unroll
            for (int j = 0; j < columns_n; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) acc[i][j][e] *= 2;
        }
    }

    __device__ __forceinline__ void run() {
        const int steps = last_step - first_step, total = p.segments * steps;
#pragma unroll
        for (int s = 0; s < Tile::stages - 1; ++s) {
            if (s < total) fetch_x(s);
            ptx::cp_async_commit();
        }
        load_weight();
        store_weight(0);
        if (total > 1) load_weight();
        int segment = 0, left = steps;
        for (int t = 0; t < total; ++t) {
            ptx::cp_async_wait<Tile::stages - 2>();
            __syncthreads();
            if (t + Tile::stages - 1 < total) fetch_x((t + Tile::stages - 1) % Tile::stages);
            ptx::cp_async_commit();
            if (t + 1 < total) store_weight((t + 1) % 2);
            if (t + 2 < total) load_weight();
            const bool lowest = body != LowbitBody::b1 || planes(segment).weight == 0;
            multiply(x_buffer(t % Tile::stages), weight_buffer(t % 2), p.row_sums && lowest);
            if (--left > 0) continue;
            if constexpr (scaled) add_scaled(segment);
            ++segment, left = steps;
            if constexpr (body == LowbitBody::b1)
                if (segment < p.segments && planes(segment).power() < planes(segment - 1).power()) twice();
        }
        __syncthreads();
    }

    // Puts this block's integers with those of the other blocks of its tile. Returns whether it was the last of them
    // and has the whole sums.
    __device__ __forceinline__ bool join_splits() {
        const int64_t tile = blockIdx.x, count = p.split.count;
        int32_t* const own = p.split.partial + (tile * count + blockIdx.y) * Tile::partial_words + thread;
        each_integer([&](int32_t& value, int at) { own[at * Tile::threads] = value; });
        if (!is_last_block(p.split.finished + tile, static_cast<uint32_t>(count), row_places())) return false;
        for (int64_t other = 0; other < count; ++other) {
            if (other == blockIdx.y) continue;
            const int32_t* const from = p.split.partial + (tile * count + other) * Tile::partial_words + thread;
            each_integer([&](int32_t& value, int at) { value += from[at * Tile::threads]; });
        }
        return true;
    }
    template <typename Function>
    __device__ __forceinline__ void each_integer(const Function& function) {
        int at = 0;
#pragma unroll
        for (int i = 0; i < rows_m; ++i) {
            function(row_sum[i][0], at++);
            function(row_sum[i][1], at++);
#pragma unroll
            for (int j = 0; j < columns_n; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) function(acc[i][j][e], at++);
        }
    }

    // Results, 4 adjacent columns at a time: fragments go through a part of shared memory that is this warp's own.
    __device__ __forceinline__ void write() {
        if (!scaled && p.row_sums) complete_row_sums();
        uint32_t* const words = reinterpret_cast<uint32_t*>(shared) + thread / 32 * Tile::result_words;
        uint32_t* const sums = words + 16 * Tile::result_stride;
        constexpr int lanes = warp_tile / 4;  // of a row
        const int column = first_column + warp_column + lane % lanes * 4, count = p.call.outputs - column;
        const int64_t result_column = int64_t{group} * p.call.outputs + column;
        ColumnTerms terms[4] = {};
        float bias[4] = {};
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            if (c >= count) continue;
            if (!scaled) terms[c] = terms_of(0, column + c);
            if (p.finish.to.bias) bias[c] = p.finish.to.bias[result_column + c];
        }
#pragma unroll
        for (int i = 0; i < rows_m; ++i) {
            __syncwarp();
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int row = lane / 4 + 8 * h;
                if (lane % 4 == 0) sums[row] = static_cast<uint32_t>(row_sum[i][h]);
#pragma unroll
                for (int j = 0; j < columns_n; ++j) {
                    uint2 pair;
                    if constexpr (scaled)
                        pair = make_uint2(__float_as_uint(y[i][j][2 * h]), __float_as_uint(y[i][j][2 * h + 1]));
                    else
                        pair = make_uint2(static_cast<uint32_t>(acc[i][j][2 * h]),
                                          static_cast<uint32_t>(acc[i][j][2 * h + 1]));
                    *reinterpret_cast<uint2*>(words + row * Tile::result_stride + 8 * j + lane % 4 * 2) = pair;
                }
            }
            __syncwarp();
#pragma unroll
            for (int row = lane / lanes; row < 16; row += 32 / lanes) {
                const int pixel = first_row + warp_row + 16 * i + row;
                const uint4 four =
                    *reinterpret_cast<const uint4*>(words + row * Tile::result_stride + lane % lanes * 4);
                const int32_t sum = static_cast<int32_t>(sums[row]);
                if (pixel < p.pixels && count > 0)
                    write_four(int64_t{pixel} * p.call.columns() + result_column, count, four, sum, terms, bias);
            }
        }
    }
    __device__ __forceinline__ void write_four(int64_t at, int count, uint4 four, int32_t sum,
                                               const ColumnTerms (&terms)[4], const float (&bias)[4]) const {
        const uint32_t words[4] = {four.x, four.y, four.z, four.w};
        if constexpr (scaled) {
            float values[4];
#pragma unroll
            for (int c = 0; c < 4; ++c) values[c] = __uint_as_float(words[c]);
            p.finish.run(at, count, bias, values);
        } else {
            int64_t exact[4];
#pragma unroll
            for (int c = 0; c < 4; ++c)
                exact[c] = exact_sum(p.call, p.finish.wide, static_cast<Sum>(words[c]), sum, terms[c]);
            p.finish.run(at, count, exact, terms, bias);
        }
    }
};

template <LowbitBody body, int warp_tile, bool scaled>
__global__ void __launch_bounds__(128, warp_tile == 64 ? 2
                                       : scaled        ? 3
                                                       : 4) lowbit_gemm_kernel(LowbitProduct product) {
    if constexpr (has_instruction<body>()) {
        DYNAMIC_SHARED(uint8_t, shared);
        LowbitBlock<body, warp_tile, scaled> block(product, shared);
        block.run();
        if (!scaled && product.split.count > 1 && !block.join_splits()) return;
        block.write();
    }
}

template <LowbitBody body, int warp_tile, bool scaled = false>
int launch_lowbit_gemm(const LowbitProduct& product, cudaStream_t stream) {
    using Tile = LowbitTile<warp_tile>;
    const int64_t tiles = int64_t{product.tile_rows} * product.tile_columns * product.call.groups;
    if (tiles > INT32_MAX) return cudaErrorInvalidConfiguration;
    const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(product.split.count));
    return device::launch(lowbit_gemm_kernel<body, warp_tile, scaled>, grid, dim3(Tile::threads), Tile::shared_bytes,
                          stream, product);
}

}  // namespace spos::cuda
