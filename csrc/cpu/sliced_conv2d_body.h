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

// Some rows of a map in a band for the direct kernels: `pitch` columns, zeros outside of the map; blocks of `block`
// channels, each dense [pixel, channel] and `pixels` pixels long. The last block may be narrow, or `padded` with zeros.
template <typename T>
struct DirectFill {
    const T* source;  // of the first row, column 0
    int64_t source_row, source_pixel, width;
    int64_t rows, pitch, start;  // column 0 of the band is column `start` of the map
    int64_t channels, block;
    bool padded;
    T* to;
    int64_t pixels, first;  // the rows begin at pixel `first`
};

// Destination rows [first, end) (+)= windows of one block of channels of a band, times its packed weight.
template <typename T>
struct DirectRows {
    const T* band;       // source row `band_first`
    int64_t band_first;  // rows outside of the map, which has `height`, are not in the band and left out
    int64_t band_row, band_pixel, height;
    Window rows;
    int64_t first, end, count;  // destination rows, and pixels of a row
    bool edges;                 // Band::has_edges
    int64_t k;                  // taps of a row times channels: adjacent in the band
    const T* packed;            // [(tap, channel), n], n at most two vectors
    int64_t n;
    T* c;  // pixel 0 of row `first`
    int64_t c_row, c_pixel;
    bool accumulate;
    const T* bias;
};

// sums[o][tap][c] (+)= over pixels, dy[pixel, o] * x[window[tap], c], for one vector of channels c.
template <typename T>
struct DirectWgrad {
    const T* dy;      // row `first` of the first image, outputs adjacent
    int64_t outputs;  // at most `wgrad_rows`
    int64_t dy_image, dy_row, dy_pixel;
    const T* x;  // a padded band: source row `x_first` of the first image
    int64_t x_first, x_image, x_row, x_pixel, height;
    Window rows, columns;
    bool edges;                         // Band::has_edges
    int64_t images, first, end, count;  // destination rows, and pixels of a row
    T* sums;
    int64_t sums_row, sums_tap;
    bool accumulate;
};

// dweight[o, c, tap] (+)= sum over parts of partial[part][o][tap][c], parts in their order.
template <typename T>
struct ScatterWeight {
    const T* partial;
    int64_t parts, part_stride;
    int64_t first_row, end_row;        // the o to do
    int64_t channels, channel_stride;  // channel_stride: from a tap to the next
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
    void (*direct_fill)(const DirectFill<T>&);
    void (*direct_rows)(const DirectRows<T>&);
    void (*direct_wgrad)(const DirectWgrad<T>&);
    int wgrad_rows;
};

SlicedConv2dBody<float> sliced_conv2d_body_avx512();
SlicedConv2dBody<float> sliced_conv2d_body_avx2();

// The body for `isa`; double has a portable one only.
template <typename T>
SlicedConv2dBody<T> sliced_conv2d_body(Isa isa);

}  // namespace spos
