// The portable body of sliced_conv2d_body.h, and the choice among the bodies.
#include <type_traits>

#include "core/simd_portable.h"
#include "cpu/sliced_conv2d.inl"

namespace spos {

template <typename T>
SlicedConv2dBody<T> sliced_conv2d_body([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
    if constexpr (std::is_same_v<T, float>) {
        if (isa >= Isa::avx512) return sliced_conv2d_body_avx512();
        if (isa == Isa::avx2) return sliced_conv2d_body_avx2();
    }
#endif
    return make_sliced_conv2d_body<Vector128<T>>();
}

template SlicedConv2dBody<float> sliced_conv2d_body(Isa);
template SlicedConv2dBody<double> sliced_conv2d_body(Isa);

}  // namespace spos
