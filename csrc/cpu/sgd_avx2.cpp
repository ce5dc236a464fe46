// The avx2 body of sgd.h.
#if defined(__x86_64__)

#include "core/simd_avx2.h"
#include "cpu/sgd.inl"

namespace spos {

SgdBody<float> sgd_body_avx2() { return sgd_piece<Avx2F32>; }

}  // namespace spos

#endif
