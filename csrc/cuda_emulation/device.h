// What a kernel includes instead of CUDA's headers, and the only include it needs.
//
// Compiled by nvcc it is CUDA itself: SHARED_ARRAY declares a __shared__ array, ptx:: functions are one instruction of
// inline PTX each, device::launch is <<<>>>. Compiled by a C++17 compiler for a CPU it is the emulator: the same names,
// with the same meaning, as ordinary functions. Kernels keep CUDA's own spelling of everything that has one
// (threadIdx, __syncthreads, __shfl_xor_sync, atomicAdd, __half2float, float4 ...); four things have none that both
// compilers could read, and are spelled as follows.
//
//   SHARED_ARRAY(float, tile, [32][33]);         __shared__ float tile[32][33];
//   DYNAMIC_SHARED(float, buffer);               float* buffer = the dynamic shared memory of this launch
//   ptx::ldmatrix, ptx::mma_*, ptx::cp_async*    instructions of the tensor cores and of asynchronous copies
//   device::launch(kernel, grid, block, shared_bytes, stream, arguments...)  ->  cudaError_t
//
// Fragments (PTX ISA, "Matrix Fragments for mma"), for lane = 4 * group + position and registers of E elements, element
// 0 in the lowest bits: register r of a holds row group + 8 * (r % 2), columns E * (position + 4 * (r / 2)) onwards;
// register r of b holds column group, rows E * (position + 4 * r) onwards; c[i] and d[i] are row group + 8 * (i / 2),
// column 2 * position + i % 2.
#pragma once

#if defined(__CUDACC__)
#include "cuda_emulation/ptx.h"
#else
#include "cuda_emulation/emulated.h"
#endif
