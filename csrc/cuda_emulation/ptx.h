// The half of device.h that nvcc reads. Include device.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#define SHARED_ARRAY(type, name, extents) __shared__ type name extents

// One name for all kernels of a translation unit, as extern arrays of one name must have one type.
#define DYNAMIC_SHARED(type, name)                                         \
    extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[]; \
    type* const name = reinterpret_cast<type*>(dynamic_shared_bytes)

namespace device {

// Starts the kernel; what went wrong with the start is returned, what goes wrong later is the stream's.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   Arguments... arguments) {
    constexpr size_t without_asking = 48 * 1024;
    if (shared_bytes > without_asking) {
        const cudaError_t error =
            cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
        if (error != cudaSuccess) return error;
    }
    kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(arguments)...);
    return cudaGetLastError();
}

// What a block can have at most, static and dynamic, on the current device.
inline size_t most_shared_bytes() {
    int device = 0, bytes = 0;
    const bool known = cudaGetDevice(&device) == cudaSuccess &&
                       cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess;
    return known ? static_cast<size_t>(bytes) : size_t{48} * 1024;
}

}  // namespace device

namespace ptx {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// `value` rounded to tf32, to nearest with ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float value) {
    uint32_t rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(value));
    return rounded;
}

// Copies `source_bytes` of `bytes` = 4, 8 or 16 and fills the rest with zeros.
template <int bytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, int source_bytes = bytes) {
    static_assert(bytes == 4 || bytes == 8 || bytes == 16, "cp.async copies 4, 8 or 16 bytes");
    if constexpr (bytes == 16)  // past the first-level cache, which only this size can
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                     "r"(source_bytes)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)), "l"(global),
                     "n"(bytes), "r"(source_bytes)
                     : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until at most `groups` of this thread's committed groups are under way.
template <int groups>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

// Loads `count` = 1, 2 or 4 matrices of 8 rows of 16 bytes. Lane 8 * m + i passes row i of matrix m.
template <int count>
__device__ __forceinline__ void ldmatrix(uint32_t (&to)[count], const void* row) {
    static_assert(count == 1 || count == 2 || count == 4, "ldmatrix loads 1, 2 or 4 matrices");
    const uint32_t address = shared_address(row);
    if constexpr (count == 1)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(to[0]) : "r"(address) : "memory");
    else if constexpr (count == 2)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(to[0]), "=r"(to[1])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address)
                     : "memory");
}

// The same, each matrix of 16-bit elements transposed.
template <int count>
__device__ __forceinline__ void ldmatrix_trans(uint32_t (&to)[count], const void* row) {
    static_assert(count == 1 || count == 2 || count == 4, "ldmatrix loads 1, 2 or 4 matrices");
    const uint32_t address = shared_address(row);
    if constexpr (count == 1)
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                     : "=r"(to[0])
                     : "r"(address)
                     : "memory");
    else if constexpr (count == 2)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(to[0]), "=r"(to[1])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address)
                     : "memory");
}

// d = a * b + c for one warp.
#define PTX_MMA(name, instruction, Accumulator, constraint)                                                   \
    __device__ __forceinline__ void name(Accumulator(&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],  \
                                         const Accumulator(&c)[4]) {                                          \
        asm volatile("mma.sync.aligned." instruction                                                          \
                     " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"                   \
                     : "=" constraint(d[0]), "=" constraint(d[1]), "=" constraint(d[2]), "=" constraint(d[3]) \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), constraint(c[0]),    \
                       constraint(c[1]), constraint(c[2]), constraint(c[3]));                                 \
    }
PTX_MMA(mma_m16n8k16_f16, "m16n8k16.row.col.f32.f16.f16.f32", float, "f")
PTX_MMA(mma_m16n8k16_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32", float, "f")
PTX_MMA(mma_m16n8k8_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32", float, "f")
PTX_MMA(mma_m16n8k32_s8, "m16n8k32.row.col.s32.s8.s8.s32", int32_t, "r")
PTX_MMA(mma_m16n8k32_u8s8, "m16n8k32.row.col.s32.u8.s8.s32", int32_t, "r")
// Instructions of their own on sm_80 to sm_89 only; the compiler emulates s4 from sm_90 on, b1 from sm_100 on.
PTX_MMA(mma_m16n8k64_s4, "m16n8k64.row.col.s32.s4.s4.s32", int32_t, "r")
PTX_MMA(mma_m16n8k64_u4s4, "m16n8k64.row.col.s32.u4.s4.s32", int32_t, "r")
PTX_MMA(mma_m16n8k256_b1, "m16n8k256.row.col.s32.b1.b1.s32.and.popc", int32_t, "r")
#undef PTX_MMA

}  // namespace ptx
