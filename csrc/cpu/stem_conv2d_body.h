// The parts of stem_conv2d.h that are compiled for each instruction set.
#pragma once

#include <cstdint>

namespace spos {

// One row of the convolution, with what is made of the sums one by one.
struct StemRow {
    int64_t pixels, panels;
    int64_t kernel_rows, taps;  // taps: columns of the kernel times channels, which lie side by side in `a`
    const double* a;            // the image, padded: rows a_row apart, pixels of this row a_pixel
    int64_t a_row, a_pixel;
    const double* weight;  // [panel][kernel row][tap][panel's outputs]
    const double* scale;   // [panel][panel's outputs]
    const double* bias;    // [panel][panel's outputs]
    bool relu;
    double* to;  // [pixel][panel][panel's outputs]
};

// A row of maxima over three adjacent columns each, two apart, into y, or, unless it is the `first` of its window,
// against what y has.
struct StemPool {
    int64_t pixels, width, columns, outputs;
    const double* from;  // [pixel][width], width: outputs of all panels
    bool first;
    double* y;  // [column][outputs]
};

struct StemBody {
    int64_t panel;  // outputs of a panel
    void (*row)(const StemRow&);
    void (*pool)(const StemPool&);
};

StemBody stem_body_avx512();
StemBody stem_body_avx2();
StemBody stem_body_portable();

}  // namespace spos
