// Depthwise convolution: the three passes, from the bodies and the layout of depthwise_layout.h.
#include "cpu/depthwise_conv2d.h"

#include "cpu/depthwise_layout.h"

namespace spos {
namespace {

template <typename T>
Plane<T> input_plane(const DepthwiseConv2d& shape, T* data) {
    return {data, shape.x_n, shape.x_h, shape.x_w, shape.in_height, shape.in_width};
}

template <typename T>
Plane<T> output_plane(const DepthwiseConv2d& shape, T* data) {
    return {data, shape.y_n, shape.y_h, shape.y_w, shape.out_height, shape.out_width};
}

// How wgrad is cut into tasks: by the shape alone, since the cut decides the order of the additions.
struct WgradCut {
    int64_t parts, groups;
};

// Eight tasks feed eight threads and leave little to combine. Whole pixels are the better memory pattern; but where x
// and dy stay in cache and channels are many, zeroing and combining eight sets of sums would cost more than the
// pattern.
WgradCut wgrad_cut(const DepthwiseConv2d& shape, size_t element_size) {
    constexpr int64_t in_cache = 4 << 20, many_channels = 128;
    const int64_t pixels = shape.batch * (shape.in_height * shape.in_width + shape.out_height * shape.out_width);
    const int64_t bytes = pixels * shape.channels * static_cast<int64_t>(element_size);
    return bytes <= in_cache && shape.channels >= many_channels ? WgradCut{4, 2} : WgradCut{8, 1};
}

}  // namespace

size_t depthwise_conv2d_workspace(const DepthwiseConv2d& shape, Pass pass, size_t element_size) {
    const size_t taps = static_cast<size_t>(shape.kernel) * shape.kernel;
    const size_t weights = taps * static_cast<size_t>(shape.channels + widest_depthwise_lanes - 1) * element_size;
    return pass == Pass::wgrad ? weights * static_cast<size_t>(wgrad_cut(shape, element_size).parts) : weights;
}

template <typename T>
void depthwise_conv2d_forward(Isa isa, const DepthwiseConv2d& shape, const T* x, const T* weight, T* y, void* workspace,
                              int threads) {
    const DepthwiseBody<T> body = choose_depthwise_body<T>(isa, shape.channels);
    T* const packed = static_cast<T*>(workspace);
    pack_depthwise_weight(weight, shape.channels, shape.kernel * shape.kernel, body.lanes, false, packed);
    body.rows({input_plane(shape, x), output_plane(shape, y), packed, shape.batch, shape.channels, shape.kernel,
               shape.padding, shape.stride == 1 ? Reach::same : Reach::down},
              threads);
}

template <typename T>
void depthwise_conv2d_dgrad(Isa isa, const DepthwiseConv2d& shape, const T* dy, const T* weight, T* dx, void* workspace,
                            int threads) {
    const DepthwiseBody<T> body = choose_depthwise_body<T>(isa, shape.channels);
    T* const packed = static_cast<T*>(workspace);
    const bool flip = shape.stride == 1;  // at stride 1, dgrad is the forward pass of dy with the taps turned round
    pack_depthwise_weight(weight, shape.channels, shape.kernel * shape.kernel, body.lanes, flip, packed);
    body.rows({output_plane(shape, dy), input_plane(shape, dx), packed, shape.batch, shape.channels, shape.kernel,
               flip ? shape.kernel - 1 - shape.padding : shape.padding, flip ? Reach::same : Reach::up},
              threads);
}

template <typename T>
void depthwise_conv2d_wgrad(Isa isa, const DepthwiseConv2d& shape, const T* x, const T* dy, T* dweight, void* workspace,
                            int threads) {
    const DepthwiseBody<T> body = choose_depthwise_body<T>(isa, shape.channels);
    const int lanes = body.lanes, taps = shape.kernel * shape.kernel;
    const WgradCut cut = wgrad_cut(shape, sizeof(T));
    T* const partial = static_cast<T*>(workspace);
    body.wgrad({input_plane(shape, x), output_plane(shape, dy), partial, shape.batch, shape.channels, shape.kernel,
                shape.stride, shape.padding, cut.parts, cut.groups},
               threads);
    combine_depthwise_partials(partial, cut.parts, shape.channels, taps, lanes, dweight, threads);
}

template void depthwise_conv2d_forward(Isa, const DepthwiseConv2d&, const float*, const float*, float*, void*, int);
template void depthwise_conv2d_forward(Isa, const DepthwiseConv2d&, const double*, const double*, double*, void*, int);
template void depthwise_conv2d_dgrad(Isa, const DepthwiseConv2d&, const float*, const float*, float*, void*, int);
template void depthwise_conv2d_dgrad(Isa, const DepthwiseConv2d&, const double*, const double*, double*, void*, int);
template void depthwise_conv2d_wgrad(Isa, const DepthwiseConv2d&, const float*, const float*, float*, void*, int);
template void depthwise_conv2d_wgrad(Isa, const DepthwiseConv2d&, const double*, const double*, double*, void*, int);

}  // namespace spos
