// Convolution of an image in double precision.
//
// Work      2 * batch * out_height * out_width * outputs * k operations, k = kernel * channels: 0.24 G for an image of
//           224 pixels, a 7x7 kernel and 64 outputs.
// Bytes     The image once, y once: with the maximum, a quarter of the convolution's own map, which lives in L2.
// Method    A task makes some rows of y. It turns the rows of the image that they need into doubles, with zeros around
//           them and adjacent channels, so that a row of a window lies in one piece; then it makes one row of the
//           convolution after another, which goes into y while it is in cache. Rows at the seam of two tasks' maxima
//           are made twice.
#include "cpu/stem_conv2d.h"

#include <algorithm>

#include "core/arena.h"
#include "core/parallel.h"
#include "cpu/stem_conv2d_body.h"

namespace spos {
namespace {

StemBody stem_body([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
    if (isa >= Isa::avx512) return stem_body_avx512();
    if (isa == Isa::avx2) return stem_body_avx2();
#endif
    return stem_body_portable();
}

class Convolution {
  public:
    Convolution(Isa isa, const StemConv2d& call, void* workspace, int threads)
        : call_(call), body_(stem_body(isa)), arena_(workspace), counting_(!workspace), threads_(threads) {}

    size_t run() {
        panels_ = (call_.outputs + body_.panel - 1) / body_.panel;
        width_ = panels_ * body_.panel;
        taps_ = call_.kernel_width * call_.channels;
        padded_ = (call_.in_width + 2 * call_.padding) * call_.channels;
        const int64_t most =
            (band_rows(0, std::min(band, call_.rows())) - 1) * call_.stride + call_.kernel_height;  // rows of the image
        double* const weight = arena_.take<double>(width_ * call_.kernel_height * taps_);
        double* const scale = arena_.take<double>(width_);
        double* const bias = arena_.take<double>(width_);
        double* const images = arena_.take<double>(threads_ * most * padded_);
        double* const lines = arena_.take<double>(threads_ * call_.out_width * width_);
        if (counting_) return arena_.used();

        pack(weight);
        std::fill(std::copy(call_.scale, call_.scale + call_.outputs, scale), scale + width_, 0.0);
        std::fill(std::copy(call_.bias, call_.bias + call_.outputs, bias), bias + width_, 0.0);
        const int64_t bands = (call_.rows() + band - 1) / band;
        parallel_for(call_.batch * bands, threads_, [&](int64_t begin, int64_t end, int slot) {
            double* const image = images + slot * most * padded_;
            double* const line = lines + slot * call_.out_width * width_;
            for (int64_t task = begin; task < end; ++task) {
                const int64_t first = task % bands * band, last = std::min(first + band, call_.rows());
                make_rows(task / bands, first, last, weight, scale, bias, image, line);
            }
        });
        return arena_.used();
    }

  private:
    static constexpr int64_t band = 14;  // rows of y of a task

    // Rows of the convolution behind rows first .. last - 1 of y, and how many.
    int64_t first_row(int64_t first) const { return call_.max_pool ? std::max<int64_t>(2 * first - 1, 0) : first; }
    int64_t last_row(int64_t last) const { return call_.max_pool ? std::min(2 * last, call_.out_height) : last; }
    int64_t band_rows(int64_t first, int64_t last) const {
        return call_.max_pool ? 2 * (last - first) + 1 : last - first;
    }

    // [outputs][channel][kernel row][kernel column] to [panel][kernel row][kernel column][channel][panel's outputs].
    void pack(double* to) const {
        for (int64_t first = 0; first < width_; first += body_.panel)
            for (int64_t i = 0; i < call_.kernel_height; ++i)
                for (int64_t j = 0; j < call_.kernel_width; ++j)
                    for (int64_t c = 0; c < call_.channels; ++c, to += body_.panel) {
                        const float* const from =
                            call_.weight + i * call_.weight_h + j * call_.weight_w + c * call_.weight_c;
                        for (int64_t n = 0; n < body_.panel; ++n)
                            to[n] = first + n < call_.outputs ? static_cast<double>(from[(first + n) * call_.weight_n])
                                                              : 0.0;
                    }
    }

    // Rows of an image, from `top` on, which may lie outside of it.
    void widen(int64_t n, int64_t top, int64_t rows, double* to) const {
        const int64_t channels = call_.channels, margin = call_.padding * channels;
        for (int64_t row = 0; row < rows; ++row, to += padded_) {
            const int64_t y = top + row;
            if (y < 0 || y >= call_.in_height) {
                std::fill(to, to + padded_, 0.0);
                continue;
            }
            std::fill(to, to + margin, 0.0);
            std::fill(to + padded_ - margin, to + padded_, 0.0);
            for (int64_t c = 0; c < channels; ++c) {
                const float* const from = call_.x + n * call_.x_n + y * call_.x_h + c * call_.x_c;
                for (int64_t x = 0; x < call_.in_width; ++x)
                    to[margin + x * channels + c] = static_cast<double>(from[x * call_.x_w]);
            }
        }
    }

    void make_rows(int64_t n, int64_t first, int64_t last, const double* weight, const double* scale,
                   const double* bias, double* image, double* line) const {
        const int64_t begin = first_row(first), end = last_row(last);
        const int64_t y_row = call_.columns() * call_.outputs;
        double* const y = call_.y + n * call_.rows() * y_row;
        widen(n, begin * call_.stride - call_.padding, (end - begin - 1) * call_.stride + call_.kernel_height, image);
        for (int64_t row = begin; row < end; ++row) {
            body_.row({call_.out_width, panels_, call_.kernel_height, taps_,
                       image + (row - begin) * call_.stride * padded_, padded_, call_.stride * call_.channels, weight,
                       scale, bias, call_.relu, line});
            if (!call_.max_pool) {
                for (int64_t pixel = 0; pixel < call_.out_width; ++pixel)
                    std::copy(line + pixel * width_, line + pixel * width_ + call_.outputs,
                              y + row * y_row + pixel * call_.outputs);
                continue;
            }
            // The windows of rows row / 2 and, of odd rows, the one behind it.
            for (int64_t to = std::max(row / 2, first); to <= std::min((row + 1) / 2, last - 1); ++to)
                body_.pool({call_.out_width, width_, call_.columns(), call_.outputs, line, row == first_row(to),
                            y + to * y_row});
        }
    }

    const StemConv2d& call_;
    StemBody body_;
    Arena arena_;
    bool counting_;
    int threads_;
    int64_t panels_ = 0, width_ = 0, taps_ = 0, padded_ = 0;
};

}  // namespace

size_t stem_conv2d_workspace(Isa isa, const StemConv2d& call, int threads) {
    return Convolution(isa, call, nullptr, threads).run();
}

void stem_conv2d(Isa isa, const StemConv2d& call, void* workspace, int threads) {
    Convolution(isa, call, workspace, threads).run();
}

}  // namespace spos
