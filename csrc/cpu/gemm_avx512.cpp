// The avx512 body of gemm_body.h.
#if defined(__x86_64__)

#include "core/simd_avx512.h"
#include "cpu/gemm.inl"

namespace spos {

GemmBody<float> gemm_body_avx512() { return make_gemm_body<Avx512F32>(); }

}  // namespace spos

#endif
