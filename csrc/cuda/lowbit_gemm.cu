// The tensor-core kernels for bytes: every pair of widths, tiles of two sizes, and scales of groups of inputs.
#include "cuda/lowbit_bodies.cuh"
#include "cuda/lowbit_gemm.cuh"

namespace spos::cuda {

int lowbit_gemm_s8(const LowbitProduct& product, int tile, cudaStream_t stream) {
    if (product.call.weight.scale_groups > 1) return launch_lowbit_gemm<LowbitBody::s8, 32, true>(product, stream);
    if (tile == 128) return launch_lowbit_gemm<LowbitBody::s8, 64>(product, stream);
    return launch_lowbit_gemm<LowbitBody::s8, 32>(product, stream);
}

}  // namespace spos::cuda
