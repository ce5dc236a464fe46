// Convolution with a slice of a larger weight as an implicit product: loaders of implicit_gemm.cuh, tiles of gemm.cuh.
//
// Shapes      x (N, H, W, C) and y (N, H', W', O) in memory, C and O by groups; weight (O, C, k, k) of any strides,
//             k = 1 to 7; stride 1 and 2.
// Operations  N * H' * W' * O * C * k * k multiply-adds a group, in tiles of 64 x 64 outputs.
// Bytes       Forward reads x O / 64 times, mostly from L2 (blocks of one tile of pixels are neighbours), k * k times
//             from L1, and the weight once for every 64 pixels.
// dgrad       Of stride 2: pixels of dx fall into four classes by the parity of row and column, and a class meets the
//             taps of its parity only. A class is a product of its own: no multiplication by zero.
// wgrad       The sum runs over all pixels, few blocks have many of them: the pixels are shared out, partial tiles are
//             added by a second kernel in a fixed order.
// Flat        A 1 x 1 kernel of stride 1 on maps without gaps is a product of matrices: no index is divided.
#include "cuda/sliced_conv2d.h"

#include <algorithm>

#include "cuda/implicit_gemm.cuh"
#include "cuda/split_sums.cuh"
#include "cuda/widths.cuh"

namespace spos::cuda {
namespace {

constexpr int tile = GemmTile::rows, tile_elements = GemmTile::rows * GemmTile::columns;
static_assert(GemmTile::rows == GemmTile::columns, "tiles are square");

// Blocks on a multiprocessor: what registers allow without spilling.
template <Math math, bool flat>
constexpr int resident = flat && math != Math::tf32 ? 4 : 3;

// Pixels of the destination that meet the same taps: all of them, or those of one parity.
struct PixelClass {
    PixelGrid grid;
    Window window;
    ChannelTaps taps;
    bool empty;  // meets no tap at all
    int64_t weight_offset, destination_offset;
};

// Forward and dgrad: rows are pixels of the destination, k runs over the source's channels.
template <typename T>
struct RowsProduct {
    NhwcMap<const T> source;
    NhwcMap<T> destination;  // strides from one pixel of a class to the next
    WeightSlice<T> weight;
    int64_t weight_group;  // stride
    const T* bias;
    const int32_t *active_columns, *active_channels;
    int groups, row_tiles, column_tiles;
    PixelClass classes[4];
};

// The tile's sums, to the destination's pixels.
template <typename T, bool flat>
__device__ __forceinline__ void store_rows(const float* sums, bool interleaved, const NhwcMap<T>& map,
                                           const PixelGrid& grid, int first_row, int columns, const T* bias) {
    constexpr int vector = vector_of<T>, across = tile / vector;
    const int column = static_cast<int>(threadIdx.x) % across * vector;
    if (column >= columns) return;
    float added[vector] = {};
    if (bias) load_some(bias + column, columns - column, false, added);
    for (int row = static_cast<int>(threadIdx.x) / across; row < tile; row += GemmTile::threads / across) {
        if (first_row + row >= grid.size) return;
        int64_t offset = (first_row + row) * map.w;
        if constexpr (!flat) {
            const PixelGrid::Pixel pixel = grid.at(first_row + row);
            offset = map.offset(pixel.image, pixel.row, pixel.column);
        }
        const float* const from = sums + row * GemmTile::result_stride;
        float values[vector];
#pragma unroll
        for (int i = 0; i < vector; i += 4) {
            if (flat || !interleaved) {
                const float4 four = *reinterpret_cast<const float4*>(from + column + i);
                values[i] = four.x, values[i + 1] = four.y, values[i + 2] = four.z, values[i + 3] = four.w;
            } else {
#pragma unroll
                for (int j = i; j < i + 4; ++j) values[j] = from[interleaved_column<T>(column + j)];
            }
        }
#pragma unroll
        for (int i = 0; i < vector; ++i) values[i] += added[i];
        store_some(map.data + offset + column, columns - column, map.vectors, values);
    }
}

template <Math math, bool flat, bool gradient>
__global__ void __launch_bounds__(GemmTile::threads, resident<math, flat>)
    rows_kernel(RowsProduct<typename MathElement<math>::Type> product) {
    using T = typename MathElement<math>::Type;
    SHARED_ARRAY(float4, shared, [GemmTile::shared_bytes / 16]);
    int block = static_cast<int>(blockIdx.x);
    const int first_column = block % product.column_tiles * tile;
    block /= product.column_tiles;
    const int first_row = block % product.row_tiles * tile;
    block /= product.row_tiles;
    const int group = block % product.groups;
    const PixelClass& pixels = product.classes[flat ? 0 : block / product.groups];
    const int columns = active_width(product.weight.columns, product.active_columns);
    if (first_column >= columns || first_row >= pixels.grid.size) return;
    const int channels = pixels.empty ? 0 : active_width(product.weight.channels, product.active_channels);

    NhwcMap<const T> source = product.source;
    source.data += group * product.weight.channels;
    WeightSlice<T> weight = product.weight;
    weight.data += group * product.weight_group + pixels.weight_offset;
    weight.columns = columns, weight.channels = channels;
    float* const sums = reinterpret_cast<float*>(shared);
    gemm_tile<math>(PatchLoader<T, flat>{source, pixels.grid, pixels.window, pixels.taps, channels},
                    WeightLoader<T, !gradient, flat>{weight, pixels.taps}, first_row, first_column, 0,
                    pixels.taps.template size<flat>(channels), sums);
    NhwcMap<T> destination = product.destination;
    const int first = group * product.weight.columns + first_column;
    destination.data += pixels.destination_offset + first;
    store_rows<T, flat>(sums, weight.interleaved, destination, pixels.grid, first_row, columns - first_column,
                        product.bias ? product.bias + first : nullptr);
}

// wgrad: rows are channels of dy, columns are channels of x and taps, k runs over pixels of dy.
template <typename T>
struct GradientProduct {
    NhwcMap<const T> x, dy;
    PixelGrid grid;
    Window window;
    ChannelTaps taps;
    int in_channels, out_channels;
    const int32_t *active_in_channels, *active_out_channels;
    T* gradient;
    int64_t w_g, w_o, w_i, w_h, w_w;  // strides of the gradient
    bool accumulate;
    int groups, row_tiles, column_tiles, splits;
    float* partial;  // [split][group][row tile][column tile][row][column]

    // An element of the gradient, where it belongs.
    template <bool flat>
    __device__ __forceinline__ void put(int group, int row, int column, float sum) const {
        const ChannelTaps::At at = taps.at<flat>(column);
        if (row >= active_width(out_channels, active_out_channels) ||
            at.channel >= active_width(in_channels, active_in_channels))
            return;
        T* const to = gradient + group * w_g + row * w_o + at.channel * w_i + at.row * w_h + at.column * w_w;
        *to = from_float<T>(accumulate ? to_float(*to) + sum : sum);
    }
};

constexpr int split_step = 32;  // pixels: steps of k are as long, or half as long

template <Math math, bool flat>
__global__ void __launch_bounds__(GemmTile::threads, resident<math, flat>)
    gradient_kernel(GradientProduct<typename MathElement<math>::Type> product) {
    using T = typename MathElement<math>::Type;
    SHARED_ARRAY(float4, shared, [GemmTile::shared_bytes / 16]);
    int block = static_cast<int>(blockIdx.x);
    const int first_column = block % product.column_tiles * tile;
    block /= product.column_tiles;
    const int first_row = block % product.row_tiles * tile;
    block /= product.row_tiles;
    const int group = block % product.groups, split = block / product.groups;
    const int out_channels = active_width(product.out_channels, product.active_out_channels);
    const int in_channels = active_width(product.in_channels, product.active_in_channels);
    if (first_row >= out_channels || first_column >= product.taps.template size<flat>(in_channels)) return;

    NhwcMap<const T> x = product.x, dy = product.dy;
    x.data += group * product.in_channels, dy.data += group * product.out_channels;
    const int64_t steps = (product.grid.size + split_step - 1) / split_step;
    float* const sums = reinterpret_cast<float*>(shared);
    gemm_tile<math>(ChannelLoader<T, flat>{dy, product.grid, out_channels},
                    TapLoader<T, flat>{x, product.grid, product.window, product.taps, in_channels}, first_row,
                    first_column, static_cast<int>(steps * split / product.splits) * split_step,
                    static_cast<int>(steps * (split + 1) / product.splits) * split_step, sums);
    const int thread = static_cast<int>(threadIdx.x);
    if (product.splits == 1) {
        for (int i = thread; i < tile_elements; i += GemmTile::threads)
            product.template put<flat>(group, first_row + i / tile, first_column + i % tile,
                                       sums[i / tile * GemmTile::result_stride + i % tile]);
    } else {
        float4* const to = reinterpret_cast<float4*>(product.partial + int64_t{blockIdx.x} * tile_elements);
        for (int i = thread; i < tile_elements / 4; i += GemmTile::threads)
            to[i] = shared[i / (tile / 4) * (GemmTile::result_stride / 4) + i % (tile / 4)];
    }
}

template <typename T, bool flat>
__global__ void __launch_bounds__(SplitSums::threads) reduce_kernel(GradientProduct<T> product) {
    const int64_t size = int64_t{product.groups} * product.row_tiles * product.column_tiles * tile_elements;
    sum_parts(product.partial, product.splits, size, [&](int64_t element, float sum) {
        const int within = static_cast<int>(element % tile_elements);
        const int number = static_cast<int>(element / tile_elements);
        const int first_column = number % product.column_tiles * tile;
        const int first_row = number / product.column_tiles % product.row_tiles * tile;
        product.template put<flat>(number / product.column_tiles / product.row_tiles, first_row + within / tile,
                                   first_column + within % tile, sum);
    });
}

int ceiling(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// Calls function(std::integral_constant of the Math, std::bool_constant of whether it is a product of matrices).
template <typename Function>
int with_math(Element element, const SlicedConv2d& shape, const Function& function) {
    const auto dense = [](int height, int width, int64_t n, int64_t h, int64_t w) {
        return h == width * w && n == height * h;
    };
    const bool flat = shape.kernel == 1 && shape.stride == 1 &&
                      dense(shape.in_height, shape.in_width, shape.x_n, shape.x_h, shape.x_w) &&
                      dense(shape.out_height, shape.out_width, shape.y_n, shape.y_h, shape.y_w);
    const auto with_flat = [&](auto math) {
        return flat ? function(math, std::true_type{}) : function(math, std::false_type{});
    };
    if (element == Element::float16) return with_flat(std::integral_constant<Math, Math::f16>{});
    if (element == Element::bfloat16) return with_flat(std::integral_constant<Math, Math::bf16>{});
    return shape.tf32 ? with_flat(std::integral_constant<Math, Math::tf32>{})
                      : with_flat(std::integral_constant<Math, Math::ffma>{});
}

// group: elements from one group's channels to the next one's.
template <typename T>
NhwcMap<T> map_of(T* data, int64_t n, int64_t h, int64_t w, int64_t group, int height, int width) {
    const auto whole = [](int64_t stride) { return stride % vector_of<T> == 0; };
    const bool vectors =
        reinterpret_cast<uintptr_t>(data) % 16 == 0 && whole(n) && whole(h) && whole(w) && whole(group);
    return {data, n, h, w, height, width, vectors};
}
template <typename T>
NhwcMap<T> input_map(const SlicedConv2d& shape, T* data) {
    return map_of(data, shape.x_n, shape.x_h, shape.x_w, shape.groups == 1 ? 0 : shape.in_channels, shape.in_height,
                  shape.in_width);
}
template <typename T>
NhwcMap<T> output_map(const SlicedConv2d& shape, T* data) {
    return map_of(data, shape.y_n, shape.y_h, shape.y_w, shape.groups == 1 ? 0 : shape.out_channels, shape.out_height,
                  shape.out_width);
}

// Whether vectors along the input channels of the weight are adjacent and aligned, at every row and tap.
template <typename T>
bool has_vectors(const SlicedConv2d& shape, const T* weight) {
    const auto whole = [](int64_t stride) { return stride % vector_of<T> == 0; };
    return reinterpret_cast<uintptr_t>(weight) % 16 == 0 && shape.w_i == 1 && whole(shape.w_o) &&
           (shape.kernel == 1 || (whole(shape.w_h) && whole(shape.w_w)));
}

template <typename T>
constexpr int k_step = GemmTile::step_bytes / static_cast<int>(sizeof(T));

PixelGrid grid_of(const SlicedConv2d& shape, int height, int width) {
    return {shape.batch * height * width, divisor_of(std::max(height, 1)), divisor_of(std::max(width, 1))};
}

template <Math math, bool flat, bool gradient, typename T>
int start_rows(const SlicedConv2d& shape, RowsProduct<T>& product, int classes, void* stream) {
    int row_tiles = 0;
    for (int i = 0; i < classes; ++i) row_tiles = std::max(row_tiles, ceiling(product.classes[i].grid.size, tile));
    product.groups = shape.groups;
    product.row_tiles = row_tiles;
    product.column_tiles = ceiling(product.weight.columns, tile);
    const int64_t blocks = int64_t{row_tiles} * product.column_tiles * shape.groups * classes;
    if (blocks == 0) return cudaSuccess;
    if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    return device::launch(rows_kernel<math, flat, gradient>, dim3(static_cast<unsigned>(blocks)),
                          dim3(GemmTile::threads), 0, static_cast<cudaStream_t>(stream), product);
}

// How wgrad's sum is shared out: about as many blocks as keep a large device busy, at least eight steps each.
int splits_of(const SlicedConv2d& shape, int64_t tiles) {
    constexpr int64_t enough_blocks = 512;
    constexpr int least_steps = 8;
    const int steps = ceiling(int64_t{shape.batch} * shape.out_height * shape.out_width, split_step);
    return static_cast<int>(std::clamp<int64_t>(enough_blocks / tiles, 1, std::max(1, steps / least_steps)));
}

// Blocks of 16 channels: a tile of 64 columns has four taps of them, which read almost the same pixels.
ChannelTaps gradient_taps(const SlicedConv2d& shape, int vector) {
    return channel_taps(shape.in_channels, shape.kernel, shape.kernel, vector, 16);
}
int gradient_row_tiles(const SlicedConv2d& shape) { return ceiling(shape.out_channels, tile); }
int gradient_column_tiles(const SlicedConv2d& shape, const ChannelTaps& taps) {
    const int64_t blocks = ceiling(shape.in_channels, 1 << taps.log_block);
    return ceiling(shape.kernel == 1 ? shape.in_channels : blocks * taps.taps.divisor << taps.log_block, tile);
}

}  // namespace

int sliced_conv2d_forward(const SlicedConv2d& shape, Element element, const void* x, const void* weight,
                          const void* bias, void* y, void* stream) {
    return with_math(element, shape, [&](auto math, auto flat) {
        using T = typename MathElement<math>::Type;
        const T* const slice = static_cast<const T*>(weight);
        const bool vectors = has_vectors(shape, slice);
        RowsProduct<T> product{};
        product.source = input_map(shape, static_cast<const T*>(x));
        product.destination = output_map(shape, static_cast<T*>(y));
        product.weight = {slice,   shape.w_o, shape.w_i, shape.w_h, shape.w_w, shape.out_channels, shape.in_channels,
                          vectors, false};
        product.weight_group = shape.out_channels * shape.w_o;
        product.bias = static_cast<const T*>(bias);
        product.active_columns = shape.active_out_channels;
        product.active_channels = shape.active_in_channels;
        product.classes[0] = {grid_of(shape, shape.out_height, shape.out_width),
                              {shape.stride, -shape.padding, -shape.padding, 1},
                              channel_taps(shape.in_channels, shape.kernel, shape.kernel, vector_of<T>,
                                           vectors ? k_step<T> : vector_of<T>),
                              false,
                              0,
                              0};
        return start_rows<math, flat, false>(shape, product, 1, stream);
    });
}

int sliced_conv2d_dgrad(const SlicedConv2d& shape, Element element, const void* dy, const void* weight, void* dx,
                        void* stream) {
    return with_math(element, shape, [&](auto math, auto flat) {
        using T = typename MathElement<math>::Type;
        const int stride = shape.stride, kernel = shape.kernel, padding = shape.padding;
        const T* const slice = static_cast<const T*>(weight);
        const bool vectors = has_vectors(shape, slice);
        RowsProduct<T> product{};
        product.source = output_map(shape, static_cast<const T*>(dy));
        product.destination = input_map(shape, static_cast<T*>(dx));
        product.destination.h *= stride, product.destination.w *= stride;
        product.weight = {slice,
                          shape.w_i,
                          shape.w_o,
                          stride * shape.w_h,
                          stride * shape.w_w,
                          shape.in_channels,
                          shape.out_channels,
                          vectors,
                          !flat && !vectors};
        product.weight_group = shape.out_channels * shape.w_o;
        product.active_columns = shape.active_in_channels;
        product.active_channels = shape.active_out_channels;
        // Class (e, f): rows i of dx with (i + padding) % stride == e, which meet the taps e, e + stride ...; tap
        // number j meets row (i + padding - e) / stride - j of dy.
        const auto first = [&](int e) { return ((e - padding) % stride + stride) % stride; };
        const auto taps = [&](int e) { return ceiling(std::max(kernel - e, 0), stride); };
        const auto pixels = [&](int e, int size) { return ceiling(std::max(size - first(e), 0), stride); };
        for (int e = 0; e < stride; ++e)
            for (int f = 0; f < stride; ++f) {
                const bool empty = taps(e) * taps(f) == 0;
                product.classes[e * stride + f] = {
                    grid_of(shape, pixels(e, shape.in_height), pixels(f, shape.in_width)),
                    {1, (first(e) + padding - e) / stride, (first(f) + padding - f) / stride, -1},
                    channel_taps(shape.out_channels, empty ? 1 : taps(e), empty ? 1 : taps(f), vector_of<T>, k_step<T>),
                    empty,
                    e * shape.w_h + f * shape.w_w,
                    first(e) * shape.x_h + first(f) * shape.x_w};
            }
        return start_rows<math, flat, true>(shape, product, stride * stride, stream);
    });
}

int64_t sliced_conv2d_wgrad_workspace(const SlicedConv2d& shape, Element element) {
    const int vector = element == Element::float32 ? vector_of<float> : vector_of<__half>;
    const int64_t tiles =
        int64_t{shape.groups} * gradient_row_tiles(shape) * gradient_column_tiles(shape, gradient_taps(shape, vector));
    const int splits = splits_of(shape, tiles);
    return splits == 1 ? 0 : splits * tiles * tile_elements;
}

int sliced_conv2d_wgrad(const SlicedConv2d& shape, Element element, const void* x, const void* dy, void* dweight,
                        bool accumulate, float* workspace, void* stream) {
    return with_math(element, shape, [&](auto math, auto flat) -> int {
        using T = typename MathElement<math>::Type;
        const ChannelTaps taps = gradient_taps(shape, vector_of<T>);
        const int row_tiles = gradient_row_tiles(shape), column_tiles = gradient_column_tiles(shape, taps);
        const int64_t tiles = int64_t{shape.groups} * row_tiles * column_tiles;
        const int splits = splits_of(shape, tiles);
        const GradientProduct<T> product{input_map(shape, static_cast<const T*>(x)),
                                         output_map(shape, static_cast<const T*>(dy)),
                                         grid_of(shape, shape.out_height, shape.out_width),
                                         {shape.stride, -shape.padding, -shape.padding, 1},
                                         taps,
                                         shape.in_channels,
                                         shape.out_channels,
                                         shape.active_in_channels,
                                         shape.active_out_channels,
                                         static_cast<T*>(dweight),
                                         shape.out_channels * shape.w_o,
                                         shape.w_o,
                                         shape.w_i,
                                         shape.w_h,
                                         shape.w_w,
                                         accumulate,
                                         shape.groups,
                                         row_tiles,
                                         column_tiles,
                                         splits,
                                         workspace};
        if (tiles * splits > INT32_MAX) return cudaErrorInvalidConfiguration;
        const cudaError_t error =
            device::launch(gradient_kernel<math, flat>, dim3(static_cast<unsigned>(tiles * splits)),
                           dim3(GemmTile::threads), 0, static_cast<cudaStream_t>(stream), product);
        if (error != cudaSuccess || splits == 1) return error;
        return device::launch(reduce_kernel<T, flat>, dim3(SplitSums::blocks(tiles * tile_elements)),
                              dim3(SplitSums::threads), 0, static_cast<cudaStream_t>(stream), product);
    });
}

}  // namespace spos::cuda
