// The inference kernel of choice_block_inference.cuh, and when it is used.
#include "cuda/choice_block_inference.cuh"

#include "cuda/choice_block_stages.h"

namespace spos::cuda {
namespace {

template <Math math>
__global__ void __launch_bounds__(GemmTile::threads, 2)
    inference_kernel(const __grid_constant__ ChoiceBlock block, Part3 part) {
    using T = typename MathElement<math>::Type;
    constexpr int n = vector_of<T>;
    DYNAMIC_SHARED(float, shared);
    const ConvNorm first = layer_of(block.branch, {part.proj, part.first});
    const ConvNorm depthwise = layer_of(block.branch, {part.proj, part.depthwise});
    const ConvNorm last = layer_of(block.branch, {part.proj, part.depthwise + 1});
    const InferenceTile tile(depthwise);
    const int column_tile = blockIdx.x % tile.column_tiles, row_tile = blockIdx.x / tile.column_tiles % tile.row_tiles;
    const int64_t image = blockIdx.x / tile.column_tiles / tile.row_tiles;
    const int row = row_tile * tile.rows, column = column_tile * tile.columns, padding = depthwise.kernel / 2;

    float* const coefficients = shared + GemmTile::shared_bytes / 4;
    float* const last_coefficients = coefficients + 6 * depthwise.outputs;
    float* const planes = last_coefficients + (3 * last.outputs + 6 * depthwise.outputs + 3) / 4 * 4 -
                          6 * depthwise.outputs;  // whole vectors
    const Normalisation first_norm = normalisation_of(block, first, coefficients);
    const Normalisation depthwise_norm = normalisation_of(block, depthwise, coefficients + 3 * depthwise.outputs);
    const Normalisation last_norm = normalisation_of(block, last, last_coefficients);

    // What the part before left is normalised already.
    Map<T> input = input_of<T>(block, block.branch, {part.proj, part.first}, 0, 0, nullptr);
    input.normalised = false;
    const Region region{image * depthwise.in_height * depthwise.in_width,
                        row * depthwise.stride - padding,
                        column * depthwise.stride - padding,
                        tile.region_columns,
                        depthwise.in_height,
                        depthwise.in_width};
    fill_planes<math>(input, first, part.expands(), first_norm, region, tile.region(), tile.plane(), shared, planes);
    __syncthreads();
    with_depthwise<Reach::down>(depthwise, [&](auto kernel, auto reach) {
        convolve_planes<decltype(kernel)::value, decltype(reach)::value, T>(depthwise, depthwise_norm, tile, planes);
    });
    __syncthreads();

    const bool ends = part.depthwise + 1 == count_of(block.branch, {part.proj, 0}) - 1;
    T* const to =
        ends ? static_cast<T*>(block.y) + (part.proj ? 0 : block.beside) : static_cast<T*>(block.kept) + last.kept;
    const int64_t to_pixel = ends ? block.out_channels : last.outputs;
    const bool aligned = to_pixel % n == 0 && reinterpret_cast<uintptr_t>(to) % 16 == 0;
    const Region outputs{image * last.height * last.width, row, column, tile.columns, last.height, last.width};
    const int pixels = tile.rows * tile.columns;
    const ResultPlace<T> place;
    for (int first_column = 0; first_column < last.outputs; first_column += GemmTile::columns) {
        gemm_tile<math>(PlaneRows<T>{planes, tile.plane(), pixels, depthwise.outputs}, weight_rows<T>(last), 0,
                        first_column, 0, last.inputs, shared);
        const int channel = first_column + place.column, there = last.outputs - channel;
        for (int r = place.row; r < pixels && there > 0; r += ResultPlace<T>::rows) {
            const int64_t pixel = outputs.pixel(r);
            if (pixel < 0) continue;
            float value[n];
            place.read(shared, r, value);
#pragma unroll
            for (int i = 0; i < n; ++i)
                if (i < there) value[i] = relu(last_norm(channel + i, to_float(from_float<T>(value[i]))));
            store_some(to + pixel * to_pixel + channel, there, aligned, value);
        }
        __syncthreads();
    }
    if (!ends || part.proj || !block.passes) return;
    const int vectors = ceil_div(block.beside, n);
    const T* const x = static_cast<const T*>(block.x);
    T* const y = static_cast<T*>(block.y);
    const bool x_aligned = block.x_pixel % n == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0;
    const bool y_aligned = block.out_channels % n == 0 && reinterpret_cast<uintptr_t>(y) % 16 == 0;
    for (int i = threadIdx.x; i < pixels * vectors; i += GemmTile::threads) {
        const int64_t pixel = outputs.pixel(i / vectors);
        const int channel = i % vectors * n;
        if (pixel < 0) continue;
        float value[n];
        load_alternate<0>(x + pixel * block.x_pixel + 2 * channel, block.beside - channel, x_aligned, value);
        store_some(y + pixel * block.out_channels + channel, block.beside - channel, y_aligned, value);
    }
}

// Calls function(part) for the parts of a chain.
template <typename Function>
int for_parts(const ChoiceBlock& block, bool proj, const Function& function) {
    const int count = count_of(block.branch, {proj, 0});
    const bool expands = count > 0 && layer_of(block.branch, {proj, 0}).kernel == 1;
    for (int i = 0; i + 1 < count; i += 2) {
        const Part3 part{proj, i, i + (expands ? 1 : 0)};
        if (const int error = function(part)) return error;
        if (expands) break;  // one part of three
    }
    return cudaSuccess;
}

}  // namespace

bool inference_fits(const ChoiceBlock& block) {
    if (block.table || block.keep) return false;
    const int main = block.branch.main;
    if (main < 2 || (layer_of(block.branch, {false, 0}).kernel == 1 && main != 3)) return false;
    for (const bool proj : {false, true}) {
        const int too_large = for_parts(block, proj, [&](Part3 part) {
            const int floats = inference_shared(layer_of(block.branch, {proj, part.depthwise}),
                                                layer_of(block.branch, {proj, part.depthwise + 1}).outputs);
            return static_cast<int>(sizeof(float) * static_cast<size_t>(floats) > device::most_shared_bytes());
        });
        if (too_large) return false;
    }
    return true;
}

int inference(const ChoiceBlock& block, Element element, Product product, void* stream) {
    for (const bool proj : {true, false}) {
        const int error = for_parts(block, proj, [&](Part3 part) {
            const ConvNorm& depthwise = layer_of(block.branch, {proj, part.depthwise});
            const ConvNorm& last = layer_of(block.branch, {proj, part.depthwise + 1});
            const InferenceTile tile(depthwise);
            const int64_t blocks = int64_t{block.batch} * tile.row_tiles * tile.column_tiles;
            const size_t shared = sizeof(float) * static_cast<size_t>(inference_shared(depthwise, last.outputs));
            return with_math(element, product, [&](auto math) {
                return static_cast<int>(device::launch(inference_kernel<decltype(math)::value>,
                                                       dim3(static_cast<unsigned>(blocks)), dim3(GemmTile::threads),
                                                       shared, static_cast<cudaStream_t>(stream), block, part));
            });
        });
        if (error) return error;
    }
    return cudaSuccess;
}

}  // namespace spos::cuda
