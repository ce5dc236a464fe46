// Codes of x, or floats quantized on the way, packed for the tensor cores: chunks of 16 bytes, 32 nibbles or 128 bits.
//
// Shapes    In: pixels of channels, NHWC, any stride between pixels. Out: a row for each pixel of x, or for each pixel
//           of the result where rows are windows (im2row); zeros behind the codes of a part.
// Bytes     One read of x (of windows: from L2, once a tap), one write of 1, 1/2 or bits/8 bytes a code.
// Method    A thread makes a chunk of bytes or nibbles, reading four neighbours at once where they are aligned. Bit
//           planes are made by a warp: a lane reads each 32nd code of a chunk, and a ballot is a word of a plane.
#include "cuda/lowbit_input.cuh"

namespace spos::cuda {
namespace {

constexpr int threads = 256;

// Codes of a row and part from number k on, one after another.
struct Window {
    const LowbitInput& input;
    int64_t image;  // its first pixel
    int channel, first_row, first_column, row, column, k;

    __device__ __forceinline__ Window(const LowbitInput& input, int64_t at, int part, int k) : input(input), k(k) {
        const LowbitMap& map = input.map;
        const uint32_t pixel = static_cast<uint32_t>(at), line = pixel / map.out_width;
        image = int64_t{line / map.out_height} * map.in_height * map.in_width;
        first_row = static_cast<int>(line % map.out_height) * map.stride.height - map.padding.height;
        first_column = static_cast<int>(pixel % map.out_width) * map.stride.width - map.padding.width;
        const int tap = k / input.inputs;
        channel = k % input.inputs, row = tap / map.kernel.width, column = tap % map.kernel.width;
        first_channel = part * input.inputs;
    }
    __device__ __forceinline__ uint32_t code() const {
        const LowbitMap& map = input.map;
        if (k >= input.codes) return 0;
        const int y = first_row + row * map.dilation.height, x = first_column + column * map.dilation.width;
        if (y < 0 || y >= map.in_height || x < 0 || x >= map.in_width) return input.x.zero;
        return code_at(input, (image + int64_t{y} * map.in_width + x) * input.x.stride + first_channel + channel);
    }
    __device__ __forceinline__ void next() {
        ++k;
        if (++channel < input.inputs) return;
        channel = 0;
        if (++column == input.map.kernel.width) column = 0, ++row;
    }

  private:
    int first_channel;
};

template <int code_bits>
__global__ void __launch_bounds__(threads) fields_kernel(LowbitInput input) {
    constexpr int codes = 128 / code_bits;
    const uint32_t chunk = blockIdx.x * threads + threadIdx.x,
                   of_row = input.parts * input.chunks;  // 32 bits: see launch
    const int64_t row = chunk / of_row;
    if (row >= input.rows + input.outside) return;
    const int in_row = static_cast<int>(chunk % of_row);
    const int part = in_row / input.chunks, k = in_row % input.chunks * codes;
    constexpr int of_word = codes / 4;
    // A word is stored as soon as it is there: held back for a store of four, words would be spilled around divisions.
    uint32_t* const to = reinterpret_cast<uint32_t*>(input.to) + int64_t{chunk} * 4;
    if (input.windows) {
        Window window(input, row, part, k);
#pragma unroll 1  // divisions that are rarely needed would be here many times
        for (int w = 0; w < 4; ++w) {
            uint32_t word = 0;
#pragma unroll 1
            for (int i = 0; i < of_word; ++i, window.next()) word |= window.code() << i * code_bits;
            to[w] = word;
        }
    } else {
#pragma unroll 1
        for (int w = 0; w < 4; ++w) {
            uint32_t word = 0;
#pragma unroll 1
            for (int i = 0; i < of_word; i += 4) {
                uint32_t four = four_codes(input, row, part, k + w * of_word + i);
                if constexpr (code_bits == 4) {
                    four = (four | four >> 4) & 0x00ff00ffu;
                    four = (four | four >> 8) & 0x0000ffffu;
                }
                word |= four << i * code_bits;
            }
            to[w] = word;
        }
    }
}

__global__ void __launch_bounds__(threads) planes_kernel(LowbitInput input) {
    const int lane = threadIdx.x % 32;
    const int64_t chunk = int64_t{blockIdx.x} * (threads / 32) + threadIdx.x / 32;
    const int64_t of_row = int64_t{input.parts} * input.chunks, row = chunk / of_row;
    if (row >= input.rows + input.outside) return;  // the whole warp
    const int in_row = static_cast<int>(chunk - row * of_row);
    const int part = in_row / input.chunks, of_part = in_row % input.chunks;
    uint32_t mine = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int k = of_part * 128 + i * 32 + lane;
        const uint32_t code = input.windows ? Window(input, row, part, k).code() : pixel_code(input, row, part, k);
        for (int plane = 0; plane < input.planes; ++plane) {
            const uint32_t word = __ballot_sync(~0u, code >> plane & 1);
            if (lane == plane * 4 + i) mine = word;
        }
    }
    // Of one plane after another, words of this chunk.
    uint32_t* const words = reinterpret_cast<uint32_t*>(input.to);
    const int64_t first = (row * input.parts + part) * input.planes + lane / 4;
    if (lane / 4 < input.planes) words[(first * input.chunks + of_part) * 4 + lane % 4] = mine;
}

int launch(void (*kernel)(LowbitInput), const LowbitInput& input, int of_block, cudaStream_t stream) {
    const int64_t chunks = input.all_rows() * input.parts * input.chunks;
    if (chunks > INT32_MAX) return cudaErrorInvalidConfiguration;  // kernels count them in 32 bits
    const int64_t blocks = (chunks + of_block - 1) / of_block;
    if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    return device::launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(threads), 0, stream, input);
}

}  // namespace

int lowbit_input_s8(const LowbitInput& input, cudaStream_t stream) {
    return launch(fields_kernel<8>, input, threads, stream);
}
int lowbit_input_s4(const LowbitInput& input, cudaStream_t stream) {
    return launch(fields_kernel<4>, input, threads, stream);
}
int lowbit_input_b1(const LowbitInput& input, cudaStream_t stream) {
    return launch(planes_kernel, input, threads / 32, stream);
}

}  // namespace spos::cuda
