// The tensor-core kernels for nibbles: 1 to 4 by 1 to 4 bits, twice as many products an instruction as of bytes. Empty
// from sm_90 on, where the compiler would make two products of bytes and 140 other instructions of one.
#include "cuda/lowbit_bodies.cuh"
#include "cuda/lowbit_gemm.cuh"

namespace spos::cuda {

int lowbit_gemm_s4(const LowbitProduct& product, int tile, cudaStream_t stream) {
    if (product.call.weight.scale_groups > 1) return launch_lowbit_gemm<LowbitBody::s4, 32, true>(product, stream);
    if (tile == 128) return launch_lowbit_gemm<LowbitBody::s4, 64>(product, stream);
    return launch_lowbit_gemm<LowbitBody::s4, 32>(product, stream);
}

}  // namespace spos::cuda
