// The avx512 body of sgd.h.
#if defined(__x86_64__)

#include "core/simd_avx512.h"
#include "cpu/sgd.inl"

namespace spos {

SgdBody<float> sgd_body_avx512() { return sgd_piece<Avx512F32>; }

}  // namespace spos

#endif
