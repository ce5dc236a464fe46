// The portable bodies of depthwise_conv2d.h: 16-byte vectors, and single elements for tensors narrower than those.
#include "core/simd_portable.h"
#include "cpu/depthwise_conv2d_wgrad.inl"

namespace spos {

template <typename T>
DepthwiseBody<T> depthwise_body_portable() {
    return {Vector128<T>::lanes, rows_pass<Vector128<T>>, wgrad_pass<Vector128<T>>};
}

template <typename T>
DepthwiseBody<T> depthwise_body_scalar() {
    return {VectorOfOne<T>::lanes, rows_pass<VectorOfOne<T>>, wgrad_pass<VectorOfOne<T>>};
}

template DepthwiseBody<float> depthwise_body_portable();
template DepthwiseBody<double> depthwise_body_portable();
template DepthwiseBody<float> depthwise_body_scalar();
template DepthwiseBody<double> depthwise_body_scalar();

}  // namespace spos
