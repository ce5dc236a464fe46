// Matrix product of small-to-medium float matrices, for the convolutions that are one: plain data shared by the
// instruction sets' bodies and their callers, no code.
//
//     C[m, n] (+)= sum over k of A[m, k] * B[k, n]
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace spos {

// Per-column statistics of the rows of C, as sums of differences from `shift`, which the call sets to the mean of a few
// rows: without it a mean much larger than the deviation would cancel the digits of the sum of squares. Each has n
// elements.
template <typename T>
struct ColumnSums {
    T* shift;
    T* sum;
    T* square;
};

// C's last vector of columns may be partial; nothing outside of the m x n elements is touched.
template <typename T>
struct Gemm {
    int64_t m, n, k;
    const T* a;  // element strides a_m and a_k, both free: elements are broadcast
    int64_t a_m, a_k;
    const T* b;   // packed by GemmBody::pack, or rows of n elements, b_k apart
    int64_t b_k;  // 0: packed
    T* c;         // rows of n elements, c_m apart
    int64_t c_m;
    bool accumulate = false;  // add to C instead of overwriting it
    const T* bias = nullptr;  // added to each column
    bool relu = false;        // after the bias
    ColumnSums<T> sums = {};  // of the final C; null pointers for none
};

// B[k, n] = weight[k * stride_k + n * stride_n] * scale_k[k] * scale_n[n], null scales being 1, for the panels of
// columns from first_panel up to end_panel.
template <typename T>
struct PackB {
    int64_t n, k;
    const T* weight;
    int64_t stride_k, stride_n;
    const T* scale_k;
    T* packed;  // packed_size(n, k) elements for all panels
    int64_t first_panel = 0, end_panel = INT64_MAX;
    const T* scale_n = nullptr;
};

template <typename T>
struct GemmBody {
    int lanes;
    int64_t (*panels)(int64_t n);
    int64_t (*packed_size)(int64_t n, int64_t k);
    void (*pack)(const PackB<T>&);
    void (*gemm)(const Gemm<T>&);  // on the calling thread
};

GemmBody<float> gemm_body_avx512();
GemmBody<float> gemm_body_avx2();

// The body for `isa`; double has a portable one only.
template <typename T>
GemmBody<T> gemm_body(Isa isa);

}  // namespace spos
