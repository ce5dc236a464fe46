// Sliced convolution, wgrad: dy transposed times the windows of x.
//
// Shapes    x [N, H, W, I], dy [N, H', W', O] -> a slice of dweight [O, I, k, k], per group.
// Work      k * k * I * O multiply-adds a pixel of dy. The slice is written once; nothing else of dweight is touched.
// Method    C[o, (tap, i)] = sum over pixels of dy[pixel, o] * window[pixel, (tap, i)]. The windows of a block of input
//           channels are gathered for some hundred pixels at a time (a pointwise convolution too: rows of B far apart
//           would meet in the same lines of L1), the sums of a block rest in L2. Those of a pointwise convolution are
//           made in place, those of a k x k one are dealt out to torch's layout [o, i, kh, kw] when they are complete.
// Tasks     Blocks of input channels times blocks of output channels. Where that gives too few, pixels are cut into
//           parts as well, each with sums of its own, added up in their order: the shape alone decides.
#include "core/parallel.h"
#include "cpu/sliced_conv2d_plan.h"

namespace spos {
namespace {

// How the work is cut, by the shape alone.
struct WgradPlan {
    int64_t taps, pixels;
    Cut inputs, outputs, parts;
    int64_t piece;      // pixels gathered at a time
    bool in_place;      // the products' sums are the gradient itself
    bool keeps;         // every part keeps its sums until all are complete
    int64_t dy_stride;  // of dy itself, or 0: gathered

    WgradPlan(const SlicedConv2d& shape, int lanes) {
        taps = static_cast<int64_t>(shape.kernel) * shape.kernel;
        pixels = shape.batch * shape.out_height * shape.out_width;
        constexpr int64_t columns = 288, least_rows = 32, most_rows = 512, least_pixels = 512, most_pixels = 256;
        const int64_t target = std::max<int64_t>(taps == 1 ? 128 : columns / taps, lanes);
        inputs = cut(shape.in_channels, target, enough_tasks, lanes);
        const int64_t few = ceil_div(enough_tasks, shape.groups * inputs.chunks);
        const int64_t rows =
            std::max(ceil_div(shape.out_channels, most_rows), std::min(few, shape.out_channels / least_rows));
        outputs = {shape.out_channels, std::max<int64_t>(rows, 1), 1};
        const int64_t blocks = shape.groups * inputs.chunks * outputs.chunks;
        const int64_t wanted = std::min(ceil_div(enough_tasks, blocks), pixels / least_pixels);
        parts = {pixels, std::max<int64_t>(wanted, 1), 1};
        const int64_t pieces = ceil_div(parts.largest(), most_pixels);
        piece = pieces ? ceil_div(parts.largest(), pieces) : 0;
        keeps = parts.chunks > 1;
        in_place = taps == 1 && shape.w_i == 1 && !keeps;
        dy_stride = pixel_stride(output_map<const char>(shape, nullptr), shape.batch);
    }

    int64_t depth(int64_t channels) const { return taps * channels; }
};

template <typename T>
ScatterWeight<T> scattering(const SlicedConv2d& shape, const WgradPlan& plan, int64_t group, int64_t chunk,
                            const T* partial, T* dweight, bool accumulate) {
    const int64_t first = plan.inputs.begin(chunk);
    ScatterWeight<T> scatter{partial,
                             plan.parts.chunks,
                             0,
                             0,
                             0,
                             plan.inputs.end(chunk) - first,
                             static_cast<int>(plan.taps),
                             {},
                             dweight + group * shape.out_channels * shape.w_o + first * shape.w_i,
                             shape.w_o,
                             shape.w_i,
                             accumulate};
    for (int h = 0; h < shape.kernel; ++h)
        for (int w = 0; w < shape.kernel; ++w) scatter.offset[h * shape.kernel + w] = h * shape.w_h + w * shape.w_w;
    return scatter;
}

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
        windows_size = plan.piece * window_stride;
        dy_stride = scratch_stride(plan.outputs.largest());
        dy_size = plan.dy_stride ? 0 : plan.piece * dy_stride;
        block_size = round_up(plan.outputs.largest() * columns, 16);
        chunk_size = round_up(shape.out_channels * columns, 16);
        part_size = shape.groups * plan.inputs.chunks * chunk_size;
        Carver carver(workspace);
        windows = carver.take<T>(windows_size * threads);
        dy = carver.take<T>(dy_size * threads);
        sums = carver.take<T>(plan.in_place ? 0 : plan.keeps ? part_size * plan.parts.chunks : block_size * threads);
        bytes = carver.bytes();
    }
};

template <typename T>
void run_wgrad(Isa isa, const SlicedConv2d& shape, const T* x, const T* dy, T* dweight, bool accumulate,
               void* workspace, int threads) {
    const GemmBody<T> gemm = gemm_body<T>(isa);
    const SlicedConv2dBody<T> body = sliced_conv2d_body<T>(isa);
    const WgradPlan plan(shape, gemm.lanes);
    const WgradScratch<T> scratch(shape, plan, workspace, threads);
    const int64_t chunks = plan.inputs.chunks;
    const Window rows = forward_window(shape, shape.out_height), columns = forward_window(shape, shape.out_width);
    const Window all_rows{shape.out_height, 1, 0, 0, 1, 1, 0, 1}, all_columns{shape.out_width, 1, 0, 0, 1, 1, 0, 1};
    const int64_t tasks = plan.parts.chunks * shape.groups * chunks * plan.outputs.chunks;
    parallel_for(tasks, threads, [&](int64_t begin, int64_t end, int slot) {
        T* const window = scratch.windows + slot * scratch.windows_size;
        T* const slot_dy = scratch.dy + slot * scratch.dy_size;
        for (int64_t task = begin; task < end; ++task) {
            const int64_t row_block = task % plan.outputs.chunks, rest = task / plan.outputs.chunks;
            const int64_t chunk = rest % chunks, group = rest / chunks % shape.groups,
                          part = rest / chunks / shape.groups;
            const int64_t o = plan.outputs.begin(row_block), i = plan.inputs.begin(chunk);
            const int64_t inputs = plan.inputs.end(chunk) - i;
            Gemm<T> call{};
            call.m = plan.outputs.end(row_block) - o;
            call.n = plan.depth(inputs);
            call.b = window;
            call.b_k = scratch.window_stride;
            call.c_m = plan.in_place ? shape.w_o : call.n;
            call.c = plan.in_place ? dweight + (group * shape.out_channels + o) * shape.w_o + i
                     : plan.keeps  ? scratch.sums + part * scratch.part_size +
                                         (group * chunks + chunk) * scratch.chunk_size + o * call.n
                                   : scratch.sums + slot * scratch.block_size;
            call.accumulate = plan.in_place && accumulate;
            Map<const T> x_map = input_map(shape, x), dy_map = output_map(shape, dy);
            x_map.data += group * shape.in_channels + i;
            dy_map.data += group * shape.out_channels + o;
            const int64_t part_end = plan.parts.end(part);
            if (plan.pixels == 0 && !call.accumulate)
                for (int64_t row = 0; row < call.m; ++row) std::fill_n(call.c + row * call.c_m, call.n, T(0));
            for (int64_t first = plan.parts.begin(part); first < part_end; first += plan.piece) {
                const int64_t last = std::min(first + plan.piece, part_end);
                body.gather({x_map, rows, columns, inputs, first, last, window, scratch.window_stride});
                call.k = last - first;
                call.a_m = 1;
                call.a = slot_dy;
                call.a_k = scratch.dy_stride;
                if (plan.dy_stride) {
                    call.a = dy_map.data + first * plan.dy_stride;
                    call.a_k = plan.dy_stride;
                } else {
                    body.gather({dy_map, all_rows, all_columns, call.m, first, last, slot_dy, scratch.dy_stride});
                }
                gemm.gemm(call);
                call.accumulate = true;
            }
            if (plan.in_place || plan.keeps) continue;
            ScatterWeight<T> scatter = scattering(shape, plan, group, chunk, call.c, dweight, accumulate);
            scatter.dweight += o * shape.w_o;
            scatter.end_row = call.m;
            body.scatter(scatter);
        }
    });
    if (!plan.keeps) return;
    parallel_for(shape.groups * chunks, threads, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            ScatterWeight<T> scatter = scattering(shape, plan, task / chunks, task % chunks,
                                                  scratch.sums + task * scratch.chunk_size, dweight, accumulate);
            scatter.part_stride = scratch.part_size;
            scatter.end_row = shape.out_channels;
            body.scatter(scatter);
        }
    });
}

}  // namespace

size_t sliced_conv2d_wgrad_workspace(Isa isa, const SlicedConv2d& shape, size_t element_size, int threads) {
    if (element_size == sizeof(float)) {
        const WgradPlan plan(shape, gemm_body<float>(isa).lanes);
        return WgradScratch<float>(shape, plan, nullptr, threads).bytes;
    }
    const WgradPlan plan(shape, gemm_body<double>(isa).lanes);
    return WgradScratch<double>(shape, plan, nullptr, threads).bytes;
}

template <typename T>
void sliced_conv2d_wgrad(Isa isa, const SlicedConv2d& shape, const T* x, const T* dy, T* dweight, bool accumulate,
                         void* workspace, int threads) {
    run_wgrad<T>(isa, shape, x, dy, dweight, accumulate, workspace, threads);
}

template void sliced_conv2d_wgrad(Isa, const SlicedConv2d&, const float*, const float*, float*, bool, void*, int);
template void sliced_conv2d_wgrad(Isa, const SlicedConv2d&, const double*, const double*, double*, bool, void*, int);

}  // namespace spos
