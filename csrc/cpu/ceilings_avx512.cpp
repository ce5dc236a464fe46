// The avx512 body of ceilings.h.
#if defined(__x86_64__)

#include "core/simd_avx512.h"
#include "core/unroll.h"
#include "cpu/ceilings_body.h"

#include "cpu/ceilings.inl"

namespace spos {

CeilingBody ceiling_body_avx512() { return ceiling_body<Avx512F32>(); }

}  // namespace spos

#endif
