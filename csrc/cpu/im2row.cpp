// Work      y is written once, k * k times the size of x (at stride 1), x read from cache: bound by that write.
#include "cpu/im2row.h"

#include <algorithm>

#include "core/parallel.h"

namespace spos {

template <typename T>
void im2row(const Im2Row<T>& call, int threads) {
    const int64_t window_row = call.kernel * call.channels, row = call.kernel * window_row;
    parallel_for(call.batch * call.out_height, threads, [&](int64_t begin, int64_t end) {
        for (int64_t flat = begin; flat < end; ++flat) {
            const int64_t n = flat / call.out_height, top = flat % call.out_height * call.stride - call.padding;
            T* to = call.y + flat * call.out_width * row;
            for (int64_t w = 0; w < call.out_width; ++w) {
                const int64_t left = w * call.stride - call.padding;
                const bool dense = left >= 0 && left + call.kernel <= call.in_width && call.x_w == call.channels;
                for (int kh = 0; kh < call.kernel; ++kh, to += window_row) {
                    const int64_t h = top + kh;
                    if (h < 0 || h >= call.in_height) {
                        std::fill(to, to + window_row, T(0));
                        continue;
                    }
                    const T* const from = call.x + n * call.x_n + h * call.x_h;
                    if (dense) {
                        std::copy(from + left * call.x_w, from + left * call.x_w + window_row, to);
                        continue;
                    }
                    for (int kw = 0; kw < call.kernel; ++kw) {
                        T* const tap = to + kw * call.channels;
                        const int64_t column = left + kw;
                        if (column < 0 || column >= call.in_width)
                            std::fill(tap, tap + call.channels, T(0));
                        else
                            std::copy(from + column * call.x_w, from + column * call.x_w + call.channels, tap);
                    }
                }
            }
        }
    });
}

template void im2row(const Im2Row<float>&, int);
template void im2row(const Im2Row<double>&, int);

}  // namespace spos
