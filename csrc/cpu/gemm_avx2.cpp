// The avx2 body of gemm_body.h.
#if defined(__x86_64__)

#include "core/simd_avx2.h"
#include "cpu/gemm.inl"

namespace spos {

GemmBody<float> gemm_body_avx2() { return make_gemm_body<Avx2F32>(); }

}  // namespace spos

#endif
