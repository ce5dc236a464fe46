// The avx512 body of fake_quantize.h.
#if defined(__x86_64__)

#include "core/simd_avx512.h"
#include "cpu/fake_quantize.inl"

namespace spos {

FakeQuantizeBody<float> fake_quantize_body_avx512() { return fake_quantize_body<Avx512F32>(); }

}  // namespace spos

#endif
