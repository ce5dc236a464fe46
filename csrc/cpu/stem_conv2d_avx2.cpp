// The avx2 body of stem_conv2d.h.
#if defined(__x86_64__)

#include <immintrin.h>

#include "cpu/stem_conv2d.inl"

namespace spos {
namespace {

struct StemAvx2 {
    static constexpr int lanes = 4, tile = 6;
    using Value = __m256d;

    static Value zero() { return _mm256_setzero_pd(); }
    static Value load(const double* from) { return _mm256_loadu_pd(from); }
    static void store(double* to, Value value) { _mm256_storeu_pd(to, value); }
    static Value broadcast(const double* from) { return _mm256_broadcast_sd(from); }
    static Value add(Value a, Value b) { return _mm256_add_pd(a, b); }
    static Value multiply(Value a, Value b) { return _mm256_mul_pd(a, b); }
    static Value relu(Value value) { return _mm256_max_pd(zero(), value); }  // NaN stays NaN
    static Value multiply_add(Value a, Value b, Value c) { return _mm256_fmadd_pd(a, b, c); }
};

}  // namespace

StemBody stem_body_avx2() { return make_stem_body<StemAvx2>(); }

}  // namespace spos

#endif
