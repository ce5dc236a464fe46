// The avx512 body of sliced_conv2d_body.h.
#if defined(__x86_64__)

#include "core/simd_avx512.h"
#include "cpu/sliced_conv2d.inl"

namespace spos {

SlicedConv2dBody<float> sliced_conv2d_body_avx512() { return make_sliced_conv2d_body<Avx512F32>(); }

}  // namespace spos

#endif
