// Sliced convolution, wgrad: dy transposed times the windows of x, where those are pixels or too few channels for the
// direct kernels (sliced_conv2d_direct_wgrad.cpp).
//
// Shapes    x [N, H, W, I], dy [N, H', W', O] -> a slice of dweight [O, I, k, k], per group.
// Work      k * k * I * O multiply-adds a pixel of dy. The slice is written once; nothing else of dweight is touched.
// Method    C[o, (tap, i)] = sum over pixels of dy[pixel, o] * window[pixel, (tap, i)]. The windows of a block of input
//           channels are gathered for some hundred pixels at a time (a pointwise convolution too: rows of B far apart
//           would meet in the same lines of L1), the sums of a block rest in L2, dense for the same reason. They are
//           dealt out to the weight's layout when they are complete.
// Tasks     Parts of the pixels, each with sums of its own, added up in their order; where pixels are few or sums would
//           be many, blocks of input channels and of output channels. The shape alone decides.
#include "core/parallel.h"
#include "cpu/sliced_conv2d_direct_wgrad.h"
#include "cpu/sliced_conv2d_plan.h"

namespace spos {
namespace {

// How the work is cut, by the shape alone.
struct WgradPlan {
    int64_t taps, pixels;
    Cut parts, inputs, outputs;
    int64_t piece;                // pixels gathered at a time
    int64_t x_stride, dy_stride;  // of the maps themselves, or 0: gathered
    bool in_place;                // sums are the gradient itself

    WgradPlan(const SlicedConv2d& shape, int lanes) {
        taps = static_cast<int64_t>(shape.kernel) * shape.kernel;
        pixels = shape.batch * shape.out_height * shape.out_width;
        const int64_t slice = shape.groups * shape.out_channels * shape.in_channels * taps;
        constexpr int64_t task_work = 1 << 19, least_pixels = 192, most_sums = 1 << 19;
        const int64_t wanted = std::clamp<int64_t>(pixels * slice / task_work, 1, enough_tasks);
        // Parts come first: they are the only cut that reads nothing twice. Their sums should stay in L2.
        const int64_t most_parts = std::min({wanted, pixels / least_pixels, most_sums / slice});
        parts = {pixels, power_of_two(most_parts), 1};
        // With few pixels, panels that take all of them at once: then each sum is written once, and can be so in place.
        constexpr int64_t few_pixels = 128;
        in_place = taps == 1 && shape.w_i == 1 && pixels <= few_pixels && pixels > 0;
        const int64_t columns = in_place ? 48 : taps == 1 ? 64 : std::max<int64_t>(288 / taps, lanes);
        const int64_t blocks = ceil_div(wanted, parts.chunks * shape.groups);
        const int64_t least_blocks = ceil_div(shape.in_channels * taps, 1024);
        inputs = cut(shape.in_channels, columns, std::max(blocks, least_blocks), lanes);
        constexpr int64_t least_rows = 32, most_rows = 512, rows_unit = 12;
        // Blocks of outputs gather their windows again: half as many tasks will do.
        const int64_t more = ceil_div(ceil_div(blocks, 2), inputs.chunks);
        outputs =
            cut(shape.out_channels, least_rows, std::max(more, ceil_div(shape.out_channels, most_rows)), rows_unit);
        constexpr int64_t gathered = 1 << 15;  // elements
        const int64_t most_pixels = std::clamp<int64_t>(gathered / (taps * inputs.largest()), 64, 256);
        piece = ceil_div(parts.largest(), std::max<int64_t>(ceil_div(parts.largest(), most_pixels), 1));
        dy_stride = pixel_stride(output_map<const char>(shape, nullptr), shape.batch);
        // Rows that are far apart meet in the same lines of L1, but where the largest power of two in their distance
        // is no more than what a panel takes of each.
        constexpr int64_t panel = 64;
        const int64_t stride = pixel_stride(input_map<const char>(shape, nullptr), shape.batch);
        const bool spreads = stride <= 2 * panel || (stride & -stride) <= panel;
        x_stride = taps == 1 && shape.stride == 1 && spreads ? stride : 0;
    }

    bool keeps() const { return parts.chunks > 1; }  // every part keeps its sums until all are complete
    int64_t depth(int64_t channels) const { return taps * channels; }
};

// Scratch: for each thread the windows it has gathered, and dy where it needs that; sums, of the task at hand for each
// thread, or of every part.
template <typename T>
struct WgradScratch {
    int64_t window_stride, windows_size, dy_stride, dy_size, chunk_size, part_size, block_size;  // in elements
    T* windows;
    T* dy;
    T* sums;
    size_t bytes;

    WgradScratch(const SlicedConv2d& shape, const WgradPlan& plan, void* workspace, int threads) {
        const int64_t columns = plan.depth(plan.inputs.largest());
        window_stride = scratch_stride(columns);
        windows_size = plan.x_stride ? 0 : plan.piece * window_stride;
        dy_stride = scratch_stride(plan.outputs.largest());
        dy_size = plan.dy_stride ? 0 : plan.piece * dy_stride;
        block_size = round_up(plan.outputs.largest() * columns, 16);
        chunk_size = round_up(shape.out_channels * columns, 16);
        part_size = shape.groups * plan.inputs.chunks * chunk_size;
        Carver carver(workspace);
        windows = carver.take<T>(windows_size * threads);
        dy = carver.take<T>(dy_size * threads);
        sums = carver.take<T>(plan.in_place ? 0 : plan.keeps() ? part_size * plan.parts.chunks : block_size * threads);
        bytes = carver.bytes();
    }
};

template <typename T>
class Wgrad {
  public:
    Wgrad(Isa isa, const SlicedConv2d& shape, const T* x, const T* dy, T* dweight, bool accumulate, void* workspace,
          int threads)
        : shape_(shape),
          x_(input_map(shape, x)),
          dy_(output_map(shape, dy)),
          dweight_(dweight),
          accumulate_(accumulate),
          gemm_(gemm_body<T>(isa)),
          body_(sliced_conv2d_body<T>(isa)),
          plan_(shape, gemm_.lanes),
          scratch_(shape, plan_, workspace, threads) {}

    void run(int threads) const {
        const int64_t tasks = plan_.parts.chunks * shape_.groups * plan_.inputs.chunks * plan_.outputs.chunks;
        parallel_for(tasks, threads, [this](int64_t begin, int64_t end, int slot) {
            int64_t gathered = -1;
            for (int64_t task = begin; task < end; ++task) run_task(task, slot, gathered);
        });
        if (!plan_.keeps()) return;
        const Cut rows = cut(shape_.out_channels, 16, enough_tasks, 1);
        parallel_for(shape_.groups * plan_.inputs.chunks * rows.chunks, threads, [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
                const int64_t block = task / rows.chunks, row = task % rows.chunks;
                deal_out(block, scratch_.sums + block * scratch_.chunk_size, rows.begin(row), rows.end(row));
            }
        });
    }

  private:
    // Tasks count output channels fastest: they meet the same windows. gathered: the windows that the slot holds.
    void run_task(int64_t task, int slot, int64_t& gathered) const {
        const int64_t chunks = shape_.groups * plan_.inputs.chunks, windows = task / plan_.outputs.chunks;
        const int64_t block = windows % chunks, part = windows / chunks;
        const int64_t group = block / plan_.inputs.chunks, chunk = block % plan_.inputs.chunks;
        const int64_t o = plan_.outputs.begin(task % plan_.outputs.chunks), i = plan_.inputs.begin(chunk);
        const int64_t inputs = plan_.inputs.end(chunk) - i;
        T* const window = scratch_.windows + slot * scratch_.windows_size;
        T* const slot_dy = scratch_.dy + slot * scratch_.dy_size;
        Map<const T> x = x_, dy = dy_;
        x.data += group * shape_.in_channels + i;
        dy.data += group * shape_.out_channels + o;
        Gemm<T> call{};
        call.m = plan_.outputs.end(task % plan_.outputs.chunks) - o;
        call.n = plan_.depth(inputs);
        call.b = window;
        call.b_k = plan_.x_stride ? plan_.x_stride : scratch_.window_stride;
        call.a_m = 1;
        call.a_k = plan_.dy_stride ? plan_.dy_stride : scratch_.dy_stride;
        T* const kept = scratch_.sums + part * scratch_.part_size + block * scratch_.chunk_size + o * call.n;
        call.c = plan_.keeps() ? kept : scratch_.sums + slot * scratch_.block_size;
        call.c_m = call.n;
        if (plan_.in_place) {
            call.c = dweight_ + (group * shape_.out_channels + o) * shape_.w_o + i;
            call.c_m = shape_.w_o;
            call.accumulate = accumulate_;
        }
        if (plan_.pixels == 0) std::fill_n(call.c, call.m * call.n, T(0));
        for (int64_t first = plan_.parts.begin(part); first < plan_.parts.end(part); first += plan_.piece) {
            const int64_t last = std::min(first + plan_.piece, plan_.parts.end(part));
            call.k = last - first;
            if (plan_.dy_stride) {
                call.a = dy.data + first * plan_.dy_stride;
                ask_for(call.a, call.k, plan_.dy_stride, call.m);
            } else {
                const Window row{shape_.out_height, 1, 0, 0, 1, 1, 0, 1}, column{shape_.out_width, 1, 0, 0, 1, 1, 0, 1};
                body_.gather({dy, row, column, call.m, first, last, slot_dy, scratch_.dy_stride});
                call.a = slot_dy;
            }
            if (plan_.x_stride) {
                call.b = x.data + first * plan_.x_stride;
                constexpr int64_t long_row = 64;  // elements; shorter ones lie together, and are a stream as they are
                if (plan_.x_stride > long_row) ask_for(call.b, call.k, plan_.x_stride, call.n);
            } else if (gathered != windows || call.k < plan_.parts.end(part) - plan_.parts.begin(part)) {
                body_.gather({x, forward_window(shape_, shape_.out_height), forward_window(shape_, shape_.out_width),
                              inputs, first, last, window, scratch_.window_stride});
            }
            gathered = windows;
            gemm_.gemm(call);
            call.accumulate = true;
        }
        if (!plan_.keeps() && !plan_.in_place) deal_out(block, call.c - o * call.n, o, o + call.m);
    }

    // Writes rows [first, end) of a block of the slice from their sums, where `sums` is row 0 (of the first part).
    void deal_out(int64_t block, const T* sums, int64_t first, int64_t end) const {
        const int64_t group = block / plan_.inputs.chunks, chunk = block % plan_.inputs.chunks;
        const int64_t i = plan_.inputs.begin(chunk);
        ScatterWeight<T> scatter{sums,
                                 plan_.parts.chunks,
                                 scratch_.part_size,
                                 first,
                                 end,
                                 plan_.inputs.end(chunk) - i,
                                 plan_.inputs.end(chunk) - i,
                                 static_cast<int>(plan_.taps),
                                 {},
                                 dweight_ + group * shape_.out_channels * shape_.w_o + i * shape_.w_i,
                                 shape_.w_o,
                                 shape_.w_i,
                                 accumulate_};
        for (int h = 0; h < shape_.kernel; ++h)
            for (int w = 0; w < shape_.kernel; ++w)
                scatter.offset[h * shape_.kernel + w] = h * shape_.w_h + w * shape_.w_w;
        body_.scatter(scatter);
    }

    const SlicedConv2d& shape_;
    const Map<const T> x_, dy_;
    T* const dweight_;
    const bool accumulate_;
    const GemmBody<T> gemm_;
    const SlicedConv2dBody<T> body_;
    const WgradPlan plan_;
    const WgradScratch<T> scratch_;
};

template <typename T>
DirectWgradPlan direct_plan(Isa isa, const SlicedConv2d& shape) {
    return {shape, gemm_body<T>(isa).lanes, sliced_conv2d_body<T>(isa).wgrad_rows};
}

template <typename T>
size_t wgrad_workspace(Isa isa, const SlicedConv2d& shape, int threads) {
    const DirectWgradPlan plan = direct_plan<T>(isa, shape);
    if (plan.fits) return DirectWgradScratch<T>(shape, plan, nullptr, threads).bytes;
    return WgradScratch<T>(shape, {shape, gemm_body<T>(isa).lanes}, nullptr, threads).bytes;
}

}  // namespace

size_t sliced_conv2d_wgrad_workspace(Isa isa, const SlicedConv2d& shape, size_t element_size, int threads) {
    return element_size == sizeof(float) ? wgrad_workspace<float>(isa, shape, threads)
                                         : wgrad_workspace<double>(isa, shape, threads);
}

template <typename T>
void sliced_conv2d_wgrad(Isa isa, const SlicedConv2d& shape, const T* x, const T* dy, T* dweight, bool accumulate,
                         void* workspace, int threads) {
    if (direct_plan<T>(isa, shape).fits)
        return run_direct_wgrad(isa, shape, x, dy, dweight, accumulate, workspace, threads);
    Wgrad<T>(isa, shape, x, dy, dweight, accumulate, workspace, threads).run(threads);
}

template void sliced_conv2d_wgrad(Isa, const SlicedConv2d&, const float*, const float*, float*, bool, void*, int);
template void sliced_conv2d_wgrad(Isa, const SlicedConv2d&, const double*, const double*, double*, bool, void*, int);

}  // namespace spos
