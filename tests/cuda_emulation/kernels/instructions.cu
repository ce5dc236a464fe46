// Each instruction of a warp as a kernel of its own: what goes in and what comes out is in global memory, by lane.
#include "cuda_emulation/device.h"

namespace {

template <typename Accumulator, typename Multiply>
__device__ void multiply(const uint32_t* a, const uint32_t* b, const Accumulator* c, Accumulator* d,
                         const Multiply& product) {
    const int lane = threadIdx.x;
    uint32_t a_registers[4], b_registers[2];
    Accumulator c_registers[4], d_registers[4];
    for (int i = 0; i < 4; ++i) a_registers[i] = a[4 * lane + i];
    for (int i = 0; i < 2; ++i) b_registers[i] = b[2 * lane + i];
    for (int i = 0; i < 4; ++i) c_registers[i] = c[4 * lane + i];
    product(d_registers, a_registers, b_registers, c_registers);
    for (int i = 0; i < 4; ++i) d[4 * lane + i] = d_registers[i];
}

#define PRODUCT_KERNEL(name, Accumulator)                                                                          \
    __global__ void name##_kernel(const uint32_t* a, const uint32_t* b, const Accumulator* c, Accumulator* d) {    \
        multiply(a, b, c, d, [](auto& d, const auto& a, const auto& b, const auto& c) { ptx::name(d, a, b, c); }); \
    }
PRODUCT_KERNEL(mma_m16n8k16_f16, float)
PRODUCT_KERNEL(mma_m16n8k16_bf16, float)
PRODUCT_KERNEL(mma_m16n8k8_tf32, float)
PRODUCT_KERNEL(mma_m16n8k32_s8, int32_t)
PRODUCT_KERNEL(mma_m16n8k32_u8s8, int32_t)
PRODUCT_KERNEL(mma_m16n8k64_s4, int32_t)
PRODUCT_KERNEL(mma_m16n8k64_u4s4, int32_t)
PRODUCT_KERNEL(mma_m16n8k256_b1, int32_t)

// Rows of 16 bytes, `pitch` bytes apart, go to shared memory; each lane names one and gets `count` registers.
template <int count, bool transposed>
__global__ void ldmatrix_kernel(const uint4* rows, uint32_t* out, int pitch) {
    DYNAMIC_SHARED(char, buffer);
    const int lane = threadIdx.x;
    if (lane < 8 * count) *reinterpret_cast<uint4*>(buffer + lane * pitch) = rows[lane];
    __syncthreads();
    uint32_t registers[count];
    const char* const row = buffer + lane % (8 * count) * pitch;
    if constexpr (transposed)
        ptx::ldmatrix_trans(registers, row);
    else
        ptx::ldmatrix(registers, row);
    for (int i = 0; i < count; ++i) out[count * lane + i] = registers[i];
}

// The lanes of `mask` do every collective with it, the others do nothing. Results: how_many values by lane.
constexpr int how_many = 21;
__global__ void collectives_kernel(const int* values, unsigned mask, int operand, int width, int* results) {
    const int lane = threadIdx.x;
    if (!(mask >> lane & 1)) return;
    const int value = values[lane];
    const unsigned bits = static_cast<unsigned>(value);
    int* const to = results + how_many * lane;
    to[0] = __shfl_sync(mask, value, operand, width);
    to[1] = __shfl_up_sync(mask, value, static_cast<unsigned>(operand), width);
    to[2] = __shfl_down_sync(mask, value, static_cast<unsigned>(operand), width);
    to[3] = __shfl_xor_sync(mask, value, operand, width);
    to[4] = static_cast<int>(__ballot_sync(mask, value & 1));
    to[5] = __all_sync(mask, value & 1);
    to[6] = __any_sync(mask, value & 1);
    to[7] = __reduce_add_sync(mask, value);
    to[8] = __reduce_min_sync(mask, value);
    to[9] = __reduce_max_sync(mask, value);
    to[10] = static_cast<int>(__reduce_min_sync(mask, bits));
    to[11] = static_cast<int>(__reduce_max_sync(mask, bits));
    to[12] = static_cast<int>(__reduce_and_sync(mask, bits));
    to[13] = static_cast<int>(__reduce_or_sync(mask, bits));
    to[14] = static_cast<int>(__reduce_xor_sync(mask, bits));
    to[15] = static_cast<int>(__match_any_sync(mask, value));
    int all_equal;
    to[16] = static_cast<int>(__match_all_sync(mask, value, &all_equal));
    to[17] = all_equal;
    to[18] = static_cast<int>(__match_all_sync(mask, value - value, &all_equal));
    to[19] = all_equal;
    const double wide = __shfl_sync(mask, value + 0.5, operand, width);  // 8 bytes
    to[20] = static_cast<int>(2 * wide);
    __syncwarp(mask);
}

// Every thread of every block adds to, exchanges and compares with the same few words.
__global__ void atomics_kernel(int* words, float* sum) {
    const int number = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    atomicAdd(&words[0], number);
    atomicMax(&words[1], number);
    atomicMin(&words[2], -number);
    atomicExch(&words[3], number);
    int seen = words[0] * 0, expected;
    do {  // doubles modulo a prime, once for each thread
        expected = seen;
        seen = atomicCAS(&words[4], expected, expected * 2 % 10007);
    } while (seen != expected);
    atomicOr(reinterpret_cast<unsigned*>(&words[5]), 1u << (number % 32));
    atomicAdd(sum, 0.25f);
    SHARED_ARRAY(int, count, [1]);
    if (threadIdx.x == 0) count[0] = 0;
    __syncthreads();
    atomicAdd(&count[0], 1);
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(&words[6], count[0]);
    atomicAdd(&words[7], __syncthreads_count(static_cast<int>(threadIdx.x % 3 == 0)));
    atomicAdd(&words[8], __syncthreads_or(static_cast<int>(threadIdx.x == 5)));
    atomicAdd(&words[9], __syncthreads_and(static_cast<int>(threadIdx.x != 5)));
}

// out = in through shared memory in chunks of `bytes`, the last `missing` bytes of each filled with zeros.
template <int bytes>
__global__ void async_copy_kernel(const char* in, char* out, int missing) {
    SHARED_ARRAY(uint4, buffer, [64]);
    char* const chunk = reinterpret_cast<char*>(buffer) + threadIdx.x * bytes;
    ptx::cp_async<bytes>(chunk, in + threadIdx.x * bytes, bytes - missing);
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    for (int i = 0; i < bytes; ++i) out[threadIdx.x * bytes + i] = chunk[i];
}

__global__ void conversions_kernel(const float* in, uint16_t* halves, uint16_t* bfloats, uint32_t* tf32, float* back,
                                   int count) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count) return;
    const __half half = __float2half_rn(in[i]);
    const __nv_bfloat16 bfloat = __float2bfloat16_rn(in[i]);
    *reinterpret_cast<__half*>(&halves[i]) = half;
    *reinterpret_cast<__nv_bfloat16*>(&bfloats[i]) = bfloat;
    tf32[i] = ptx::to_tf32(in[i]);
    back[2 * i] = __half2float(half);
    back[2 * i + 1] = __bfloat162float(bfloat);
}

__global__ void integer_kernel(const unsigned* in, int* out) {
    const int i = static_cast<int>(threadIdx.x);
    const unsigned x = in[i], y = in[i + 1];
    out[4 * i] = __dp4a(static_cast<int>(x), static_cast<int>(y), 7);
    out[4 * i + 1] = static_cast<int>(__byte_perm(x, y, 0x6420));
    out[4 * i + 2] = __popc(x) + 100 * __clz(static_cast<int>(x)) + 10000 * __ffs(static_cast<int>(x));
    out[4 * i + 3] = static_cast<int>(__brev(x) ^ __funnelshift_r(x, y, 5));
}

// One load by a warp, of elements of its choice.
template <typename Vector>
__global__ void bank_kernel(const Vector* in, const int* offsets, Vector* out, int count) {
    DYNAMIC_SHARED(Vector, buffer);
    for (int i = threadIdx.x; i < count; i += 32) buffer[i] = in[i];
    __syncthreads();
    out[threadIdx.x] = buffer[offsets[threadIdx.x]];
}

// Lanes from 24 on have left when the others add up with a mask that names all.
__global__ void exited_lanes_kernel(int* out) {
    if (threadIdx.x % 32 >= 24) return;
    out[threadIdx.x] = __reduce_add_sync(0xffffffffu, 1);
    __syncwarp();
}

// Numbers the steps of all threads in the order in which they happen.
constexpr int steps = 20;
__global__ void arrivals_kernel(int* counter, int* arrivals) {
    const int number = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    for (int i = 0; i < steps; ++i) arrivals[number * steps + i] = atomicAdd(counter, 1);
}

__global__ void large_arrays_kernel(int* out) {
    SHARED_ARRAY(int, array, [10 * 1024]);
    array[threadIdx.x] = 1;
    out[threadIdx.x] = array[threadIdx.x];
}

}  // namespace

using Stream = cudaStream_t;

extern "C" {

#define PRODUCT_CALL(name, Accumulator)                                                          \
    int run_##name(const uint32_t* a, const uint32_t* b, const Accumulator* c, Accumulator* d) { \
        return device::launch(name##_kernel, dim3(1), dim3(32), 0, Stream(), a, b, c, d);        \
    }
PRODUCT_CALL(mma_m16n8k16_f16, float)
PRODUCT_CALL(mma_m16n8k16_bf16, float)
PRODUCT_CALL(mma_m16n8k8_tf32, float)
PRODUCT_CALL(mma_m16n8k32_s8, int32_t)
PRODUCT_CALL(mma_m16n8k32_u8s8, int32_t)
PRODUCT_CALL(mma_m16n8k64_s4, int32_t)
PRODUCT_CALL(mma_m16n8k64_u4s4, int32_t)
PRODUCT_CALL(mma_m16n8k256_b1, int32_t)

int run_ldmatrix(int count, int transposed, int pitch, const uint4* rows, uint32_t* out) {
    const auto run = [&](void (*kernel)(const uint4*, uint32_t*, int)) {
        return device::launch(kernel, dim3(1), dim3(32), static_cast<size_t>(32 * pitch), Stream(), rows, out, pitch);
    };
    switch (2 * count + transposed) {
        case 2:
            return run(ldmatrix_kernel<1, false>);
        case 3:
            return run(ldmatrix_kernel<1, true>);
        case 4:
            return run(ldmatrix_kernel<2, false>);
        case 5:
            return run(ldmatrix_kernel<2, true>);
        case 8:
            return run(ldmatrix_kernel<4, false>);
        default:
            return run(ldmatrix_kernel<4, true>);
    }
}

int run_collectives(const int* values, unsigned mask, int operand, int width, int* results) {
    return device::launch(collectives_kernel, dim3(1), dim3(32), 0, Stream(), values, mask, operand, width, results);
}

int run_atomics(int blocks, int threads, int* words, float* sum) {
    return device::launch(atomics_kernel, dim3(blocks), dim3(threads), 0, Stream(), words, sum);
}

int run_async_copy(int bytes, int missing, const char* in, char* out) {
    const auto kernel = bytes == 4 ? async_copy_kernel<4> : bytes == 8 ? async_copy_kernel<8> : async_copy_kernel<16>;
    return device::launch(kernel, dim3(1), dim3(64), 0, Stream(), in, out, missing);
}

int run_arrivals(int blocks, int threads, int* counter, int* arrivals) {
    return device::launch(arrivals_kernel, dim3(blocks), dim3(threads), 0, Stream(), counter, arrivals);
}

int run_large_arrays(int dynamic_bytes, int* out) {
    return device::launch(large_arrays_kernel, dim3(1), dim3(32), static_cast<size_t>(dynamic_bytes), Stream(), out);
}

int run_conversions(const float* in, uint16_t* halves, uint16_t* bfloats, uint32_t* tf32, float* back, int count) {
    return device::launch(conversions_kernel, dim3((count + 255) / 256), dim3(256), 0, Stream(), in, halves, bfloats,
                          tf32, back, count);
}

int run_integer(int count, const unsigned* in, int* out) {
    return device::launch(integer_kernel, dim3(1), dim3(count), 0, Stream(), in, out);
}

int run_bank(int bytes, int count, const void* in, const int* offsets, void* out) {
    const auto run = [&](auto element) {
        using Vector = decltype(element);
        return device::launch(bank_kernel<Vector>, dim3(1), dim3(32), sizeof(Vector) * count, Stream(),
                              static_cast<const Vector*>(in), offsets, static_cast<Vector*>(out), count);
    };
    return bytes == 4 ? run(float()) : bytes == 8 ? run(float2()) : run(float4());
}

int run_exited_lanes(int threads, int* out) {
    return device::launch(exited_lanes_kernel, dim3(1), dim3(threads), 0, Stream(), out);
}

}  // extern "C"
