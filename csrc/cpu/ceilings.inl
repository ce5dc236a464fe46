// One thread's part of ceilings.h for a vector type; included by the file of each instruction set.

namespace spos {
namespace {

constexpr int chains = 12;  // above latency (4-5 cycles) x throughput (2 a cycle), and in 16 registers

template <typename Vector>
float fma_rounds(int64_t iterations) {
    typename Vector::Value sums[chains];
    float start[chains + Vector::lanes];  // every chain starts elsewhere: the compiler would keep one of equal ones
    for (int i = 0; i < chains + Vector::lanes; ++i) start[i] = 0.25f + 1e-3f * static_cast<float>(i);
    const auto factor = Vector::load(start), term = Vector::load(start + 1);
    SPOS_UNROLL
    for (int i = 0; i < chains; ++i) sums[i] = Vector::load(start + i);
    for (int64_t round = 0; round < iterations; ++round) {
        SPOS_UNROLL
        for (int i = 0; i < chains; ++i) sums[i] = Vector::multiply_add(sums[i], factor, term);
    }
    SPOS_UNROLL
    for (int i = 1; i < chains; ++i) sums[0] = Vector::add(sums[0], sums[i]);
    float result[Vector::lanes];
    Vector::store(result, sums[0]);
    return result[0];
}

template <typename Vector>
float load_rounds(int64_t iterations) {
    constexpr int rows = 16;  // 12 KiB of zmm vectors: well inside the first-level cache
    alignas(64) float memory[rows * chains * Vector::lanes];
    for (float& value : memory) value = 1e-3f;
    typename Vector::Value sums[chains];
    const auto factor = Vector::load(memory);
    SPOS_UNROLL
    for (int i = 0; i < chains; ++i) sums[i] = Vector::zero();
    for (int64_t round = 0; round < iterations; ++round) {
        const float* row = memory + round % rows * chains * Vector::lanes;
        SPOS_UNROLL
        for (int i = 0; i < chains; ++i)
            sums[i] = Vector::multiply_add(Vector::load(row + i * Vector::lanes), factor, sums[i]);
    }
    SPOS_UNROLL
    for (int i = 1; i < chains; ++i) sums[0] = Vector::add(sums[0], sums[i]);
    float result[Vector::lanes];
    Vector::store(result, sums[0]);
    return result[0];
}

template <typename Vector>
CeilingBody ceiling_body() {
    return {2.0 * chains * Vector::lanes, fma_rounds<Vector>, load_rounds<Vector>};
}

}  // namespace
}  // namespace spos
