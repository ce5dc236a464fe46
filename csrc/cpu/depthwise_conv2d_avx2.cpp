// The avx2 body of depthwise_conv2d.h.
#if defined(__x86_64__)

#include "core/simd_avx2.h"
#include "cpu/depthwise_conv2d_wgrad.inl"

namespace spos {

DepthwiseBody<float> depthwise_body_avx2() { return {Avx2F32::lanes, rows_pass<Avx2F32>, wgrad_pass<Avx2F32>}; }

}  // namespace spos

#endif
