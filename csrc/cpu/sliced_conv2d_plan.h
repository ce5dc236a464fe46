// What the drivers of sliced_conv2d share: how dimensions are cut, and how maps are spaced.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/sliced_conv2d.h"
#include "cpu/sliced_conv2d_body.h"

namespace spos {

// Tasks to aim at, by the shape alone: enough that two, three or eight threads finish at about the same time.
constexpr int64_t enough_tasks = 16;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// The largest power of two up to `value`, at least 1.
constexpr int64_t power_of_two(int64_t value) {
    int64_t power = 1;
    while (2 * power <= value) power *= 2;
    return power;
}

// [0, size) in `chunks` pieces of about the same size that begin at multiples of `unit`.
struct Cut {
    int64_t size, chunks, unit;

    int64_t begin(int64_t chunk) const { return chunk == chunks ? size : ceil_div(size, unit) * chunk / chunks * unit; }
    int64_t end(int64_t chunk) const { return begin(chunk + 1); }
    int64_t largest() const { return std::min(size, ceil_div(ceil_div(size, unit), chunks) * unit); }
};

// About `target` elements a piece, at most `most` pieces and none empty.
inline Cut cut(int64_t size, int64_t target, int64_t most, int64_t unit) {
    const int64_t chunks = std::min({(size + target / 2) / target, most, ceil_div(size, unit)});
    return {size, std::max<int64_t>(chunks, 1), unit};
}

// Distance from a pixel to the next, counted through (n, row, column); 0 if that is not the same everywhere.
template <typename T>
int64_t pixel_stride(const Map<T>& map, int64_t batch) {
    const int64_t stride = map.width > 1 ? map.w : map.height > 1 ? map.h : map.n;
    const bool even =
        (map.height == 1 || map.h == map.width * stride) && (batch == 1 || map.n == map.height * map.width * stride);
    return even ? stride : 0;
}

template <typename T>
Map<T> input_map(const SlicedConv2d& shape, T* data) {
    return {data, shape.x_n, shape.x_h, shape.x_w, shape.in_height, shape.in_width};
}

template <typename T>
Map<T> output_map(const SlicedConv2d& shape, T* data) {
    return {data, shape.y_n, shape.y_h, shape.y_w, shape.out_height, shape.out_width};
}

// The window of the forward pass: `count` results along one direction.
inline Window forward_window(const SlicedConv2d& shape, int64_t count) {
    return {count, shape.stride, -shape.padding, 0, 1, shape.kernel, 0, 1};
}

// Rows of a matrix in scratch are `channels` apart, but not a multiple of a page: that would put the rows of a tile
// into the same few lines of L1.
inline int64_t scratch_stride(int64_t channels) { return round_up(channels, 16) + (channels % 256 == 0 ? 16 : 0); }

// Asks for rows of a map in the order of memory, which is many times faster than the order in which a product meets
// them: down columns, or some rows side by side, is no stream that the hardware would follow.
template <typename T>
void ask_for(const T* rows, int64_t count, int64_t stride, int64_t length) {
    constexpr int64_t line = 64 / sizeof(T);
    for (int64_t row = 0; row < count; ++row)
        for (int64_t i = 0; i < length; i += line) __builtin_prefetch(rows + row * stride + i);
}

// Carves a workspace into 64-byte aligned pieces. A null workspace is measured only.
class Carver {
  public:
    explicit Carver(void* workspace) : base_(static_cast<char*>(workspace)) {}

    template <typename T>
    T* take(int64_t elements) {
        T* const piece = base_ ? reinterpret_cast<T*>(base_ + bytes_) : nullptr;
        bytes_ += static_cast<size_t>(round_up(elements * static_cast<int64_t>(sizeof(T)), 64));
        return piece;
    }
    size_t bytes() const { return bytes_; }

  private:
    char* base_;
    size_t bytes_ = 0;
};

}  // namespace spos
