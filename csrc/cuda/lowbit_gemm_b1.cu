// The tensor-core kernel for bit planes: weights of 1 and 2 bits, eight times as many products an instruction as of
// bytes, for each pair of planes. Small tiles alone: the registers of large ones do not suffice for two planes' words.
// Empty from sm_100 on, where the compiler would make eight products of bytes of one.
#include "cuda/lowbit_bodies.cuh"
#include "cuda/lowbit_gemm.cuh"

namespace spos::cuda {

int lowbit_gemm_b1(const LowbitProduct& product, cudaStream_t stream) {
    return launch_lowbit_gemm<LowbitBody::b1, 32>(product, stream);
}

}  // namespace spos::cuda
