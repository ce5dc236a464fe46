// Bands of a map with zeros around it, in which a k x k convolution of stride 1 is a matrix product without im2row.
//
// The rows of a band lie `pitch` pixels apart in scratch, channels dense, and as many zeros follow each row as a window
// reaches beyond it; those in front of a row are the ones behind the row before. The pixels of one row of taps are then
// adjacent, pixel after pixel and row after row: A[m, (tap, c)] = band[m * channels + tap * channels + c] for m counted
// through the whole band, where every row ends in `pitch` - count results too many. Each element is copied once, not
// once a tap.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/sliced_conv2d_plan.h"

namespace spos {

struct Band {
    int64_t height = 0;  // destination rows; 0: bands do not pay for this shape
    int64_t pitch = 0, left = 0, per_image = 0;

    Band() = default;

    // others: the channels on the other side of the product, on which depends what im2row costs.
    Band(const Window& rows, const Window& columns, int64_t source_width, int64_t channels, int64_t others) {
        const bool fits = rows.step == 1 && columns.step == 1 && columns.start <= 0 && columns.taps > 1;
        if (!fits) return;
        left = -columns.start;
        const int64_t right = std::max<int64_t>(columns.count - left + columns.taps - 1 - source_width, 0);
        pitch = source_width + std::max(left, right);
        // im2row takes about 5 / others of the time, the results too many take this share of it.
        constexpr int64_t im2row_cost = 5, most_depth = 1024;
        if ((pitch - columns.count) * others >= im2row_cost * columns.count || columns.taps * channels > most_depth)
            return;
        constexpr int64_t pixels = 224;  // then the band and its results fit into L2
        height = std::min(ceil_div(pixels, pitch), rows.count);
        per_image = ceil_div(rows.count, height);
    }

    // Pixels of the product for `rows` destination rows of `count` columns.
    int64_t products(int64_t rows, int64_t count) const { return (rows - 1) * pitch + count; }

    // Pixels of scratch, where the window has `taps` rows.
    int64_t padded(int taps) const { return left + (height + taps - 1) * pitch; }

    // Fills `to` for the destination rows [first, end) of image n.
    template <typename T>
    void fill(const SlicedConv2dBody<T>& body, Map<const T> source, int64_t n, const Window& rows, int64_t channels,
              int64_t first, int64_t end, T* to) const {
        source.data += n * source.n;
        const int64_t count = end - first + rows.taps - 1;
        std::fill_n(to, left * channels, T(0));
        body.gather({source,
                     {count, 1, first + rows.start, 0, 1, 1, 0, 1},
                     {pitch, 1, 0, 0, 1, 1, 0, 1},
                     channels,
                     0,
                     count * pitch,
                     to + left * channels,
                     channels});
    }
};

}  // namespace spos
