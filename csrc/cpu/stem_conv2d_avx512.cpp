// The avx512 body of stem_conv2d.h.
#if defined(__x86_64__)

#include <immintrin.h>

#include "cpu/stem_conv2d.inl"

namespace spos {
namespace {

struct StemAvx512 {
    static constexpr int lanes = 8, tile = 12;
    using Value = __m512d;

    static Value zero() { return _mm512_setzero_pd(); }
    static Value load(const double* from) { return _mm512_loadu_pd(from); }
    static void store(double* to, Value value) { _mm512_storeu_pd(to, value); }
    static Value broadcast(const double* from) { return _mm512_set1_pd(*from); }
    static Value add(Value a, Value b) { return _mm512_add_pd(a, b); }
    static Value multiply(Value a, Value b) { return _mm512_mul_pd(a, b); }
    static Value relu(Value value) { return _mm512_mask_max_pd(value, 0xff, zero(), value); }  // NaN too
    static Value multiply_add(Value a, Value b, Value c) { return _mm512_fmadd_pd(a, b, c); }
};

}  // namespace

StemBody stem_body_avx512() { return make_stem_body<StemAvx512>(); }

}  // namespace spos

#endif
