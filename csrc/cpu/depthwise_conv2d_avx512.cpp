// The avx512 body of depthwise_conv2d.h.
#if defined(__x86_64__)

#include "core/parallel.h"
#include "core/simd_avx512.h"
#include "core/unroll.h"
#include "cpu/depthwise_conv2d_body.h"

#include "cpu/depthwise_conv2d_rows.inl"
#include "cpu/depthwise_conv2d_wgrad.inl"

namespace spos {

DepthwiseBody<float> depthwise_body_avx512() { return {Avx512F32::lanes, rows_pass<Avx512F32>, wgrad_pass<Avx512F32>}; }

}  // namespace spos

#endif
