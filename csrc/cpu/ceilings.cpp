#include "cpu/ceilings.h"

#include "core/parallel.h"
#include "core/simd_portable.h"
#include "core/unroll.h"
#include "cpu/ceilings_body.h"

#include "cpu/ceilings.inl"

namespace spos {

double run_ceiling(Ceiling ceiling, Isa isa, int64_t iterations, int threads) {
    CeilingBody body = ceiling_body<Vector128<float>>();
#if defined(__x86_64__)
    if (ceiling == Ceiling::tiles) {
        parallel_for(threads, threads, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) tile_rounds(iterations);
        });
        return tile_rounds(1) * static_cast<double>(iterations) * threads;
    }
    if (isa == Isa::avx2) body = ceiling_body_avx2();
    if (isa >= Isa::avx512) body = ceiling_body_avx512();
#else
    (void)isa;
#endif
    parallel_for(threads, threads, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            volatile float keep = ceiling == Ceiling::fma ? body.fma(iterations) : body.load(iterations);
            (void)keep;
        }
    });
    return body.operations * static_cast<double>(iterations) * threads;
}

}  // namespace spos
