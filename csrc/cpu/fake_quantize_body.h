// What the bodies of fake_quantize.h, one for each instruction set, share with their caller.
#pragma once

#include "cpu/fake_quantize.h"

namespace spos {

// How a tensor is cut into pieces, by its shape alone. A piece is a part of one channel's run of adjacent elements, or,
// where runs are short, a block of a matrix whose columns have a channel each: vectors then go across channels.
struct FakeQuantizePlan {
    static constexpr int64_t run_piece = 4096;      // elements of a run: few, because their sum is in single precision
    static constexpr int64_t block_size = 16384;    // elements of a block
    static constexpr int64_t most_columns = 2048;   // of a block
    static constexpr int64_t near_bytes = 4 << 20;  // up to this size a tensor comes from a cache near by
    static constexpr int64_t longest_short_run = 31;  // a vector of 16 would be cut short in every other step

    bool by_columns;
    int64_t size;  // elements in all
    int64_t run;   // of adjacent elements of one channel
    int64_t channels;
    int64_t columns;  // several times the channels and their runs, for whole vectors; the last row may be shorter
    int64_t splits;   // of a run, or of a row into blocks
    int64_t rows;     // of a block

    explicit FakeQuantizePlan(const FakeQuantize& shape);

    int64_t pieces() const;
    // One sum a piece, or a sum for every column of every block.
    int64_t sums() const;
    // Coefficients: one a channel or one a column.
    int64_t coefficients() const { return by_columns ? columns : channels; }
};

// One call. Arrays of coefficients are padded with ones to a multiple of 16.
template <typename T>
struct FakeQuantizeJob {
    FakeQuantizePlan plan;
    QuantizeMethod method = QuantizeMethod::dorefa;
    int lowest_code = 0, levels = 0;  // levels: n
    const T *x = nullptr, *dy = nullptr;
    T *y = nullptr, *dx = nullptr;
    uint8_t* codes = nullptr;
    T* divisor = nullptr;               // s, or the factor 1/2m
    T *low = nullptr, *high = nullptr;  // of the codes less the zero point
    T* bound = nullptr;                 // a, or 1/m
    double* sums = nullptr;             // null if they are not asked for
    bool stream = false;                // y or dx goes past the caches
};

// Each handles the pieces from begin to end. `tanh` is the function that the others use, in place.
template <typename T>
struct FakeQuantizeBody {
    void (*forward)(const FakeQuantizeJob<T>&, int64_t begin, int64_t end);
    void (*codes)(const FakeQuantizeJob<T>&, int64_t begin, int64_t end);
    void (*backward)(const FakeQuantizeJob<T>&, int64_t begin, int64_t end);
    void (*maximum)(const FakeQuantizeJob<T>&, int64_t begin, int64_t end);
    void (*tanh)(T* values, int64_t count);
};

FakeQuantizeBody<float> fake_quantize_body_avx512();
FakeQuantizeBody<float> fake_quantize_body_avx2();
template <typename T>
FakeQuantizeBody<T> fake_quantize_body_portable();

}  // namespace spos
