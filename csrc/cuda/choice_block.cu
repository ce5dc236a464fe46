// Both passes of choice_block.h as sequences of launches, and the two kernels that are no convolution: y from the ends
// of the chains, and the sums over its gradient.
#include "cuda/choice_block_depthwise_backward.cuh"
#include "cuda/choice_block_gradient.cuh"
#include "cuda/choice_block_output.cuh"
#include "cuda/choice_block_pointwise_backward.cuh"
#include "cuda/choice_block_stages.h"

namespace spos::cuda {
namespace {

// Floats for the parts of a layer's sums or statistics, `each` numbers a column: at most most_blocks parts for each
// tile of columns, or one of all columns.
__host__ __device__ constexpr int64_t parts_of(int each) {
    return int64_t{each} * (most_blocks * GemmTile::columns + most_channels);
}

// The last block has the running statistics, if they move, the others have y.
template <typename T>
__global__ void __launch_bounds__(OutputGrid<T>::threads) output_kernel(const __grid_constant__ ChoiceBlock block) {
    const Branch& branch = branch_of(block);
    if (!block.track || blockIdx.x + 1 < gridDim.x) return write_output<T>(block, branch, gridDim.x - block.track);
    if (blockIdx.y > 0) return;
    for (int i = 0; i < branch.main + branch.proj; ++i) move_running_statistics(block, branch.layer[i]);
}

// Sums of the gradients behind the last layers, for their normalisation. The blocks of main come before those of proj.
template <typename T>
__global__ void __launch_bounds__(GemmTile::threads)
    end_sums_kernel(const __grid_constant__ ChoiceBlock block, const __grid_constant__ BackwardPlan plan) {
    constexpr int n = vector_of<T>;
    SHARED_ARRAY(float, shared, [2 * GemmTile::threads * n]);
    SHARED_ARRAY(int, flag, [1]);
    const Branch& branch = branch_of(block);
    const BackwardMemory<T> memory(block.workspace, plan);
    const int64_t pixels = int64_t{block.batch} * block.out_height * block.out_width;
    const int main_blocks = PointwiseGrid(pixels, block.out_channels - block.beside).size();
    const bool is_proj = static_cast<int>(blockIdx.x) >= main_blocks;
    const PointwiseGrid grid(pixels, is_proj ? block.beside : block.out_channels - block.beside);
    const int number = static_cast<int>(blockIdx.x) - (is_proj ? main_blocks : 0);
    const ConvNorm& layer = layer_of(branch, is_proj ? Stage{true, branch.proj - 1} : Stage{false, branch.main - 1});
    const int column_tile = number % grid.column_tiles, part = number / grid.column_tiles;
    const ResultPlace<T> place;
    const int channel = column_tile * GemmTile::columns + place.column, there = layer.outputs - channel;
    Coefficients of[n];
#pragma unroll
    for (int i = 0; i < n; ++i)
        if (i < there) of[i] = coefficients_of(block, layer, channel + i);
    const T* const dy = static_cast<const T*>(block.dy) + (is_proj ? 0 : block.beside);
    const T* const kept = static_cast<const T*>(block.kept) + layer.kept;
    const bool aligned = (block.dy_pixel | layer.outputs) % n == 0 &&
                         (reinterpret_cast<uintptr_t>(dy) | reinterpret_cast<uintptr_t>(kept)) % 16 == 0;
    Sums<n> sums;
    const int64_t step = int64_t{grid.blocks} * ResultPlace<T>::rows;
    for (int64_t p = int64_t{part} * ResultPlace<T>::rows + place.row; p < pixels && there > 0; p += step) {
        float value[n], z[n];
        load_some(dy + p * block.dy_pixel + channel, there, aligned, value);
        load_some(kept + p * layer.outputs + channel, there, aligned, z);
#pragma unroll
        for (int i = 0; i < n; ++i) {
            if (i >= there) continue;
            const float centred = z[i] - of[i].mean;
            if (!(fmaf(centred, of[i].scale, of[i].beta) > 0.0f)) continue;
            sums.first[i] += value[i];
            sums.second[i] = fmaf(value[i], centred * of[i].inverse_deviation, sums.second[i]);
        }
    }
    const int counter = (is_proj ? choice_block_counters / 2 : 0) + column_tile;
    finish_sums<TileThreads<T>>(sums, place.row, place.column, shared, memory.parts + (is_proj ? parts_of(2) : 0), part,
                                grid.blocks, column_tile * GemmTile::columns, layer.outputs, block.counters + counter,
                                flag, TakeSums{layer, memory.sums});
}

template <typename T>
int start_output(const ChoiceBlock& block, cudaStream_t stream) {
    const OutputGrid<T> grid(block.beside, block.out_channels - block.beside);
    const int64_t pixels = int64_t{block.batch} * block.out_height * block.out_width;
    const int wanted = ceil_div(pixels, grid.rows), blocks = wanted < most_blocks ? wanted : most_blocks;
    return device::launch(output_kernel<T>,
                          dim3(static_cast<unsigned>(blocks + block.track), static_cast<unsigned>(grid.columns())),
                          dim3(OutputGrid<T>::threads), 0, stream, block);
}

template <typename T>
int start_end_sums(const ChoiceBlock& block, const BackwardPlan& plan, bool proj, cudaStream_t stream) {
    const int64_t pixels = int64_t{block.batch} * block.out_height * block.out_width;
    const int blocks = PointwiseGrid(pixels, block.out_channels - block.beside).size() +
                       (proj ? PointwiseGrid(pixels, block.beside).size() : 0);
    return device::launch(end_sums_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(GemmTile::threads), 0, stream,
                          block, plan);
}

// Calls function(slot) for the slots in use by any choice, until one returns an error.
template <typename Function>
int for_slots(const ChoiceBlock& block, bool backwards, const Function& function) {
    for (const bool proj : {!backwards, backwards})
        for (int i = 0; i < most_slots; ++i) {
            const Slot slot{proj, backwards ? most_slots - 1 - i : i};
            bool used = false;
            for_layers(block, slot, [&](const Branch&, Stage, const ConvNorm&) { used = true; });
            if (!used) continue;
            if (const int error = function(slot)) return error;
        }
    return cudaSuccess;
}

BackwardPlan backward_plan(const ChoiceBlock& block) {
    BackwardPlan plan{0, 0, 2 * parts_of(2), 0};
    const auto most = [](int64_t& value, int64_t other) { value = value > other ? value : other; };
    for_slots(block, false, [&](Slot slot) {
        for_layers(block, slot, [&](const Branch& branch, Stage stage, const ConvNorm& layer) {
            const int64_t pixels = pixels_of(block, layer);
            if (stage.index + 1 < count_of(branch, stage)) most(plan.map, pixels * layer.outputs);
            most(plan.statistics, layer.statistics + 2 * layer.outputs);
            most(plan.weight_parts, slot.pointwise() ? WgradGrid(pixels, layer.outputs, layer.inputs).parts()
                                                     : depthwise_wgrad_parts(block, layer));
        });
        return 0;
    });
    plan.map = (plan.map + 7) / 8 * 8;  // whole vectors
    plan.statistics = (plan.statistics + 3) / 4 * 4;
    return plan;
}

}  // namespace

size_t choice_block_forward_workspace(const ChoiceBlock&) { return sizeof(float) * parts_of(3); }

size_t choice_block_backward_workspace(const ChoiceBlock& block, Element element) {
    const BackwardPlan plan = backward_plan(block);
    return (element == Element::float32 ? 4 : 2) * 2 * static_cast<size_t>(plan.map) +
           sizeof(float) * static_cast<size_t>(plan.statistics + plan.parts + plan.weight_parts);
}

int choice_block_forward(const ChoiceBlock& block, Element element, Product product, void* stream) {
    if (inference_fits(block)) return inference(block, element, product, stream);
    const int error = for_slots(block, false, [&](Slot slot) {
        return slot.pointwise() ? pointwise_forward(block, element, product, slot, stream)
                                : depthwise_forward(block, element, slot, stream);
    });
    if (error || !block.keep) return error;
    return with_element(
        element, [&](auto zero) { return start_output<decltype(zero)>(block, static_cast<cudaStream_t>(stream)); });
}

int choice_block_backward(const ChoiceBlock& block, Element element, Product product, void* stream) {
    const BackwardPlan plan = backward_plan(block);
    bool proj = false;
    for_layers(block, {true, 0}, [&](const Branch&, Stage, const ConvNorm&) { proj = true; });
    const int error = with_element(element, [&](auto zero) {
        return start_end_sums<decltype(zero)>(block, plan, proj, static_cast<cudaStream_t>(stream));
    });
    if (error) return error;
    return for_slots(block, true, [&](Slot slot) {
        return slot.pointwise() ? pointwise_backward(block, plan, element, product, slot, stream)
                                : depthwise_backward(block, plan, element, slot, stream);
    });
}

}  // namespace spos::cuda
