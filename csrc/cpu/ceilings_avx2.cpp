// The avx2 body of ceilings.h.
#if defined(__x86_64__)

#include "core/simd_avx2.h"
#include "core/unroll.h"
#include "cpu/ceilings_body.h"

#include "cpu/ceilings.inl"

namespace spos {

CeilingBody ceiling_body_avx2() { return ceiling_body<Avx2F32>(); }

}  // namespace spos

#endif
