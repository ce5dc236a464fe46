// The half of device.h that a C++ compiler for a CPU reads. Include device.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda_emulation/intrinsics.h"

// Flattened, because GCC does not instrument an aggregate that is passed to a call which remains one.
#define __global__ __attribute__((flatten))
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

// The array's address depends on the block, so it is asked for: `name##_site` stands for the declaration (for each
// instance of a template there is one) and is never read.
#define SHARED_ARRAY(type, name, extents) \
    static char name##_site;              \
    type(&name) extents =                 \
        *static_cast<type(*) extents>(cuda_emulation::shared_array(&name##_site, sizeof(type extents), alignof(type)))
#define DYNAMIC_SHARED(type, name) type* const name = static_cast<type*>(cuda_emulation::dynamic_shared())

#define threadIdx (cuda_emulation::thread_index())
#define blockIdx (cuda_emulation::block_index())
#define blockDim (cuda_emulation::block_extents())
#define gridDim (cuda_emulation::grid_extents())
constexpr int warpSize = 32;

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchFailure = 719 };
inline const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess                     ? "no error"
           : error == cudaErrorInvalidConfiguration ? "invalid configuration argument"
                                                    : "unspecified launch failure";
}

namespace cuda_emulation {

// A thread never becomes another one: the compiler may keep what these return.
uint3 thread_index() __attribute__((const));
uint3 block_index() __attribute__((const));
uint3 block_extents() __attribute__((const));
uint3 grid_extents() __attribute__((const));

void* shared_array(const void* site, size_t bytes, size_t alignment);
void* dynamic_shared();

// Fragments travel by value: an array whose address is passed on would be watched at each access.
struct Words2 {
    uint32_t word[2];
};
struct Words4 {
    uint32_t word[4];
};

enum class Barrier { plain, count, all, any };
enum class Shuffle { index, up, down, exclusive_or };
enum class Vote { ballot, all, any };
enum class Reduction { add, minimum, maximum, unsigned_minimum, unsigned_maximum, bit_and, bit_or, bit_xor };
enum class Match { any, all };
enum class Atomic {
    add,
    exchange,
    compare_exchange,
    minimum,
    maximum,
    unsigned_minimum,
    unsigned_maximum,
    bit_and,
    bit_or,
    bit_xor,
    add_float
};
enum class Product { f16, bf16, tf32, s8, u8s8, s4, u4s4, b1 };

// `line` is the caller's, so that threads that wait at two barriers are told from threads that wait at one.
int block_barrier(Barrier kind, int predicate, int line);
void warp_barrier(uint32_t mask, int line);
uint64_t shuffle(Shuffle kind, uint32_t mask, uint64_t value, int operand, int width, int line);
uint32_t vote(Vote kind, uint32_t mask, bool predicate, int line);
uint32_t reduce(Reduction kind, uint32_t mask, uint32_t value, int line);
uint32_t match(Match kind, uint32_t mask, uint64_t value, int line);
uint32_t atomic32(Atomic kind, void* address, uint32_t value, uint32_t expected);
uint64_t atomic64(Atomic kind, void* address, uint64_t value, uint64_t expected);
void fence();
void count_dp4a();
void cp_async(void* shared, const void* global, int bytes, int source_bytes);
void cp_async_commit();
void cp_async_wait(int groups);
Words4 ldmatrix(int count, bool transposed, const void* row, int line);
Words4 mma(Product kind, Words4 a, Words2 b, Words4 c, int line);

struct Kernel {
    const void* function;
    void (*run)(const void* arguments);
    const void* arguments;
    size_t argument_bytes;
    bool checked;
};
cudaError_t launch(const Kernel& kernel, dim3 grid, dim3 block, size_t shared_bytes);

#if defined(__SANITIZE_THREAD__)
constexpr bool hooks_present = true;
#else
constexpr bool hooks_present = false;
#endif

template <typename T>
uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_destructible_v<T>, "at most 8 bytes, as on the device");
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}
template <typename T>
T from_bits(uint64_t bits) {
    T value;
    std::memcpy(static_cast<void*>(&value), &bits, sizeof value);
    return value;
}

}  // namespace cuda_emulation

namespace device {

template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t,
                   Arguments... arguments) {
    using Call = std::tuple<void (*)(Parameters...), std::decay_t<Parameters>...>;
    const Call call(kernel, static_cast<Parameters>(arguments)...);
    const auto run = [](const void* stored) {
        std::apply([](auto function, const auto&... values) { function(values...); },
                   *static_cast<const Call*>(stored));
    };
    return cuda_emulation::launch(
        {reinterpret_cast<const void*>(kernel), run, &call, sizeof call, cuda_emulation::hooks_present}, grid, block,
        shared_bytes);
}

// What a block can have at most: that of the architecture that the kernels are compiled as.
inline size_t most_shared_bytes() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1200
    return size_t{227} * 1024;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 800
    return size_t{163} * 1024;
#else
    return size_t{99} * 1024;
#endif
}

}  // namespace device

#include "cuda_emulation/collectives.h"
