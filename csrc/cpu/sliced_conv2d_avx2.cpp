// The avx2 body of sliced_conv2d_body.h.
#if defined(__x86_64__)

#include "core/simd_avx2.h"
#include "cpu/sliced_conv2d.inl"

namespace spos {

SlicedConv2dBody<float> sliced_conv2d_body_avx2() { return make_sliced_conv2d_body<Avx2F32>(); }

}  // namespace spos

#endif
