// The portable body of gemm_body.h, and the choice among the bodies.
#include <type_traits>

#include "core/simd_portable.h"
#include "cpu/gemm.inl"

namespace spos {

template <typename T>
GemmBody<T> gemm_body([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
    if constexpr (std::is_same_v<T, float>) {
        if (isa >= Isa::avx512) return gemm_body_avx512();
        if (isa == Isa::avx2) return gemm_body_avx2();
    }
#endif
    return make_gemm_body<Vector128<T>>();
}

template GemmBody<float> gemm_body(Isa);
template GemmBody<double> gemm_body(Isa);

}  // namespace spos
