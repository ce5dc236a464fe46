// CUDA's own names for what threads do together or what is counted, and ptx::, in the emulator. Include device.h.
#pragma once

#include "cuda_emulation/emulated.h"

inline void __syncthreads(int line = __builtin_LINE()) {
    cuda_emulation::block_barrier(cuda_emulation::Barrier::plain, 0, line);
}
inline int __syncthreads_count(int predicate, int line = __builtin_LINE()) {
    return cuda_emulation::block_barrier(cuda_emulation::Barrier::count, predicate, line);
}
inline int __syncthreads_and(int predicate, int line = __builtin_LINE()) {
    return cuda_emulation::block_barrier(cuda_emulation::Barrier::all, predicate, line);
}
inline int __syncthreads_or(int predicate, int line = __builtin_LINE()) {
    return cuda_emulation::block_barrier(cuda_emulation::Barrier::any, predicate, line);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
    cuda_emulation::warp_barrier(mask, line);
}
inline void __threadfence() { cuda_emulation::fence(); }
inline void __threadfence_block() {}  // orders nothing by itself that is checked here

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, int line = __builtin_LINE()) {
    using namespace cuda_emulation;
    return from_bits<T>(shuffle(Shuffle::index, mask, to_bits(value), lane, width, line));
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
    using namespace cuda_emulation;
    return from_bits<T>(shuffle(Shuffle::up, mask, to_bits(value), static_cast<int>(delta), width, line));
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
    using namespace cuda_emulation;
    return from_bits<T>(shuffle(Shuffle::down, mask, to_bits(value), static_cast<int>(delta), width, line));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, int line = __builtin_LINE()) {
    using namespace cuda_emulation;
    return from_bits<T>(shuffle(Shuffle::exclusive_or, mask, to_bits(value), lanes, width, line));
}

inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return cuda_emulation::vote(cuda_emulation::Vote::ballot, mask, predicate != 0, line);
}
inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return static_cast<int>(cuda_emulation::vote(cuda_emulation::Vote::all, mask, predicate != 0, line));
}
inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
    return static_cast<int>(cuda_emulation::vote(cuda_emulation::Vote::any, mask, predicate != 0, line));
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, int line = __builtin_LINE()) {
    return cuda_emulation::match(cuda_emulation::Match::any, mask, cuda_emulation::to_bits(value), line);
}
template <typename T>
unsigned __match_all_sync(unsigned mask, T value, int* all_equal, int line = __builtin_LINE()) {
    const uint32_t lanes =
        cuda_emulation::match(cuda_emulation::Match::all, mask, cuda_emulation::to_bits(value), line);
    *all_equal = lanes != 0;
    return lanes;
}

#define EMULATED_REDUCTION(name, Type, kind)                                                                    \
    inline Type name(unsigned mask, Type value, int line = __builtin_LINE()) {                                  \
        return static_cast<Type>(                                                                               \
            cuda_emulation::reduce(cuda_emulation::Reduction::kind, mask, static_cast<uint32_t>(value), line)); \
    }
EMULATED_REDUCTION(__reduce_add_sync, int, add)
EMULATED_REDUCTION(__reduce_add_sync, unsigned, add)
EMULATED_REDUCTION(__reduce_min_sync, int, minimum)
EMULATED_REDUCTION(__reduce_min_sync, unsigned, unsigned_minimum)
EMULATED_REDUCTION(__reduce_max_sync, int, maximum)
EMULATED_REDUCTION(__reduce_max_sync, unsigned, unsigned_maximum)
EMULATED_REDUCTION(__reduce_and_sync, unsigned, bit_and)
EMULATED_REDUCTION(__reduce_or_sync, unsigned, bit_or)
EMULATED_REDUCTION(__reduce_xor_sync, unsigned, bit_xor)
#undef EMULATED_REDUCTION

#define EMULATED_ATOMIC(name, Type, kind)                                                                      \
    inline Type name(Type* address, Type value) {                                                              \
        return cuda_emulation::from_bits<Type>(cuda_emulation::atomic32(                                       \
            cuda_emulation::Atomic::kind, address, static_cast<uint32_t>(cuda_emulation::to_bits(value)), 0)); \
    }
EMULATED_ATOMIC(atomicAdd, int, add)
EMULATED_ATOMIC(atomicAdd, unsigned, add)
EMULATED_ATOMIC(atomicAdd, float, add_float)
EMULATED_ATOMIC(atomicExch, int, exchange)
EMULATED_ATOMIC(atomicExch, unsigned, exchange)
EMULATED_ATOMIC(atomicExch, float, exchange)
EMULATED_ATOMIC(atomicMin, int, minimum)
EMULATED_ATOMIC(atomicMin, unsigned, unsigned_minimum)
EMULATED_ATOMIC(atomicMax, int, maximum)
EMULATED_ATOMIC(atomicMax, unsigned, unsigned_maximum)
EMULATED_ATOMIC(atomicAnd, unsigned, bit_and)
EMULATED_ATOMIC(atomicOr, unsigned, bit_or)
EMULATED_ATOMIC(atomicXor, unsigned, bit_xor)
#undef EMULATED_ATOMIC
inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
    return cuda_emulation::atomic64(cuda_emulation::Atomic::add, address, value, 0);
}
inline int atomicCAS(int* address, int expected, int value) {
    return static_cast<int>(cuda_emulation::atomic32(cuda_emulation::Atomic::compare_exchange, address,
                                                     static_cast<uint32_t>(value), static_cast<uint32_t>(expected)));
}
inline unsigned atomicCAS(unsigned* address, unsigned expected, unsigned value) {
    return cuda_emulation::atomic32(cuda_emulation::Atomic::compare_exchange, address, value, expected);
}
inline unsigned long long atomicCAS(unsigned long long* address, unsigned long long expected,
                                    unsigned long long value) {
    return cuda_emulation::atomic64(cuda_emulation::Atomic::compare_exchange, address, value, expected);
}

template <typename T>
T __ldg(const T* address) {
    return *address;
}

inline int __dp4a(int a, int b, int sum) {
    cuda_emulation::count_dp4a();
    for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
    return sum;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
    cuda_emulation::count_dp4a();
    for (int i = 0; i < 4; ++i) sum += static_cast<uint8_t>(a >> (8 * i)) * static_cast<uint8_t>(b >> (8 * i));
    return sum;
}

namespace ptx {

inline uint32_t to_tf32(float value) {
    const uint32_t bits = cuda_emulation::bits_of(value);
    if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
    return (bits + 0x1000u) & ~0x1fffu;
}

template <int bytes>
void cp_async(void* shared, const void* global, int source_bytes = bytes) {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async copies 4, 8 or 16 bytes");
    cuda_emulation::cp_async(shared, global, bytes, source_bytes);
}
inline void cp_async_commit() { cuda_emulation::cp_async_commit(); }
template <int groups>
void cp_async_wait() {
    cuda_emulation::cp_async_wait(groups);
}

template <int count>
void ldmatrix(uint32_t (&to)[count], const void* row, int line = __builtin_LINE()) {
    static_assert(count == 1 || count == 2 || count == 4, "ldmatrix loads 1, 2 or 4 matrices");
    const cuda_emulation::Words4 words = cuda_emulation::ldmatrix(count, false, row, line);
    for (int i = 0; i < count; ++i) to[i] = words.word[i];
}
template <int count>
void ldmatrix_trans(uint32_t (&to)[count], const void* row, int line = __builtin_LINE()) {
    static_assert(count == 1 || count == 2 || count == 4, "ldmatrix loads 1, 2 or 4 matrices");
    const cuda_emulation::Words4 words = cuda_emulation::ldmatrix(count, true, row, line);
    for (int i = 0; i < count; ++i) to[i] = words.word[i];
}

template <typename Accumulator>
void mma(cuda_emulation::Product kind, Accumulator (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
         const Accumulator (&c)[4], int line) {
    using cuda_emulation::from_bits, cuda_emulation::to_bits;
    const auto word = [](Accumulator value) { return static_cast<uint32_t>(to_bits(value)); };
    const cuda_emulation::Words4 sum = cuda_emulation::mma(kind, {{a[0], a[1], a[2], a[3]}}, {{b[0], b[1]}},
                                                           {{word(c[0]), word(c[1]), word(c[2]), word(c[3])}}, line);
    for (int i = 0; i < 4; ++i) d[i] = from_bits<Accumulator>(sum.word[i]);
}
#define EMULATED_MMA(name, kind, Accumulator)                                                                      \
    inline void name(Accumulator(&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Accumulator(&c)[4], \
                     int line = __builtin_LINE()) {                                                                \
        mma(cuda_emulation::Product::kind, d, a, b, c, line);                                                      \
    }
EMULATED_MMA(mma_m16n8k16_f16, f16, float)
EMULATED_MMA(mma_m16n8k16_bf16, bf16, float)
EMULATED_MMA(mma_m16n8k8_tf32, tf32, float)
EMULATED_MMA(mma_m16n8k32_s8, s8, int32_t)
EMULATED_MMA(mma_m16n8k32_u8s8, u8s8, int32_t)
EMULATED_MMA(mma_m16n8k64_s4, s4, int32_t)
EMULATED_MMA(mma_m16n8k64_u4s4, u4s4, int32_t)
EMULATED_MMA(mma_m16n8k256_b1, b1, int32_t)
#undef EMULATED_MMA

}  // namespace ptx
