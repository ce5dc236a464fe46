// x as the tensor cores read it: what lowbit_input.cu makes, and where in it things are.
#pragma once

#include "cuda/lowbit_finish.cuh"

namespace spos::cuda {

// Rows of [part][plane][chunk] of 16 bytes. Parts: groups of channels, or groups of scales. Only b1 has planes.
struct LowbitInput {
    LowbitX x;
    LowbitMap map;
    CodeMaker make;  // codes of floats
    bool windows;    // rows are windows of the result's pixels, else pixels of x
    int parts;
    int inputs;  // channels of x in a part
    int codes;   // of a part: those channels, or a window of them
    int chunks, planes;
    int64_t rows;  // and one more, a pixel outside of the map, where `outside`
    bool outside;
    uint8_t* to;

    int64_t plane_bytes() const { return int64_t{16} * chunks; }
    int64_t part_bytes() const { return plane_bytes() * planes; }
    int64_t row_bytes() const { return part_bytes() * parts; }
    int64_t all_rows() const { return rows + (outside ? 1 : 0); }
};

// The code of an element of x.
__device__ __forceinline__ uint32_t code_at(const LowbitInput& input, int64_t at) {
    if (input.x.codes) return input.x.codes[at];
    float value;
    if (input.x.element == Element::float32)
        value = static_cast<const float*>(input.x.floats)[at];
    else if (input.x.element == Element::float16)
        value = to_float(static_cast<const __half*>(input.x.floats)[at]);
    else
        value = to_float(static_cast<const __nv_bfloat16*>(input.x.floats)[at]);
    return input.make.code(value);
}

// Code k of a part of a row of x; zeros behind the last. The row behind the last is the pixel outside.
__device__ __forceinline__ uint32_t pixel_code(const LowbitInput& input, int64_t row, int part, int k) {
    if (k >= input.codes) return 0;
    return row < input.rows ? code_at(input, row * input.x.stride + part * input.codes + k) : input.x.zero;
}

// Four neighbours of those in the bytes of a word.
__device__ __forceinline__ uint32_t four_codes(const LowbitInput& input, int64_t row, int part, int k) {
    const int64_t at = row * input.x.stride + part * input.codes + k;
    const int size = input.x.codes ? 1 : input.x.element == Element::float32 ? 4 : 2;
    const uint8_t* const from =
        input.x.codes ? input.x.codes + at : static_cast<const uint8_t*>(input.x.floats) + at * size;
    uint32_t word = 0;
    if (row >= input.rows || k + 4 > input.codes || reinterpret_cast<uintptr_t>(from) % (4 * size) != 0) {
#pragma unroll 1
        for (int i = 0; i < 4; ++i) word |= pixel_code(input, row, part, k + i) << 8 * i;
        return word;
    }
    if (input.x.codes) return *reinterpret_cast<const uint32_t*>(from);
    float values[4];
    load_upto_four(input.x.element, input.x.floats, at, 4, true, values);
#pragma unroll
    for (int i = 0; i < 4; ++i) word |= input.make.code(values[i]) << 8 * i;
    return word;
}

int lowbit_input_s8(const LowbitInput& input, cudaStream_t stream);
int lowbit_input_s4(const LowbitInput& input, cudaStream_t stream);
int lowbit_input_b1(const LowbitInput& input, cudaStream_t stream);

}  // namespace spos::cuda
