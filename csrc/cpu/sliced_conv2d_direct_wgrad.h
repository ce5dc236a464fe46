// wgrad of k x k windows without im2row: how it is cut, and its scratch. See sliced_conv2d_direct.inl.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/sliced_conv2d_band.h"

namespace spos {

// By the shape (and the vectors of the instruction set) alone.
struct DirectWgradPlan {
    bool fits;  // else the windows are gathered
    int64_t taps, lanes;
    Band band;
    PixelBlocks blocks;
    Cut parts;            // of the blocks
    Cut inputs, outputs;  // in vectors of input channels, in tiles of output channels
    bool dy_in_place;     // its pixels are near enough to be met as they are

    DirectWgradPlan(const SlicedConv2d& shape, int lanes, int tile_rows)
        : taps(static_cast<int64_t>(shape.kernel) * shape.kernel),
          lanes(lanes),
          band(forward_window(shape, shape.out_height), forward_window(shape, shape.out_width), shape.in_height,
               shape.in_width),
          blocks(shape.batch, shape.out_height, shape.out_width, 448) {
        constexpr int64_t near = 32;  // elements: two lines
        dy_in_place = shape.y_w <= near;
        // A vector of input channels that is filled up with zeros costs as much as a whole one.
        fits = taps > 1 && shape.batch > 0 && 3 * round_up(shape.in_channels, lanes) <= 4 * shape.in_channels;
        const int64_t slice = shape.groups * shape.out_channels * shape.in_channels * taps;
        constexpr int64_t task_work = 1 << 19, most_sums = 1 << 19, most_task_sums = 1 << 17;
        const int64_t pixels = shape.batch * shape.out_height * shape.out_width;
        const int64_t wanted = std::clamp<int64_t>(pixels * slice / task_work, 1, enough_tasks);
        // Parts come first: they are the only cut that reads nothing twice. Their sums should stay in L2.
        parts = {blocks.count, power_of_two(std::min({wanted, blocks.count, most_sums / slice})), 1};
        const int64_t chunks = std::max(ceil_div(wanted, parts.chunks), ceil_div(slice, most_task_sums)) / shape.groups;
        // Both sides are read again for every chunk of the other: as many of one as of the other.
        int64_t input_chunks = 1;
        while (input_chunks * input_chunks < chunks) ++input_chunks;
        inputs = cut(shape.in_channels, 1, input_chunks, lanes);
        outputs = cut(shape.out_channels, 1, std::max<int64_t>(ceil_div(chunks, inputs.chunks), 1), tile_rows);
    }

    bool keeps() const { return parts.chunks > 1; }  // every part keeps its sums until all are complete
    int64_t channel_stride() const { return round_up(inputs.largest(), lanes); }
};

// Scratch: for each thread bands of x and of dy; sums, of the task at hand for each thread, or of every part.
template <typename T>
struct DirectWgradScratch {
    int64_t x_size, dy_size, sums_size, part_size;  // in elements
    T* x;
    T* dy;
    T* sums;
    size_t bytes;

    DirectWgradScratch(const SlicedConv2d& shape, const DirectWgradPlan& plan, void* workspace, int threads) {
        x_size = round_up(plan.band.most_pixels(plan.blocks) * plan.channel_stride(), 16);
        dy_size = plan.dy_in_place
                      ? 0
                      : round_up(plan.blocks.images * plan.blocks.rows * shape.out_width * plan.outputs.largest(), 16);
        sums_size = round_up(plan.outputs.largest() * plan.taps * plan.channel_stride(), 16);
        part_size = shape.groups * plan.inputs.chunks * plan.outputs.chunks * sums_size;
        Carver carver(workspace);
        x = carver.take<T>(x_size * threads);
        dy = carver.take<T>(dy_size * threads);
        sums = carver.take<T>(plan.keeps() ? part_size * plan.parts.chunks : sums_size * threads);
        bytes = carver.bytes();
    }
};

template <typename T>
void run_direct_wgrad(Isa isa, const SlicedConv2d& shape, const T* x, const T* dy, T* dweight, bool accumulate,
                      void* workspace, int threads);

}  // namespace spos
