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

int lowbit_input_s8(const LowbitInput& input, cudaStream_t stream);
int lowbit_input_s4(const LowbitInput& input, cudaStream_t stream);
int lowbit_input_b1(const LowbitInput& input, cudaStream_t stream);

}  // namespace spos::cuda
