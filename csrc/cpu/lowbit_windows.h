// The windows of a low-bit convolution: which pixels of x a tap of an output pixel meets, and gathering them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/lowbit_body.h"
#include "cpu/lowbit_conv2d.h"

namespace spos {

class LowbitWindows {
  public:
    explicit LowbitWindows(const LowbitSums& call) : call_(call) {}

    // Calls visit(tap, pixel of x, or -1 outside of the map) for an output pixel.
    template <typename Visit>
    void for_taps(int64_t pixel, const Visit& visit) const {
        const int64_t column = pixel % call_.out_width, line = pixel / call_.out_width;
        const int64_t image = line / call_.out_height * call_.in_height;
        const int64_t top = line % call_.out_height * call_.stride.height - call_.padding.height;
        const int64_t left = column * call_.stride.width - call_.padding.width;
        int64_t tap = 0;
        for (int i = 0; i < call_.kernel.height; ++i) {
            const int64_t y = top + int64_t{i} * call_.dilation.height;
            for (int j = 0; j < call_.kernel.width; ++j, ++tap) {
                const int64_t x = left + int64_t{j} * call_.dilation.width;
                const bool inside = y >= 0 && y < call_.in_height && x >= 0 && x < call_.in_width;
                visit(tap, inside ? (image + y) * call_.in_width + x : -1);
            }
        }
    }

    // Windows of pixels first .. last - 1 as rows: `record` bytes a pixel of `source`, pixels `stride` apart, to rows
    // `row_bytes` apart, their ends zero. outside: the record of what lies outside of the map.
    void gather(const LowbitBody& body, int64_t first, int64_t last, const uint8_t* source, int64_t stride,
                const uint8_t* outside, int64_t record, int64_t row_bytes, uint8_t* to) const {
        const int64_t width = call_.kernel.width, step = call_.stride.width;
        for_segments(first, last, [&](int64_t at, int i, int64_t line, Columns columns) {
            uint8_t* const rows = to + at * row_bytes + i * width * record;
            // Taps beside each other in x as well: copied together where all are inside.
            Columns whole{columns.first, columns.first};
            if (line >= 0 && stride == record && call_.dilation.width == 1) {
                whole = clip({columns_of(0).first, columns_of(static_cast<int>(width) - 1).end}, columns);
                const int64_t x = whole.first * step - call_.padding.width;
                if (whole.end > whole.first)
                    body.copy(rows + (whole.first - columns.first) * row_bytes, row_bytes, source + (line + x) * stride,
                              step * stride, whole.end - whole.first, width * record);
            }
            for (int j = 0; j < width; ++j) {
                const Columns inside = line < 0 ? Columns{columns.end, columns.end} : clip(columns_of(j), columns);
                uint8_t* const places = rows + j * record;
                const auto copy_columns = [&](int64_t begin, int64_t end, bool in_map) {
                    if (begin >= end) return;
                    const int64_t x = begin * step - call_.padding.width + int64_t{j} * call_.dilation.width;
                    body.copy(places + (begin - columns.first) * row_bytes, row_bytes,
                              in_map ? source + (line + x) * stride : outside, in_map ? step * stride : 0, end - begin,
                              record);
                };
                copy_columns(columns.first, inside.first, false);
                if (whole.end > whole.first) {
                    copy_columns(inside.first, std::min(inside.end, whole.first), true);
                    copy_columns(std::max(inside.first, whole.end), inside.end, true);
                } else {
                    copy_columns(inside.first, inside.end, true);
                }
                copy_columns(inside.end, columns.end, false);
            }
        });
        const int64_t used = int64_t{call_.kernel.height} * width * record;
        for (int64_t row = 0; used < row_bytes && row < last - first; ++row)
            std::fill(to + row * row_bytes + used, to + (row + 1) * row_bytes, uint8_t{0});
    }

    // Where those windows lie in `source`: to[tap * to_tap + row].
    void point(int64_t first, int64_t last, const uint8_t* source, int64_t stride, const uint8_t* outside,
               int64_t to_tap, const uint8_t** to) const {
        const int64_t step = call_.stride.width;
        for_segments(first, last, [&](int64_t at, int i, int64_t line, Columns columns) {
            for (int j = 0; j < call_.kernel.width; ++j) {
                const Columns inside = line < 0 ? Columns{columns.end, columns.end} : clip(columns_of(j), columns);
                const int64_t left = int64_t{j} * call_.dilation.width - call_.padding.width;
                const uint8_t** const places = to + (i * call_.kernel.width + j) * to_tap + at - columns.first;
                std::fill(places + columns.first, places + inside.first, outside);
                for (int64_t c = inside.first; c < inside.end; ++c)
                    places[c] = source + (line + left + c * step) * stride;
                std::fill(places + inside.end, places + columns.end, outside);
            }
        });
    }

    // Of the same windows the sums of pixel_sums, [pixel of x][group of scales], to [group][row].
    void sum_rows(int64_t first, int64_t last, const int32_t* pixel_sums, int32_t* to) const {
        const int64_t groups = call_.scale_groups, rows = last - first, step = call_.stride.width;
        const int32_t outside = static_cast<int32_t>(call_.inputs) * call_.x_zero;
        std::fill(to, to + groups * rows, 0);
        for_segments(first, last, [&](int64_t at, int, int64_t line, Columns columns) {
            for (int j = 0; j < call_.kernel.width; ++j) {
                const Columns inside = line < 0 ? Columns{columns.end, columns.end} : clip(columns_of(j), columns);
                const int64_t x = int64_t{j} * call_.dilation.width - call_.padding.width;
                for (int64_t i = 0; i < groups; ++i) {
                    int32_t* const sums = to + i * rows + at - columns.first;
                    for (int64_t c = columns.first; c < inside.first; ++c) sums[c] += outside;
                    const int32_t* const from = pixel_sums + (line + x) * groups + i;
                    for (int64_t c = inside.first; c < inside.end; ++c) sums[c] += from[c * step * groups];
                    for (int64_t c = inside.end; c < columns.end; ++c) sums[c] += outside;
                }
            }
        });
    }

  private:
    // The columns of an output line whose tap j lies inside of the map.
    struct Columns {
        int64_t first, end;
    };
    Columns columns_of(int j) const {
        const int64_t step = call_.stride.width, before = call_.padding.width - int64_t{j} * call_.dilation.width;
        const int64_t first = before > 0 ? (before + step - 1) / step : 0;
        const int64_t last = call_.in_width - 1 + before;  // times step, what is inside
        return {std::min(first, call_.out_width), last < 0 ? 0 : std::min(last / step + 1, call_.out_width)};
    }

    // Calls visit(place of the segment's first pixel, kernel row, first pixel of its line in x or -1 outside, columns)
    // for the pieces of output lines that make up pixels first .. last - 1.
    template <typename Visit>
    void for_segments(int64_t first, int64_t last, const Visit& visit) const {
        for (int64_t pixel = first; pixel < last;) {
            const int64_t line = pixel / call_.out_width, column = pixel % call_.out_width;
            const Columns columns{column, std::min(call_.out_width, column + last - pixel)};
            const int64_t image = line / call_.out_height * call_.in_height;
            const int64_t top = line % call_.out_height * call_.stride.height - call_.padding.height;
            for (int i = 0; i < call_.kernel.height; ++i) {
                const int64_t y = top + int64_t{i} * call_.dilation.height;
                visit(pixel - first, i, y < 0 || y >= call_.in_height ? -1 : (image + y) * call_.in_width, columns);
            }
            pixel += columns.end - columns.first;
        }
    }

    static Columns clip(Columns columns, Columns to) {
        const int64_t first = std::clamp(columns.first, to.first, to.end);
        return {first, std::max(first, std::min(columns.end, to.end))};
    }

    const LowbitSums& call_;
};

}  // namespace spos
