// The depthwise slots of choice_block.h: a kernel for forward, one for both gradients.
#include "cuda/choice_block_depthwise.cuh"

#include "cuda/choice_block_depthwise_backward.cuh"
#include "cuda/choice_block_stages.h"

namespace spos::cuda {
namespace {

template <typename T>
__global__ void __launch_bounds__(GemmTile::threads, 3)
    forward_kernel(const __grid_constant__ ChoiceBlock block, Slot slot) {
    DYNAMIC_SHARED(float, shared);
    SHARED_ARRAY(int, flag, [1]);
    const Branch& branch = branch_of(block);
    if (slot.is_used(branch)) depthwise_forward<T>(block, branch, slot.stage(branch), shared, flag);
}

// Blocks of the gradient of the input come first, if it is wanted, then those of the gradient of the weight.
struct BackwardGrid {
    int dgrad, wgrad;
    __host__ __device__ BackwardGrid(const ChoiceBlock& block, const ConvNorm& layer, Stage stage) {
        dgrad = stage.index == 0 && block.dx == nullptr ? 0 : depthwise_dgrad_grid(block, layer).size();
        wgrad = layer.dweight == nullptr ? 0 : depthwise_wgrad_grid(block, layer).size();
    }
};

template <typename T>
__global__ void __launch_bounds__(GemmTile::threads, 2)
    backward_kernel(const __grid_constant__ ChoiceBlock block, const __grid_constant__ BackwardPlan plan, Slot slot) {
    DYNAMIC_SHARED(float, shared);
    SHARED_ARRAY(int, flag, [1]);
    const Branch& branch = branch_of(block);
    if (!slot.is_used(branch)) return;
    const Stage stage = slot.stage(branch);
    const BackwardMemory<T> memory(block.workspace, plan);
    const BackwardGrid grid(block, layer_of(branch, stage), stage);
    const int number = static_cast<int>(blockIdx.x);
    if (number < grid.dgrad)
        depthwise_dgrad<T>(block, branch, stage, memory, number, shared, flag);
    else if (number < grid.dgrad + grid.wgrad)
        depthwise_wgrad_stage<T>(block, branch, stage, memory, number - grid.dgrad, shared, flag);
}

}  // namespace

int depthwise_forward(const ChoiceBlock& block, Element element, Slot slot, void* stream) {
    return with_element(element, [&](auto zero) {
        using T = decltype(zero);
        int blocks = 0, floats = 0;
        for_layers(block, slot, [&](const Branch&, Stage, const ConvNorm& layer) {
            const int needed = depthwise_forward_grid(block, layer).size();
            const int shared = depthwise_forward_shared<T>(block, layer);
            blocks = blocks > needed ? blocks : needed;
            floats = floats > shared ? floats : shared;
        });
        return device::launch(forward_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(GemmTile::threads),
                              sizeof(float) * static_cast<size_t>(floats), static_cast<cudaStream_t>(stream), block,
                              slot);
    });
}

int depthwise_backward(const ChoiceBlock& block, const BackwardPlan& plan, Element element, Slot slot, void* stream) {
    return with_element(element, [&](auto zero) {
        using T = decltype(zero);
        int blocks = 0, floats = 0;
        for_layers(block, slot, [&](const Branch&, Stage stage, const ConvNorm& layer) {
            const BackwardGrid grid(block, layer, stage);
            const int shared = depthwise_backward_shared<T>(block, layer);
            blocks = blocks > grid.dgrad + grid.wgrad ? blocks : grid.dgrad + grid.wgrad;
            floats = floats > shared ? floats : shared;
        });
        if (blocks == 0) return cudaSuccess;
        return device::launch(backward_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(GemmTile::threads),
                              sizeof(float) * static_cast<size_t>(floats), static_cast<cudaStream_t>(stream), block,
                              plan, slot);
    });
}

}  // namespace spos::cuda
