// The portable body of sgd.h, the choice among the bodies, and the pass over the pieces.
#include <type_traits>

#include "core/parallel.h"
#include "core/simd_portable.h"
#include "cpu/sgd.inl"

namespace spos {
namespace {

template <typename T>
SgdBody<T> sgd_body([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
    if constexpr (std::is_same_v<T, float>) {
        if (isa >= Isa::avx512) return sgd_body_avx512();
        if (isa == Isa::avx2) return sgd_body_avx2();
    }
#endif
    return sgd_piece<Vector128<T>>;
}

}  // namespace

template <typename T>
void sgd_step(Isa isa, const SgdPiece<T>* pieces, int64_t count, int threads) {
    const SgdBody<T> body = sgd_body<T>(isa);
    parallel_for(count, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) body(pieces[i]);
    });
}

template void sgd_step(Isa, const SgdPiece<float>*, int64_t, int);
template void sgd_step(Isa, const SgdPiece<double>*, int64_t, int);

}  // namespace spos
