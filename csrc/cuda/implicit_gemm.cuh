// Convolutions as matrix products without a matrix of patches: loaders of gemm.cuh that find the elements where they
// are, in NHWC maps and in slices of weights of any strides.
//
// Forward   rows: pixels of y      columns: output channels       k: input channels and taps
// dgrad     rows: pixels of dx     columns: input channels        k: output channels and taps
// wgrad     rows: output channels  columns: input channels, taps  k: pixels of y
//
// Channels and taps share an index: a block of channels (a power of two, at most a step of gemm.cuh), its taps one
// after the other, then the next block. The next steps read other taps of the same channels, which lie mostly in the
// same pixels of the map, and in the same sectors of a weight [O, I, k, k]: both are found in L1.
//
// Weights whose input channels are adjacent (channels_last, 1 x 1) are read 16 bytes at a time. In others a channel is
// k * k elements from the next, each a load of its own; what counts is how many lines of L1 a warp's load meets:
//     forward  blocks are as small as a vector: the four vectors of a step are neighbouring taps, adjacent in memory.
//     dgrad    columns are interleaved: lanes, and not the elements of a lane's vector, take neighbouring channels.
#pragma once

#include "cuda/gemm.cuh"

namespace spos::cuda {

// Division by a number that the host knows, of numbers below 2^31 (Granlund and Montgomery, "Division by Invariant
// Integers using Multiplication", PLDI 1994).
struct Divisor {
    unsigned divisor, multiplier, shift;

    __device__ __forceinline__ int quotient(int number) const {
        const unsigned n = static_cast<unsigned>(number);
        return static_cast<int>((static_cast<unsigned>((uint64_t{n} * multiplier) >> 32) + n) >> shift);
    }
    // The remainder; the quotient takes the number's place.
    __device__ __forceinline__ int divide(int& number) const {
        const int whole = quotient(number);
        const int rest = number - whole * static_cast<int>(divisor);
        number = whole;
        return rest;
    }
};
inline Divisor divisor_of(int64_t value) {
    const uint64_t divisor = static_cast<uint64_t>(value);
    unsigned shift = 0;
    while ((uint64_t{1} << shift) < divisor) ++shift;
    const uint64_t multiplier = (((uint64_t{1} << shift) - divisor) << 32) / divisor + 1;
    return {static_cast<unsigned>(divisor), static_cast<unsigned>(multiplier), shift};
}

// An index of pixels, through rows and images.
struct PixelGrid {
    int size;
    Divisor height, width;

    struct Pixel {
        int image, row, column;
    };
    __device__ __forceinline__ Pixel at(int index) const {
        const int column = width.divide(index), row = height.divide(index);
        return {index, row, column};
    }
};

// The index of channels and taps.
struct ChannelTaps {
    int log_block;  // of the channels in a block
    Divisor taps, columns;

    struct At {
        int channel, row, column;
    };
    template <bool pointwise>
    __device__ __forceinline__ At at(int index) const {
        if (pointwise) return {index, 0, 0};
        int block = index >> log_block;
        int row = taps.divide(block);
        const int column = columns.divide(row);
        return {(block << log_block) + (index & ((1 << log_block) - 1)), row, column};
    }
    // How far the index goes.
    template <bool pointwise>
    __device__ __forceinline__ int size(int channels) const {
        if (pointwise) return channels;
        return (((channels - 1) >> log_block) + 1) * static_cast<int>(taps.divisor) << log_block;
    }
};

// Blocks of at most this many channels, less where there are few: but whole vectors.
inline ChannelTaps channel_taps(int channels, int rows, int columns, int vector, int block) {
    int log_block = 0;
    while (1 << log_block < vector || (1 << log_block < block && 1 << log_block < channels)) ++log_block;
    return {log_block, divisor_of(int64_t{rows} * columns), divisor_of(columns)};
}

// 16 bytes of elements of which `count` exist, zeros behind them. contiguous: they are one aligned load.
template <typename T>
__device__ __forceinline__ uint4 load_elements(const T* from, int64_t stride, int count, bool contiguous) {
    if (contiguous && count >= vector_of<T>) return *reinterpret_cast<const uint4*>(from);
    unsigned words[4] = {};
#pragma unroll
    for (int i = 0; i < vector_of<T>; ++i)
        if (i < count) {
            if constexpr (sizeof(T) == 4)
                words[i] = __float_as_uint(from[i * stride]);
            else
                words[i / 2] |= bits16(from[i * stride]) << (i % 2 * 16);
        }
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// Where a map's elements are. Strides are in elements; vectors: its pixels start at multiples of 16 bytes.
template <typename T>
struct NhwcMap {
    T* data;
    int64_t n, h, w;
    int height, width;
    bool vectors;

    __device__ __forceinline__ int64_t offset(int image, int row, int column) const {
        return image * n + row * h + column * w;
    }
    __device__ __forceinline__ bool inside(int row, int column) const {
        return static_cast<unsigned>(row) < static_cast<unsigned>(height) &&
               static_cast<unsigned>(column) < static_cast<unsigned>(width);
    }
};

// How pixels of a map are reached: pixel (i, j) of a grid and tap (a, b) meet at row scale * i + first_row +
// direction * a, and so for columns.
struct Window {
    int scale, first_row, first_column, direction;
};

// Operand a of forward and dgrad: pixels of a grid, their channels and taps. flat: the grid is a matrix, pixel i at
// i * w, and there is one tap.
template <typename T, bool flat>
struct PatchLoader {
    static constexpr bool k_major = true;
    NhwcMap<const T> map;
    PixelGrid grid;
    Window window;
    ChannelTaps taps;
    int channels;

    struct Place {
        int64_t offset;  // negative: no such pixel (flat)
        int row, column;
    };
    __device__ __forceinline__ Place place(int index) const {
        if constexpr (flat) return {index < grid.size ? index * map.w : -1, 0, 0};
        if (index >= grid.size) return {0, INT32_MIN / 2, 0};
        const PixelGrid::Pixel pixel = grid.at(index);
        const int row = window.scale * pixel.row + window.first_row;
        const int column = window.scale * pixel.column + window.first_column;
        return {map.offset(pixel.image, row, column), row, column};
    }
    __device__ __forceinline__ uint4 load(const Place& place, int k) const {
        const ChannelTaps::At at = taps.at<flat>(k);
        const int row = window.direction * at.row, column = window.direction * at.column;
        const bool there = flat ? place.offset >= 0 : map.inside(place.row + row, place.column + column);
        const int64_t offset = flat ? place.offset : place.offset + row * map.h + column * map.w;
        return load_elements(map.data + offset + at.channel, 1, there ? channels - at.channel : 0, map.vectors);
    }
};

// A slice of a weight: element (column of the product, channel, tap) of operand b of forward and dgrad.
template <typename T>
struct WeightSlice {
    const T* data;
    int64_t column, channel, h, w;  // strides
    int columns, channels;
    bool vectors;      // input channels are adjacent, vectors of them aligned
    bool interleaved;  // column number i of a tile lies at interleaved_column(i)
};
template <typename T>
__device__ __forceinline__ int interleaved_column(int column) {
    constexpr int lanes = GemmTile::columns / vector_of<T>;
    return column % lanes * vector_of<T> + column / lanes;
}

template <typename T, bool along_k, bool flat>
struct WeightLoader {
    static constexpr bool k_major = along_k;
    WeightSlice<T> slice;
    ChannelTaps taps;

    struct Place {
        int64_t offset;
        int count;  // of columns from this one on
    };
    __device__ __forceinline__ Place place(int column) const {
        constexpr int tile = GemmTile::columns;
        if (!flat && slice.interleaved) column = column / tile * tile + column % tile / vector_of<T>;
        return {column * slice.column, slice.columns - column};
    }
    __device__ __forceinline__ uint4 load(const Place& place, int k) const {
        const ChannelTaps::At at = taps.at<flat>(k);
        const int count = slice.channels - at.channel;
        const T* const from =
            slice.data + place.offset + at.channel * slice.channel + at.row * slice.h + at.column * slice.w;
        if constexpr (along_k) return load_elements(from, slice.channel, place.count > 0 ? count : 0, slice.vectors);
        constexpr int lanes = GemmTile::columns / vector_of<T>;
        const bool interleaved = !flat && slice.interleaved;
        const int step = interleaved ? lanes : 1;
        const int columns = interleaved ? (place.count + lanes - 1) / lanes : place.count;
        return load_elements(from, step * slice.column, count > 0 ? columns : 0, slice.vectors);
    }
};

// wgrad's operand a: channels of dy by pixels. flat: pixel i is at i * w.
template <typename T, bool flat>
struct ChannelLoader {
    static constexpr bool k_major = false;
    NhwcMap<const T> map;
    PixelGrid grid;
    int channels;

    using Place = int;
    __device__ __forceinline__ Place place(int channel) const { return channel; }
    __device__ __forceinline__ uint4 load(Place channel, int k) const {
        if (k >= grid.size) return make_uint4(0, 0, 0, 0);
        int64_t offset = k * map.w;
        if constexpr (!flat) {
            const PixelGrid::Pixel pixel = grid.at(k);
            offset = map.offset(pixel.image, pixel.row, pixel.column);
        }
        return load_elements(map.data + offset + channel, 1, channels - channel, map.vectors);
    }
};

// wgrad's operand b: channels and taps of x by pixels of y.
template <typename T, bool flat>
struct TapLoader {
    static constexpr bool k_major = false;
    NhwcMap<const T> map;
    PixelGrid grid;
    Window window;
    ChannelTaps taps;
    int channels;

    using Place = ChannelTaps::At;
    __device__ __forceinline__ Place place(int column) const { return taps.at<flat>(column); }
    __device__ __forceinline__ uint4 load(const Place& at, int k) const {
        if (k >= grid.size) return make_uint4(0, 0, 0, 0);
        int64_t offset = k * map.w;
        bool there = true;
        if constexpr (!flat) {
            const PixelGrid::Pixel pixel = grid.at(k);
            const int row = window.scale * pixel.row + window.first_row + at.row;
            const int column = window.scale * pixel.column + window.first_column + at.column;
            offset = map.offset(pixel.image, row, column);
            there = map.inside(row, column);
        }
        return load_elements(map.data + offset + at.channel, 1, there ? channels - at.channel : 0, map.vectors);
    }
};

}  // namespace spos::cuda
