// The avx512 body of depthwise_conv2d.h.
#if defined(__x86_64__)

#include "core/simd_avx512.h"
#include "cpu/depthwise_conv2d_wgrad.inl"

namespace spos {

DepthwiseBody<float> depthwise_body_avx512() { return {Avx512F32::lanes, rows_pass<Avx512F32>, wgrad_pass<Avx512F32>}; }

}  // namespace spos

#endif
