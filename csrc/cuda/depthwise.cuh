// Tiles of a depthwise convolution over NHWC maps, with functors that load, weigh and store: the loops that
// depthwise_conv2d.cu and the choice block's kernels share.
//
// Shapes   A block has 32 channels, one a lane, and a tile of the destination: rows and columns of a map, of several
//          images where maps are small. k = 3, 5, 7; stride 1 and 2, and the gradient of either (see Reach).
// Method   The source's tile and its halo come through registers, 16 bytes a load, are transformed by the functor and
//          lie in shared memory as floats, zero where the map has ended: zero after the transform, as padding is.
//          A warp makes patches of 4 x 4 destinations (2 x 4 of stride 2). It reads each row of a patch's source from
//          shared memory once, for all taps that meet it; the filter stays in registers. Shared reads a multiply-add,
//          stride 1: 0.25, 0.16, 0.13 for k = 3, 5, 7; FFMA and shared memory are in balance at 0.25.
// wgrad    The same loops with roles exchanged: k * k sums stay in registers, a patch of dy stands for the filter.
// Banks    A lane reads its own channel: 32 neighbours. 16-bit loaders store 32 bytes a lane in two halves; their
//          pixels are 36 floats apart, so that a quarter of a warp meets each bank once.
//
// Functors
//     Load     static constexpr int vector;                             channels of 16 bytes
//              void select(int channel)                                 the first of the channels to load from now on
//              void operator()(int64_t image, int row, int column, float (&to)[vector]) const
//              is called inside of the map only, and fills `to`, with anything where channels have ended
//     Weight   float operator()(int channel, int tap) const             of channels that exist
//     Store    void operator()(int64_t image, int row, int column, float value)
//              is called for each destination of this thread's channel, if that exists: it may also collect statistics
#pragma once

#include "cuda/elements.cuh"

namespace spos::cuda {

constexpr int depthwise_lanes = 32;  // channels of a block

// How a row (or column) of the source reaches one of the destination.
enum class Reach {
    same,  // stride 1, forward or dgrad:  source = destination - padding + tap
    down,  // stride 2, forward:           source = 2 * destination - padding + tap
    up,    // stride 2, dgrad:             source = (destination + padding - tap) / 2, where that is whole
};

// `count` destinations in a row meet scaled(count) + halo sources.
__host__ __device__ constexpr int depthwise_scaled(Reach reach, int count) {
    return reach == Reach::same ? count : reach == Reach::down ? 2 * count : count / 2;
}
__host__ __device__ constexpr int depthwise_halo(Reach reach, int kernel) {
    return reach == Reach::same ? kernel - 1 : reach == Reach::down ? kernel - 2 : (kernel - 1) / 2;
}
__host__ __device__ constexpr int depthwise_patch_rows(Reach reach) { return reach == Reach::down ? 2 : 4; }
constexpr int depthwise_patch_columns = 4;

// Floats from one pixel to the next in shared memory, for loaders of `vector` channels.
__host__ __device__ constexpr int depthwise_pitch(int vector) { return depthwise_lanes + (vector == 8 ? 4 : 0); }

// The source, counted from the first one of a patch, that meets `destination` through `tap`; negative if there is none.
// Patches of Reach::up start at a destination that taps 0, 2, 4 ... meet.
template <int kernel, Reach reach>
__device__ __forceinline__ constexpr int depthwise_source(int destination, int tap) {
    if (reach == Reach::same) return destination + tap;
    if (reach == Reach::down) return 2 * destination + tap;
    return destination % 2 == tap % 2 ? destination / 2 + (kernel - 1) / 2 - tap / 2 : -1;
}

// How a destination is cut into tiles, and where their sources are.
struct DepthwiseTiling {
    int64_t images;
    int channels;
    int source_height, source_width, height, width;
    int padding;
    int tile_images, tile_rows, tile_columns;  // of the destination
    int row_tiles, column_tiles;               // of a map
    int64_t tiles;                             // of one block of channels
    int channel_blocks;

    __host__ __device__ int patches(Reach reach) const {
        return tile_images * (tile_rows / depthwise_patch_rows(reach)) * (tile_columns / depthwise_patch_columns);
    }
    __host__ __device__ int source_pixels(Reach reach, int kernel) const {
        const int halo = depthwise_halo(reach, kernel);
        return tile_images * (depthwise_scaled(reach, tile_rows) + halo) *
               (depthwise_scaled(reach, tile_columns) + halo);
    }
};

// A tile's first destination, and the source of that one's first tap.
struct DepthwiseTile {
    int64_t image;
    int row, column, source_row, source_column;
};

template <int kernel, Reach reach>
__device__ __forceinline__ DepthwiseTile depthwise_tile(const DepthwiseTiling& tiling, int number) {
    // Reach::up: tiles start where destination + padding is even.
    constexpr bool up = reach == Reach::up;
    const int odd = up ? tiling.padding % 2 : 0;
    const int to_source = up ? tiling.padding / 2 - depthwise_halo(reach, kernel) : -tiling.padding;
    const int map = number / tiling.column_tiles;
    const int row = map % tiling.row_tiles * tiling.tile_rows;
    const int column = number % tiling.column_tiles * tiling.tile_columns;
    return {int64_t{map / tiling.row_tiles} * tiling.tile_images, row - odd, column - odd,
            depthwise_scaled(reach, row) + to_source, depthwise_scaled(reach, column) + to_source};
}

// Tiles of at most these rows and columns. They are as even as patches allow, and hold several images, at most so many,
// of maps that make less than four patches.
__host__ __device__ inline DepthwiseTiling depthwise_tiling(Reach reach, DepthwiseTiling tiling, int most_rows,
                                                            int most_columns, int most_images) {
    const auto ceiling = [](int a, int b) { return (a + b - 1) / b; };
    const auto smaller = [](int64_t a, int64_t b) { return a < b ? a : b; };
    const int odd = reach == Reach::up ? tiling.padding % 2 : 0;
    const int rows = tiling.height + odd, columns = tiling.width + odd;
    const int patch_rows = depthwise_patch_rows(reach), patch_columns = depthwise_patch_columns;
    tiling.channel_blocks = ceiling(tiling.channels, depthwise_lanes);
    tiling.row_tiles = ceiling(rows, most_rows);
    tiling.column_tiles = ceiling(columns, most_columns);
    tiling.tile_rows = ceiling(ceiling(rows, tiling.row_tiles), patch_rows) * patch_rows;
    tiling.tile_columns = ceiling(ceiling(columns, tiling.column_tiles), patch_columns) * patch_columns;
    tiling.tile_images = 1;
    const int wanted = 4 / tiling.patches(reach);
    if (tiling.row_tiles * tiling.column_tiles == 1 && wanted > 1 && tiling.images > 1)
        tiling.tile_images = static_cast<int>(smaller(smaller(wanted, most_images), tiling.images));
    tiling.tiles =
        (tiling.images + tiling.tile_images - 1) / tiling.tile_images * tiling.row_tiles * tiling.column_tiles;
    return tiling;
}

constexpr int depthwise_most_images = 4;

// The largest of these for which fits(tiling) holds.
template <typename Fits>
DepthwiseTiling depthwise_tiling_that_fits(Reach reach, const DepthwiseTiling& maps, int most_rows, int most_columns,
                                           const Fits& fits) {
    while (most_columns > depthwise_patch_columns && !fits(depthwise_tiling(reach, maps, most_rows, most_columns, 1)))
        most_columns -= depthwise_patch_columns;
    int images = depthwise_most_images;
    while (images > 1 && !fits(depthwise_tiling(reach, maps, most_rows, most_columns, images))) --images;
    return depthwise_tiling(reach, maps, most_rows, most_columns, images);
}

// Pixels of some images, from one on, and the maps that they lie in.
struct DepthwiseArea {
    int64_t image;
    int row, column;
    int images, rows, columns;
    int64_t all_images;
    int height, width;
};

// Brings an area of 32 channels to shared memory, zeros where there is no map. `load` has selected this thread's
// channels. Loads of 16 floats are on their way at a time.
template <typename Load>
__device__ __forceinline__ void depthwise_stage(float* shared, const Load& load, const DepthwiseArea& area) {
    constexpr int vector = Load::vector, across = depthwise_lanes / vector, batch = 16 / vector;
    constexpr int pitch = depthwise_pitch(vector);
    const int step = static_cast<int>(blockDim.x) / across, total = area.images * area.rows * area.columns;
    const int step_rows = step / area.columns, step_columns = step % area.columns;
    int place = static_cast<int>(threadIdx.x) / across;
    int column = place % area.columns, row = place / area.columns % area.rows;
    int image = place / area.columns / area.rows;
    float* to = shared + place * pitch + static_cast<int>(threadIdx.x) % across * vector;
    while (place < total) {
        float values[batch][vector];
#pragma unroll
        for (int i = 0; i < batch; ++i) {
            const int map_row = area.row + row, map_column = area.column + column;
            if (place + i * step < total && area.image + image < area.all_images &&
                static_cast<unsigned>(map_row) < static_cast<unsigned>(area.height) &&
                static_cast<unsigned>(map_column) < static_cast<unsigned>(area.width)) {
                load(area.image + image, map_row, map_column, values[i]);
            } else {
#pragma unroll
                for (int j = 0; j < vector; ++j) values[i][j] = 0.0f;
            }
            column += step_columns;
            row += step_rows;
            if (column >= area.columns) column -= area.columns, ++row;
            while (row >= area.rows) row -= area.rows, ++image;
        }
#pragma unroll
        for (int i = 0; i < batch; ++i)
            if (place + i * step < total)
#pragma unroll
                for (int j = 0; j < vector; j += 4)
                    *reinterpret_cast<float4*>(to + i * step * pitch + j) =
                        make_float4(values[i][j], values[i][j + 1], values[i][j + 2], values[i][j + 3]);
        place += batch * step;
        to += batch * step * pitch;
    }
}

// A channel of a patch: calls multiply(row, column, tap, value of the source that they meet) for all of its
// destinations and taps. source: the patch's first source; row_pitch: floats from one row to the next.
template <int kernel, Reach reach, int pitch, typename Multiply>
__device__ __forceinline__ void depthwise_patch(const float* source, int row_pitch, const Multiply& multiply) {
    constexpr int patch_rows = depthwise_patch_rows(reach), patch_columns = depthwise_patch_columns;
    constexpr int rows = depthwise_scaled(reach, patch_rows) + depthwise_halo(reach, kernel);
    constexpr int columns = depthwise_scaled(reach, patch_columns) + depthwise_halo(reach, kernel);
#pragma unroll
    for (int r = 0; r < rows; ++r) {
        float values[columns];
#pragma unroll
        for (int c = 0; c < columns; ++c) values[c] = source[r * row_pitch + c * pitch];
#pragma unroll
        for (int q = 0; q < patch_rows; ++q)
#pragma unroll
            for (int a = 0; a < kernel; ++a)
                if (depthwise_source<kernel, reach>(q, a) == r)
#pragma unroll
                    for (int p = 0; p < patch_columns; ++p)
#pragma unroll
                        for (int b = 0; b < kernel; ++b)
                            if (depthwise_source<kernel, reach>(p, b) >= 0)
                                multiply(q, p, a * kernel + b, values[depthwise_source<kernel, reach>(p, b)]);
    }
}

// A tile's patches, one warp each in turn: calls visit(image, row, column) with a patch's place in the tile.
template <Reach reach, typename Visit>
__device__ __forceinline__ void depthwise_patches(const DepthwiseTiling& tiling, const Visit& visit) {
    constexpr int patch_rows = depthwise_patch_rows(reach);
    const int across = tiling.tile_columns / depthwise_patch_columns, down = tiling.tile_rows / patch_rows;
    const int warps = static_cast<int>(blockDim.x) / 32, patches = tiling.patches(reach);
    for (int patch = static_cast<int>(threadIdx.x) / 32; patch < patches; patch += warps)
        visit(patch / across / down, patch / across % down * patch_rows, patch % across * depthwise_patch_columns);
}

// Floats of shared memory for depthwise_convolve.
inline int depthwise_shared(const DepthwiseTiling& tiling, int kernel, Reach reach, int vector) {
    return tiling.source_pixels(reach, kernel) * depthwise_pitch(vector) + depthwise_lanes * kernel * kernel;
}

// One tile of 32 channels from `channel` on, of which those below `channels` exist, by all threads of the block.
template <int kernel, Reach reach, typename Load, typename Weight, typename Store>
__device__ __forceinline__ void depthwise_convolve(const DepthwiseTiling& tiling, int number, int channel, int channels,
                                                   Load load, const Weight& weight, Store& store, float* shared) {
    constexpr int taps = kernel * kernel, patch_rows = depthwise_patch_rows(reach),
                  pitch = depthwise_pitch(Load::vector);
    const int halo = depthwise_halo(reach, kernel);
    const int source_rows = depthwise_scaled(reach, tiling.tile_rows) + halo;
    const int source_columns = depthwise_scaled(reach, tiling.tile_columns) + halo;
    const DepthwiseTile tile = depthwise_tile<kernel, reach>(tiling, number);
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;

    float* const filters = shared + tiling.source_pixels(reach, kernel) * pitch;
    for (int i = thread; i < depthwise_lanes * taps; i += static_cast<int>(blockDim.x))
        filters[i] = channel + i / taps < channels ? weight(channel + i / taps, i % taps) : 0.0f;
    load.select(channel + thread % (depthwise_lanes / Load::vector) * Load::vector);
    depthwise_stage(shared, load,
                    {tile.image, tile.source_row, tile.source_column, tiling.tile_images, source_rows, source_columns,
                     tiling.images, tiling.source_height, tiling.source_width});
    __syncthreads();
    if (channel + lane >= channels) return;

    float filter[taps];  // k * k is odd: 32 banks
#pragma unroll
    for (int tap = 0; tap < taps; ++tap) filter[tap] = filters[lane * taps + tap];
    depthwise_patches<reach>(tiling, [&](int image, int row, int column) {
        if (tile.image + image >= tiling.images || tile.row + row >= tiling.height ||
            tile.column + column >= tiling.width)
            return;
        const int first = (image * source_rows + depthwise_scaled(reach, row)) * source_columns;
        const float* const source = shared + (first + depthwise_scaled(reach, column)) * pitch + lane;
        float sums[patch_rows][depthwise_patch_columns] = {};
        depthwise_patch<kernel, reach, pitch>(source, source_columns * pitch, [&](int q, int p, int tap, float value) {
            sums[q][p] = fmaf(value, filter[tap], sums[q][p]);
        });
#pragma unroll
        for (int q = 0; q < patch_rows; ++q)
#pragma unroll
            for (int p = 0; p < depthwise_patch_columns; ++p) {
                const int to_row = tile.row + row + q, to_column = tile.column + column + p;
                if (static_cast<unsigned>(to_row) < static_cast<unsigned>(tiling.height) &&
                    static_cast<unsigned>(to_column) < static_cast<unsigned>(tiling.width))
                    store(tile.image + image, to_row, to_column, sums[q][p]);
            }
    });
}

// Floats of shared memory for depthwise_wgrad, with `warps` in a block.
inline int depthwise_wgrad_shared(const DepthwiseTiling& tiling, int kernel, Reach reach, int vector, int warps) {
    const int pixels =
        tiling.source_pixels(reach, kernel) + tiling.tile_images * tiling.tile_rows * tiling.tile_columns;
    const int maps = pixels * depthwise_pitch(vector), sums = warps * kernel * kernel * depthwise_lanes;
    return maps > sums ? maps : sums;
}

// The filters' gradient over tiles [first, last) of dy, by all threads of the block: calls take(channel, tap, sum) once
// for each tap of the channels that exist, from any thread. Reach::same or Reach::down. The order of the sums is fixed.
template <int kernel, Reach reach, typename LoadX, typename LoadDy, typename Take>
__device__ __forceinline__ void depthwise_wgrad(const DepthwiseTiling& tiling, int first, int last, int channel,
                                                int channels, LoadX load_x, LoadDy load_dy, float* shared,
                                                const Take& take) {
    static_assert(reach != Reach::up && LoadX::vector == LoadDy::vector);
    constexpr int taps = kernel * kernel, patch_rows = depthwise_patch_rows(reach), vector = LoadX::vector;
    constexpr int pitch = depthwise_pitch(vector);
    const int halo = depthwise_halo(reach, kernel);
    const int source_rows = depthwise_scaled(reach, tiling.tile_rows) + halo;
    const int source_columns = depthwise_scaled(reach, tiling.tile_columns) + halo;
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
    float* const dy_shared = shared + tiling.source_pixels(reach, kernel) * pitch;
    load_x.select(channel + thread % (depthwise_lanes / vector) * vector);
    load_dy.select(channel + thread % (depthwise_lanes / vector) * vector);

    float sums[taps] = {};
    for (int number = first; number < last; ++number) {
        const DepthwiseTile tile = depthwise_tile<kernel, reach>(tiling, number);
        depthwise_stage(shared, load_x,
                        {tile.image, tile.source_row, tile.source_column, tiling.tile_images, source_rows,
                         source_columns, tiling.images, tiling.source_height, tiling.source_width});
        depthwise_stage(dy_shared, load_dy,
                        {tile.image, tile.row, tile.column, tiling.tile_images, tiling.tile_rows, tiling.tile_columns,
                         tiling.images, tiling.height, tiling.width});
        __syncthreads();
        depthwise_patches<reach>(tiling, [&](int image, int row, int column) {
            if (tile.image + image >= tiling.images || tile.row + row >= tiling.height ||
                tile.column + column >= tiling.width)
                return;
            const float* const dy =
                dy_shared + ((image * tiling.tile_rows + row) * tiling.tile_columns + column) * pitch + lane;
            float dy_patch[patch_rows][depthwise_patch_columns];
#pragma unroll
            for (int q = 0; q < patch_rows; ++q)
#pragma unroll
                for (int p = 0; p < depthwise_patch_columns; ++p)
                    dy_patch[q][p] = dy[(q * tiling.tile_columns + p) * pitch];
            const int first_source = (image * source_rows + depthwise_scaled(reach, row)) * source_columns;
            const float* const source = shared + (first_source + depthwise_scaled(reach, column)) * pitch + lane;
            depthwise_patch<kernel, reach, pitch>(
                source, source_columns * pitch,
                [&](int q, int p, int tap, float value) { sums[tap] = fmaf(value, dy_patch[q][p], sums[tap]); });
        });
        __syncthreads();
    }
#pragma unroll
    for (int tap = 0; tap < taps; ++tap) shared[(thread / 32 * taps + tap) * depthwise_lanes + lane] = sums[tap];
    __syncthreads();
    for (int i = thread; i < taps * depthwise_lanes; i += static_cast<int>(blockDim.x)) {
        float sum = shared[i];
        for (int warp = 1; warp < static_cast<int>(blockDim.x) / 32; ++warp)
            sum += shared[warp * taps * depthwise_lanes + i];
        if (channel + i % depthwise_lanes < channels) take(channel + i % depthwise_lanes, i / depthwise_lanes, sum);
    }
}

// The elements of a map in memory, as Load and as Store. Strides are in elements.
template <typename T>
struct NhwcLoad {
    static constexpr int vector = vector_of<T>;
    const T* data;
    int64_t n, h, w;
    int channels;
    bool aligned;  // every pixel to 16 bytes
    int selected;

    __device__ __forceinline__ void select(int channel) { selected = channel; }
    __device__ __forceinline__ void operator()(int64_t image, int row, int column, float (&to)[vector]) const {
        load_some(data + image * n + row * h + column * w + selected, channels - selected, aligned, to);
    }
};

template <typename T>
struct NhwcStore {
    T* data;  // of this thread's channel
    int64_t n, h, w;

    __device__ __forceinline__ void operator()(int64_t image, int row, int column, float value) const {
        data[image * n + row * h + column * w] = from_float<T>(value);
    }
};

}  // namespace spos::cuda
