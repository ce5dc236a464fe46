// The portable bodies of fake_quantize.h.
#include "core/simd_portable.h"
#include "cpu/fake_quantize.inl"

namespace spos {

template <typename T>
FakeQuantizeBody<T> fake_quantize_body_portable() {
    return fake_quantize_body<Vector128<T>>();
}

template FakeQuantizeBody<float> fake_quantize_body_portable();
template FakeQuantizeBody<double> fake_quantize_body_portable();

}  // namespace spos
