// Sliced convolution, wgrad of windows of more than one tap: see sliced_conv2d_direct.inl.
//
// Shapes    x [N, H, W, I], dy [N, H', W', O] -> a slice of dweight [O, I, k, k], per group.
// Method    For a block of pixels, x goes to a band of vectors of input channels and dy to tiles of output channels;
//           sums[o, tap, i] rest in L2 and are dealt out to the weight's layout when they are complete.
// Tasks     Parts of the pixels, each with sums of its own, added up in their order; where pixels are few or sums would
//           be many, blocks of input channels and of output channels. The shape alone decides.
#include "cpu/sliced_conv2d_direct_wgrad.h"

#include "core/parallel.h"

namespace spos {
namespace {

template <typename T>
class DirectWgradTasks {
  public:
    DirectWgradTasks(Isa isa, const SlicedConv2d& shape, const T* x, const T* dy, T* dweight, bool accumulate,
                     void* workspace, int threads)
        : shape_(shape),
          x_(input_map(shape, x)),
          dy_(output_map(shape, dy)),
          dweight_(dweight),
          accumulate_(accumulate),
          body_(sliced_conv2d_body<T>(isa)),
          plan_(shape, gemm_body<T>(isa).lanes, body_.wgrad_rows),
          scratch_(shape, plan_, workspace, threads) {}

    void run(int threads) const {
        const int64_t tiles = shape_.groups * plan_.inputs.chunks * plan_.outputs.chunks;
        parallel_for(plan_.parts.chunks * tiles, threads, [this, tiles](int64_t begin, int64_t end, int slot) {
            for (int64_t task = begin; task < end; ++task) run_task(task / tiles, at(task % tiles), slot);
        });
        if (!plan_.keeps()) return;
        const Cut rows = cut(plan_.outputs.largest(), 4, enough_tasks, 1);
        parallel_for(tiles * rows.chunks, threads, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
                const Tile tile = at(task / rows.chunks);
                const int64_t row = task % rows.chunks;
                deal_out(tile, scratch_.sums + tile.index * scratch_.sums_size, rows.begin(row),
                         std::min(rows.end(row), tile.outputs));
            }
        });
    }

  private:
    // A block of the slice: input channels i and output channels o of a group.
    struct Tile {
        int64_t index, group, i, inputs, o, outputs;
    };

    Tile at(int64_t index) const {
        const int64_t output = index % plan_.outputs.chunks, rest = index / plan_.outputs.chunks;
        const int64_t input = rest % plan_.inputs.chunks, i = plan_.inputs.begin(input);
        const int64_t o = plan_.outputs.begin(output);
        return {index, rest / plan_.inputs.chunks, i, plan_.inputs.end(input) - i, o, plan_.outputs.end(output) - o};
    }

    void run_task(int64_t part, const Tile& tile, int slot) const {
        T* const x = scratch_.x + slot * scratch_.x_size;
        T* const sums = plan_.keeps() ? scratch_.sums + part * scratch_.part_size + tile.index * scratch_.sums_size
                                      : scratch_.sums + slot * scratch_.sums_size;
        for (int64_t block = plan_.parts.begin(part); block < plan_.parts.end(part); ++block) {
            const PixelBlocks::Block pixels = plan_.blocks.at(block);
            Map<const T> from = x_;
            from.data += tile.group * shape_.in_channels + tile.i;
            plan_.band.fill(body_, from, pixels, tile.inputs, plan_.lanes, true, x);
            add_block(tile, pixels, x, dy_of(tile, pixels, slot), sums, block > plan_.parts.begin(part));
        }
        if (!plan_.keeps()) deal_out(tile, sums, 0, tile.outputs);
    }

    // dy itself, or a copy in tiles.
    const T* dy_of(const Tile& tile, const PixelBlocks::Block& pixels, int slot) const {
        const int64_t rows = pixels.end - pixels.first, size = rows * shape_.out_width;
        const T* const first =
            dy_.data + pixels.first * dy_.h + pixels.image * dy_.n + tile.group * shape_.out_channels + tile.o;
        if (plan_.dy_in_place) return first;
        T* const to = scratch_.dy + slot * scratch_.dy_size;
        for (int64_t image = 0; image < pixels.images; ++image)
            body_.direct_fill({first + image * dy_.n, dy_.h, dy_.w, shape_.out_width, rows, shape_.out_width, 0,
                               tile.outputs, body_.wgrad_rows, false, to, pixels.images * size, image * size});
        return to;
    }

    void add_block(const Tile& tile, const PixelBlocks::Block& pixels, const T* x, const T* dy, T* sums,
                   bool accumulate) const {
        const Band& band = plan_.band;
        const int64_t lanes = plan_.lanes, size = pixels.images * band.image_pixels(pixels);
        DirectWgrad<T> call{};
        call.x_first = band.first_row(pixels);
        call.x_image = band.image_pixels(pixels) * lanes;
        call.x_row = band.pitch * lanes;
        call.x_pixel = shape_.stride * lanes;
        call.height = shape_.in_height;
        call.rows = band.rows;
        call.columns = band.columns;
        call.edges = band.has_edges();
        call.images = pixels.images;
        call.first = pixels.first;
        call.end = pixels.end;
        call.count = shape_.out_width;
        call.sums_tap = plan_.channel_stride();
        call.sums_row = plan_.taps * call.sums_tap;
        call.accumulate = accumulate;
        if (plan_.dy_in_place) {
            call.dy_image = dy_.n;
            call.dy_row = dy_.h;
            call.dy_pixel = dy_.w;
        }
        const int64_t rows = pixels.end - pixels.first;
        for (int64_t i = 0; i < tile.inputs; i += lanes) {
            call.x = x + i * size;
            for (int64_t o = 0; o < tile.outputs; o += body_.wgrad_rows) {
                call.outputs = std::min<int64_t>(body_.wgrad_rows, tile.outputs - o);
                call.dy = dy + o;
                if (!plan_.dy_in_place) {
                    call.dy = dy + o * pixels.images * rows * call.count;
                    call.dy_pixel = call.outputs;
                    call.dy_row = call.count * call.outputs;
                    call.dy_image = rows * call.dy_row;
                }
                call.sums = sums + o * call.sums_row + i;
                body_.direct_wgrad(call);
            }
        }
    }

    // Writes rows [first, end) of a tile of the slice from their sums, where `sums` is row 0 (of the first part).
    void deal_out(const Tile& tile, const T* sums, int64_t first, int64_t end) const {
        ScatterWeight<T> scatter{};
        scatter.partial = sums;
        scatter.parts = plan_.parts.chunks;
        scatter.part_stride = scratch_.part_size;
        scatter.first_row = first;
        scatter.end_row = end;
        scatter.channels = tile.inputs;
        scatter.channel_stride = plan_.channel_stride();
        scatter.taps = static_cast<int>(plan_.taps);
        for (int h = 0; h < shape_.kernel; ++h)
            for (int w = 0; w < shape_.kernel; ++w)
                scatter.offset[h * shape_.kernel + w] = h * shape_.w_h + w * shape_.w_w;
        scatter.dweight = dweight_ + (tile.group * shape_.out_channels + tile.o) * shape_.w_o + tile.i * shape_.w_i;
        scatter.stride_o = shape_.w_o;
        scatter.stride_c = shape_.w_i;
        scatter.accumulate = accumulate_;
        body_.scatter(scatter);
    }

    const SlicedConv2d& shape_;
    const Map<const T> x_, dy_;
    T* const dweight_;
    const bool accumulate_;
    const SlicedConv2dBody<T> body_;
    const DirectWgradPlan plan_;
    const DirectWgradScratch<T> scratch_;
};

}  // namespace

template <typename T>
void run_direct_wgrad(Isa isa, const SlicedConv2d& shape, const T* x, const T* dy, T* dweight, bool accumulate,
                      void* workspace, int threads) {
    DirectWgradTasks<T>(isa, shape, x, dy, dweight, accumulate, workspace, threads).run(threads);
}

template void run_direct_wgrad(Isa, const SlicedConv2d&, const float*, const float*, float*, bool, void*, int);
template void run_direct_wgrad(Isa, const SlicedConv2d&, const double*, const double*, double*, bool, void*, int);

}  // namespace spos
