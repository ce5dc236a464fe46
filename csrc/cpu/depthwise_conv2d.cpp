// First version: plain loops, every instruction set through the same code.
#include "cpu/depthwise_conv2d.h"

#include "core/parallel.h"

namespace spos {

size_t depthwise_conv2d_workspace(const DepthwiseConv2d& s, Pass, size_t element_size) {
    return 16 * element_size * static_cast<size_t>((s.channels + 16) * s.kernel * s.kernel);
}

template <typename T>
void depthwise_conv2d_forward(Isa, const DepthwiseConv2d& s, const T* x, const T* weight, T* y, void*, int threads) {
    parallel_for(s.batch * s.out_height, threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const int64_t n = row / s.out_height, oh = row % s.out_height;
            for (int64_t ow = 0; ow < s.out_width; ++ow)
                for (int64_t c = 0; c < s.channels; ++c) {
                    T sum = 0;
                    for (int kh = 0; kh < s.kernel; ++kh)
                        for (int kw = 0; kw < s.kernel; ++kw) {
                            const int64_t ih = oh * s.stride - s.padding + kh, iw = ow * s.stride - s.padding + kw;
                            if (ih < 0 || ih >= s.in_height || iw < 0 || iw >= s.in_width) continue;
                            sum += x[n * s.x_n + ih * s.x_h + iw * s.x_w + c] * weight[(c * s.kernel + kh) * s.kernel + kw];
                        }
                    y[n * s.y_n + oh * s.y_h + ow * s.y_w + c] = sum;
                }
        }
    });
}

template <typename T>
void depthwise_conv2d_dgrad(Isa, const DepthwiseConv2d& s, const T* dy, const T* weight, T* dx, void*, int threads) {
    parallel_for(s.batch * s.in_height, threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const int64_t n = row / s.in_height, ih = row % s.in_height;
            for (int64_t iw = 0; iw < s.in_width; ++iw)
                for (int64_t c = 0; c < s.channels; ++c) {
                    T sum = 0;
                    for (int kh = 0; kh < s.kernel; ++kh)
                        for (int kw = 0; kw < s.kernel; ++kw) {
                            const int64_t h = ih + s.padding - kh, w = iw + s.padding - kw;
                            if (h < 0 || w < 0 || h % s.stride || w % s.stride) continue;
                            if (h / s.stride >= s.out_height || w / s.stride >= s.out_width) continue;
                            sum += dy[n * s.y_n + h / s.stride * s.y_h + w / s.stride * s.y_w + c] *
                                   weight[(c * s.kernel + kh) * s.kernel + kw];
                        }
                    dx[n * s.x_n + ih * s.x_h + iw * s.x_w + c] = sum;
                }
        }
    });
}

template <typename T>
void depthwise_conv2d_wgrad(Isa, const DepthwiseConv2d& s, const T* x, const T* dy, T* dweight, void*, int threads) {
    parallel_for(s.channels, threads, [&](int64_t begin, int64_t end) {
        for (int64_t c = begin; c < end; ++c)
            for (int kh = 0; kh < s.kernel; ++kh)
                for (int kw = 0; kw < s.kernel; ++kw) {
                    T sum = 0;
                    for (int64_t n = 0; n < s.batch; ++n)
                        for (int64_t oh = 0; oh < s.out_height; ++oh)
                            for (int64_t ow = 0; ow < s.out_width; ++ow) {
                                const int64_t ih = oh * s.stride - s.padding + kh, iw = ow * s.stride - s.padding + kw;
                                if (ih < 0 || ih >= s.in_height || iw < 0 || iw >= s.in_width) continue;
                                sum += x[n * s.x_n + ih * s.x_h + iw * s.x_w + c] *
                                       dy[n * s.y_n + oh * s.y_h + ow * s.y_w + c];
                            }
                    dweight[(c * s.kernel + kh) * s.kernel + kw] = sum;
                }
    });
}

template void depthwise_conv2d_forward(Isa, const DepthwiseConv2d&, const float*, const float*, float*, void*, int);
template void depthwise_conv2d_forward(Isa, const DepthwiseConv2d&, const double*, const double*, double*, void*, int);
template void depthwise_conv2d_dgrad(Isa, const DepthwiseConv2d&, const float*, const float*, float*, void*, int);
template void depthwise_conv2d_dgrad(Isa, const DepthwiseConv2d&, const double*, const double*, double*, void*, int);
template void depthwise_conv2d_wgrad(Isa, const DepthwiseConv2d&, const float*, const float*, float*, void*, int);
template void depthwise_conv2d_wgrad(Isa, const DepthwiseConv2d&, const double*, const double*, double*, void*, int);

}  // namespace spos
