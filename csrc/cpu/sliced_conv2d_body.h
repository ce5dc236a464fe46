// What the instruction sets' bodies of sliced_conv2d share with its drivers: plain data and a few functions, no code
// that an instruction set compiles differently. The bodies rearrange memory; the products are those of gemm_body.h.
#pragma once

#include <cstdint>

#include "cpu/gemm_body.h"

namespace spos {

constexpr int most_taps = 49;

// Where the destination indices j = 0 .. count - 1 of one direction (rows or columns) look in the source:
// indices j * step + start + t for the window's taps t, which meet the weight's taps first_tap + t * tap_step.
// Destination index j lies at to_start + j * to_step of the map.
struct Window {
    int64_t count, step, start, to_start, to_step;
    int taps, first_tap, tap_step;
};

// A map of pixels [batch, height, width], channels adjacent. Element strides.
template <typename T>
struct Map {
    T* data;
    int64_t n, h, w;
    int64_t height, width;
};

// im2row: to[r] = the source pixels that meet the window of destination pixel first + r, tap after tap, `channels`
// elements each, zeros outside of the source. Destination pixels are counted through (n, row, column) of the windows.
template <typename T>
struct Gather {
    Map<const T> source;
    Window rows, columns;
    int64_t channels;
    int64_t first, end;
    T* to;
    int64_t to_stride;
};

// The weight as matrices B[(tap, c), n] in the panels of gemm_body.h: taps 0 .. together - 1, then the next as many,
// each matrix `matrix_size` elements behind the one before. Element strides; taps as offsets.
template <typename T>
struct PackWeight {
    const T* weight;
    int64_t n, channels, stride_n, stride_c;
    int taps, together;
    int64_t offset[most_taps];
    T* packed;
    int64_t matrix_size;
};

// dweight[o, c, tap] (+)= sum over parts of partial[part][o][tap][c], parts in their order.
template <typename T>
struct ScatterWeight {
    const T* partial;
    int64_t parts, part_stride;
    int64_t first_row, end_row;  // the o to do
    int64_t channels;
    int taps;
    int64_t offset[most_taps];
    T* dweight;
    int64_t stride_o, stride_c;
    bool accumulate;
};

template <typename T>
struct SlicedConv2dBody {
    void (*gather)(const Gather<T>&);
    void (*copy)(const T* from, int64_t from_stride, T* to, int64_t to_stride, int64_t rows, int64_t length);
    void (*pack)(const PackWeight<T>&);
    void (*scatter)(const ScatterWeight<T>&);
};

SlicedConv2dBody<float> sliced_conv2d_body_avx512();
SlicedConv2dBody<float> sliced_conv2d_body_avx2();

// The body for `isa`; double has a portable one only.
template <typename T>
SlicedConv2dBody<T> sliced_conv2d_body(Isa isa);

}  // namespace spos
