// The pointwise slots of choice_block.h: a kernel for forward, one for both gradients.
#include "cuda/choice_block_pointwise.cuh"

#include "cuda/choice_block_pointwise_backward.cuh"
#include "cuda/choice_block_stages.h"

namespace spos::cuda {
namespace {

template <Math math>
__global__ void __launch_bounds__(GemmTile::threads, 3)
    forward_kernel(const __grid_constant__ ChoiceBlock block, Slot slot) {
    DYNAMIC_SHARED(float, shared);
    SHARED_ARRAY(int, flag, [1]);
    const Branch& branch = branch_of(block);
    if (slot.is_used(branch)) pointwise_forward<math>(block, branch, slot.stage(branch), shared, flag);
}

// Blocks of the gradient of the input come first, if it is wanted, then those of the gradient of the weight.
struct BackwardGrid {
    int dgrad, wgrad;
    __host__ __device__ BackwardGrid(const ChoiceBlock& block, const ConvNorm& layer, Stage stage) {
        const int64_t pixels = pixels_of(block, layer);
        dgrad = stage.index == 0 && block.dx == nullptr ? 0 : PointwiseGrid(pixels, layer.inputs).size();
        wgrad = layer.dweight == nullptr ? 0 : WgradGrid(pixels, layer.outputs, layer.inputs).size();
    }
};

template <Math math>
__global__ void __launch_bounds__(GemmTile::threads, 2)
    backward_kernel(const __grid_constant__ ChoiceBlock block, const __grid_constant__ BackwardPlan plan, Slot slot) {
    DYNAMIC_SHARED(float, shared);
    SHARED_ARRAY(int, flag, [1]);
    const Branch& branch = branch_of(block);
    if (!slot.is_used(branch)) return;
    const Stage stage = slot.stage(branch);
    const BackwardMemory<typename MathElement<math>::Type> memory(block.workspace, plan);
    const BackwardGrid grid(block, layer_of(branch, stage), stage);
    const int number = static_cast<int>(blockIdx.x);
    if (number < grid.dgrad)
        pointwise_dgrad<math>(block, branch, stage, memory, number, shared, flag);
    else if (number < grid.dgrad + grid.wgrad)
        pointwise_wgrad<math>(block, branch, stage, memory, number - grid.dgrad, shared, flag);
}

size_t shared_bytes(int floats) {
    return GemmTile::shared_bytes + sizeof(float) * static_cast<size_t>(tile_coefficients + floats);
}

}  // namespace

int pointwise_forward(const ChoiceBlock& block, Element element, Product product, Slot slot, void* stream) {
    int blocks = 0, floats = 0;
    for_layers(block, slot, [&](const Branch&, Stage, const ConvNorm& layer) {
        const int needed = PointwiseGrid(pixels_of(block, layer), layer.outputs).size();
        blocks = blocks > needed ? blocks : needed;
        floats = floats > 3 * layer.inputs ? floats : 3 * layer.inputs;
    });
    return with_math(element, product, [&](auto math) {
        return device::launch(forward_kernel<decltype(math)::value>, dim3(static_cast<unsigned>(blocks)),
                              dim3(GemmTile::threads), shared_bytes(floats), static_cast<cudaStream_t>(stream), block,
                              slot);
    });
}

int pointwise_backward(const ChoiceBlock& block, const BackwardPlan& plan, Element element, Product product, Slot slot,
                       void* stream) {
    int blocks = 0, floats = wgrad_coefficients;
    for_layers(block, slot, [&](const Branch&, Stage stage, const ConvNorm& layer) {
        const BackwardGrid grid(block, layer, stage);
        blocks = blocks > grid.dgrad + grid.wgrad ? blocks : grid.dgrad + grid.wgrad;
        floats = floats > 5 * layer.outputs ? floats : 5 * layer.outputs;
    });
    if (blocks == 0) return cudaSuccess;
    return with_math(element, product, [&](auto math) {
        return device::launch(backward_kernel<decltype(math)::value>, dim3(static_cast<unsigned>(blocks)),
                              dim3(GemmTile::threads), shared_bytes(floats), static_cast<cudaStream_t>(stream), block,
                              plan, slot);
    });
}

}  // namespace spos::cuda
