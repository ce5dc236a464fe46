// Convolutions of codes by packed codes for groups of few channels, NHWC: depthwise ones, and those whose groups would
// leave most of a tensor-core tile empty. No tiles: a thread computes four adjacent columns of one pixel after another.
//
// Shapes    Words of four codes: of four taps of a channel where groups have one input and one output, else of four
//           inputs at a tap. Weights of a block's columns are in shared memory, [words][columns], as bytes in words.
// Method    A thread reads x as a word of four adjacent channels. Depthwise, the words of four taps are transposed by 8
//           byte permutations to four channels' words; else a word serves the adjacent columns of its group. Then dp4a
//           by the weights, and by ones for the sum of x, which zeros need. Codes are not centred: unsigned sums.
// Bytes     x once a tap, from L1; packed weights once a block; results once.
// Clocks    Depthwise, of four columns and four taps: 4 loads, 8 permutations, 8 dp4a. Else, of a word and four columns
//           of a group: 1 load, 5 dp4a; with the address and the test of the tap about 8 instructions.
#include "cuda/lowbit_bodies.cuh"
#include "cuda/lowbit_unpack.cuh"

namespace spos::cuda {
namespace {

constexpr uint32_t ones = 0x01010101u;

__device__ __forceinline__ uint32_t first_bytes(int count) { return count < 4 ? (1u << 8 * count) - 1 : ~0u; }

// Word `word` of a column's weights.
template <bool depthwise>
__device__ __forceinline__ uint32_t weight_word(const LowbitConv2d& call, int64_t column, int word) {
    const LowbitWeight& weight = call.weight;
    const PackedBytes all{weight.packed, weight.packed + call.columns() * weight.row_bytes};
    const int of_tap = (call.inputs + 3) / 4, input = word % of_tap * 4;
    const int k = depthwise ? 4 * word : word / of_tap * call.inputs + input;
    const int count = min(4, depthwise ? call.map.taps() - k : call.inputs - input);
    const PackedPlace place(all.begin + column * weight.row_bytes, static_cast<uint32_t>(k * weight.bits));
    uint32_t packed[2], codes = 0;
    load_packed(packed, all, place.first, place.words(count * weight.bits));
    const uint32_t stream = __funnelshift_r(packed[0], packed[1], place.shift);
    with_bits<8>(weight.bits, [&](auto bits) { codes = spread<decltype(bits)::value, 8>(stream); });
    return codes & first_bytes(count);
}

// One thread's four columns, and what it has of the current pixel.
template <bool depthwise>
struct DirectThread {
    const LowbitDirect& p;
    const uint4* const weights;  // of word w: weights[w * p.quads]
    const int64_t column;
    const int count;  // of columns
    int64_t image;    // its first pixel
    int first_row, first_column;
    uint32_t products[4], codes[4];  // sums

    // Four adjacent channels, or `exist` of them, under a tap.
    __device__ __forceinline__ uint32_t fetch_x(int tap_row, int tap_column, int64_t channel, int exist) const {
        const LowbitMap& map = p.call.map;
        const int row = first_row + tap_row * map.dilation.height, at = first_column + tap_column * map.dilation.width;
        if (row < 0 || row >= map.in_height || at < 0 || at >= map.in_width)
            return static_cast<uint32_t>(p.call.x.zero) * ones & first_bytes(exist);
        const uint8_t* const from =
            p.call.x.codes + (image + int64_t{row} * map.in_width + at) * p.call.x.stride + channel;
        return load_upto_four(from, exist, p.whole && exist >= 4);
    }

    __device__ __forceinline__ void start(int64_t pixel) {
        const LowbitMap& map = p.call.map;
        const uint32_t line = static_cast<uint32_t>(pixel) / map.out_width;
        image = int64_t{line / map.out_height} * map.in_height * map.in_width;
        first_row = static_cast<int>(line % map.out_height) * map.stride.height - map.padding.height;
        first_column =
            static_cast<int>(static_cast<uint32_t>(pixel) % map.out_width) * map.stride.width - map.padding.width;
#pragma unroll
        for (int c = 0; c < 4; ++c) products[c] = codes[c] = 0;
    }

    __device__ __forceinline__ void add(int c, uint32_t x, uint32_t weight) {
        products[c] = __dp4a(x, weight, products[c]);
        codes[c] = __dp4a(x, ones, codes[c]);
    }

    __device__ __forceinline__ void multiply_depthwise() {
        int row = 0, at = 0;
        for (int word = 0; word < p.words; ++word) {
            uint32_t x[4];
#pragma unroll
            for (int tap = 0; tap < 4; ++tap) {
                x[tap] = row < p.call.map.kernel.height ? fetch_x(row, at, column, count) : 0;
                if (++at == p.call.map.kernel.width) at = 0, ++row;
            }
            const uint32_t low01 = __byte_perm(x[0], x[1], 0x5140), low23 = __byte_perm(x[2], x[3], 0x5140);
            const uint32_t high01 = __byte_perm(x[0], x[1], 0x7362), high23 = __byte_perm(x[2], x[3], 0x7362);
            const uint4 weight = weights[word * p.quads];
            add(0, __byte_perm(low01, low23, 0x5410), weight.x);
            add(1, __byte_perm(low01, low23, 0x7632), weight.y);
            add(2, __byte_perm(high01, high23, 0x5410), weight.z);
            add(3, __byte_perm(high01, high23, 0x7632), weight.w);
        }
    }

    __device__ __forceinline__ void multiply_groups() {
        int group[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) group[c] = static_cast<int>((column + min(c, count - 1)) / p.call.outputs);
        int word = 0;
        for (int row = 0; row < p.call.map.kernel.height; ++row)
            for (int at = 0; at < p.call.map.kernel.width; ++at)
                for (int input = 0; input < p.call.inputs; input += 4, ++word) {
                    const uint4 four = weights[word * p.quads];
                    const uint32_t weight[4] = {four.x, four.y, four.z, four.w};
                    uint32_t x = 0;
#pragma unroll
                    for (int c = 0; c < 4; ++c) {
                        if (c == 0 || group[c] != group[c - 1])
                            x = fetch_x(row, at, int64_t{group[c]} * p.call.inputs + input, p.call.inputs - input);
                        add(c, x, weight[c]);
                    }
                }
    }
};

template <bool depthwise>
__global__ void __launch_bounds__(LowbitDirect::threads, 2) direct_kernel(LowbitDirect product) {
    DYNAMIC_SHARED(uint32_t, weights);
    const LowbitConv2d& call = product.call;
    const int thread = static_cast<int>(threadIdx.x), columns = 4 * product.quads;
    const int64_t first_column = int64_t{blockIdx.x % product.column_blocks} * columns;
    for (int i = thread; i < product.words * columns; i += LowbitDirect::threads) {
        const int64_t column = first_column + i % columns;
        weights[i] = column < call.columns() ? weight_word<depthwise>(call, column, i / columns) : 0;
    }
    __syncthreads();
    const int quad = thread % product.quads, at_once = LowbitDirect::threads / product.quads;
    const int64_t column = first_column + 4 * quad;
    if (column >= call.columns()) return;
    const int count = call.columns() - column < 4 ? static_cast<int>(call.columns() - column) : 4;
    DirectThread<depthwise> own{product, reinterpret_cast<const uint4*>(weights) + quad, column, count, 0, 0, 0, {},
                                {}};
    ColumnTerms terms[4] = {};
    float bias[4] = {};
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        if (c >= count) continue;
        terms[c] = column_terms(call, 0, column + c, call.k(), 0);
        if (product.finish.to.bias) bias[c] = product.finish.to.bias[column + c];
    }
    const int64_t first = int64_t{blockIdx.x / product.column_blocks} * product.pixels;
    for (int i = thread / product.quads; i < product.pixels && first + i < call.map.pixels(); i += at_once) {
        const int64_t pixel = first + i;
        own.start(pixel);
        if constexpr (depthwise)
            own.multiply_depthwise();
        else
            own.multiply_groups();
        int64_t exact[4];
#pragma unroll
        for (int c = 0; c < 4; ++c)
            exact[c] =
                exact_sum(call, product.finish.wide, own.products[c], static_cast<int32_t>(own.codes[c]), terms[c]);
        product.finish.run(pixel * call.columns() + column, count, exact, terms, bias);
    }
}

}  // namespace

int lowbit_direct(const LowbitDirect& product, cudaStream_t stream) {
    const int64_t pixel_blocks = (product.call.map.pixels() + product.pixels - 1) / product.pixels;
    const int64_t blocks = pixel_blocks * product.column_blocks;
    if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    const auto kernel = LowbitDirect::depthwise(product.call) ? direct_kernel<true> : direct_kernel<false>;
    return device::launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(LowbitDirect::threads),
                          static_cast<size_t>(product.words) * product.quads * 16, stream, product);
}

}  // namespace spos::cuda
