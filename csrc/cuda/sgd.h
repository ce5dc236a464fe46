// Stochastic gradient descent with momentum on parts of parameters, on a GPU: the formula of cpu/sgd.h, to the bit
// where the CPU has fused multiply-adds. One launch updates all parameters.
//
// What a launch does is a table in device memory. Whether a piece is updated, how much of it, and the learning rate are
// read from device memory as well: a captured CUDA graph can train whatever path was sampled.
#pragma once

#include <cstdint>

namespace spos::cuda {

// `rows` runs of `columns` adjacent elements, `stride` elements apart, of three buffers of the same layout: one block's
// work. m is null without momentum: then the step is g. 128 bytes, a line of the cache.
struct SgdPiece {
    static constexpr int threads = 256;
    static constexpr int accesses = 4;                            // of one thread to each buffer, at most
    static constexpr int64_t most_accesses = threads * accesses;  // of a block

    float* w;
    const float* gradient;
    float* m;
    // int32 each, or null. A piece whose *choice is not `chosen` stays as it is, weights and momentum, to the bit.
    // Of all rows of the parameter's extent, *row_count * row_unit are updated, and so of its columns.
    const int32_t *choice, *row_count, *column_count;
    int64_t first_row, first_column;  // of the piece in the extent
    int64_t row_unit, column_unit;
    int64_t stride;
    int32_t rows, columns;
    int32_t chosen;
    int32_t rate;  // its learning rate's index
    float momentum, weight_decay;
    int16_t lane_bits;         // 2^lane_bits threads are side by side in a row: all of them where there is one row
    int8_t vectors, nesterov;  // vectors: every row of every buffer begins at a multiple of 16 bytes
    int32_t unused[3];
};
static_assert(sizeof(SgdPiece) == 128, "a line of the cache");

// Clipping of the gradients by their norm, as torch.nn.utils.clip_grad_norm_ does it: over the elements that a step on
// the same pieces updates, so that what is off the path does not count. All of it in device memory.
struct SgdClip {
    float most;         // the largest norm that is left as it is
    double* parts;      // one for each piece
    uint32_t* counter;  // zero before and after
    float* scale;       // written: min(1, most / (norm + 1e-6)), or NaN
};

// pieces and rates: in device memory. The pieces must not overlap; a piece has one row, of at most most_accesses
// vectors or elements, or rows of which its threads do not need more than `accesses` each. Gradients are multiplied by
// *scale first; null for 1. Each returns a cudaError_t.
int sgd_clip(const SgdPiece* pieces, int64_t count, const SgdClip& clip, void* stream);
int sgd_step(const SgdPiece* pieces, int64_t count, const float* rates, const float* scale, void* stream);

}  // namespace spos::cuda
