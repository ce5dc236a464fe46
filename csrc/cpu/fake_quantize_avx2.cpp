// The avx2 body of fake_quantize.h.
#if defined(__x86_64__)

#include "core/simd_avx2.h"
#include "cpu/fake_quantize.inl"

namespace spos {

FakeQuantizeBody<float> fake_quantize_body_avx2() { return fake_quantize_body<Avx2F32>(); }

}  // namespace spos

#endif
