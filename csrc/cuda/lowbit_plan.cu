// Which kernels run a low-bit convolution, and how: a plan follows from sizes, widths and the device, by arithmetic
// that is written out here, not by measurement.
#include "cuda/lowbit_bodies.cuh"

#include <algorithm>

namespace spos::cuda {
namespace {

constexpr int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
constexpr int64_t blocks_of(int64_t value, int64_t size) { return (value + size - 1) / size; }
int64_t channels_of(const LowbitConv2d& call) { return int64_t{call.groups} * call.inputs; }

int codes_of_chunk(LowbitBody body) {
    return body == LowbitBody::s4   ? BodyTraits<LowbitBody::s4>::codes
           : body == LowbitBody::b1 ? BodyTraits<LowbitBody::b1>::codes
                                    : BodyTraits<LowbitBody::s8>::codes;
}
bool on_tensor_cores(LowbitBody body) { return body <= LowbitBody::b1; }

// How a body goes through x.
struct Layout {
    LowbitForm form;
    int parts, inputs, codes, chunks, planes;  // as in LowbitInput
    int taps;
    int64_t input_bytes;  // 0 in place

    int64_t steps(int segments) const { return blocks_of(int64_t{taps} * chunks, 4) * segments; }
};

int segments_of(LowbitBody body, const LowbitConv2d& call) {
    return body == LowbitBody::b1 ? call.x.bits * call.weight.bits : call.weight.scale_groups;
}

Layout layout_of(LowbitBody body, const LowbitConv2d& call) {
    const int codes = codes_of_chunk(body);
    Layout layout{};
    if (!on_tensor_cores(body)) {  // codes, side by side: rows makes them itself
        layout.parts = layout.planes = layout.taps = 1,
        layout.inputs = layout.codes = static_cast<int>(channels_of(call));
        layout.chunks = static_cast<int>(blocks_of(layout.codes, codes));
        layout.form = call.x.codes || body == LowbitBody::rows ? LowbitForm::in_place : LowbitForm::pixels;
        if (layout.form != LowbitForm::in_place) layout.input_bytes = call.map.in_pixels() * layout.chunks * 16;
        return layout;
    }
    layout.parts = call.groups * call.weight.scale_groups;
    layout.inputs = call.inputs / call.weight.scale_groups;
    layout.planes = body == LowbitBody::b1 ? call.x.bits : 1;
    // Pixels of few channels would fill a quarter of a chunk at most.
    const bool windows = call.map.taps() > 1 && layout.inputs * 4 <= codes;
    const bool outside = call.x.zero != 0 && call.map.padded();  // cp.async fills with zeros only
    const bool aligned = call.x.codes && reinterpret_cast<uintptr_t>(call.x.codes) % 16 == 0 &&
                         (call.x.stride % 16 == 0 || call.map.in_pixels() == 1) &&
                         (layout.parts == 1 || layout.inputs % 16 == 0);
    layout.form = windows                                         ? LowbitForm::windows
                  : body == LowbitBody::s8 && aligned && !outside ? LowbitForm::in_place
                                                                  : LowbitForm::pixels;
    layout.codes = windows ? static_cast<int>(call.k()) : layout.inputs;
    layout.taps = windows ? 1 : call.map.taps();
    layout.chunks = static_cast<int>(blocks_of(layout.codes, codes));
    if (layout.form != LowbitForm::in_place) {
        const int64_t rows = windows ? call.map.pixels() : call.map.in_pixels() + outside;
        layout.input_bytes = rows * layout.parts * layout.planes * layout.chunks * 16;
    }
    return layout;
}

// Clocks of one SM of an A100, summed over SMs. A step of a tile of 128 x 128 takes 512, a quarter of that where it is
// of 64 x 64: a tensor core's mma of s8, s4 and b1 multiply 32, 64 and 256 codes in the same time. Bit planes have
// small tiles alone, whose 192 passes over the shared banks take longer. The direct kernel issues 4 of its warps'
// instructions a clock: 8 for a word and four columns, or 20 where it transposes. HBM gives an SM 10 bytes a clock. A
// launch takes 4000 clocks of every SM.
double clocks_of(LowbitBody body, const LowbitConv2d& call, LowbitDevice device) {
    const Layout layout = layout_of(body, call);
    const double pixels = static_cast<double>(call.map.pixels());
    double clocks;
    if (body == LowbitBody::direct) {
        const double words = static_cast<double>(LowbitDirect::words_of(call) * blocks_of(call.columns(), 4));
        clocks = pixels * words * (LowbitDirect::depthwise(call) ? 20 : 8) / (4 * 32);
    } else {
        const double tiles =
            std::max(pixels / 64, 1.0) * static_cast<double>(blocks_of(call.outputs, 64) * call.groups);
        clocks =
            (body == LowbitBody::b1 ? 192 : 128) * tiles * static_cast<double>(layout.steps(segments_of(body, call)));
    }
    if (layout.form != LowbitForm::in_place) {
        const double codes = static_cast<double>(call.map.in_pixels() * channels_of(call));
        const double size = call.x.codes ? 1 : call.x.element == Element::float32 ? 4 : 2;
        clocks += (codes * size + 2 * static_cast<double>(layout.input_bytes)) / 10 + 4000.0 * device.multiprocessors;
    }
    return clocks;
}

LowbitBody body_of(const LowbitConv2d& call, LowbitDevice device) {
    if (lowbit_can(LowbitBody::rows, call, device)) return LowbitBody::rows;
    LowbitBody best = LowbitBody::s8;
    for (const LowbitBody other : {LowbitBody::s4, LowbitBody::b1, LowbitBody::direct})
        if (lowbit_can(other, call, device) && clocks_of(other, call, device) < clocks_of(best, call, device))
            best = other;
    return best;
}

int64_t tiles_of(const LowbitConv2d& call, int tile) {
    return blocks_of(call.map.pixels(), tile) * blocks_of(call.outputs, tile) * call.groups;
}

}  // namespace

LowbitDevice lowbit_device([[maybe_unused]] int device) {
#if defined(__CUDACC__)
    int major = 0, minor = 0, multiprocessors = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    return {10 * major + minor, std::max(multiprocessors, 1)};
#else
    return {__CUDA_ARCH__ / 10, 108};  // an A100's
#endif
}

bool lowbit_can(LowbitBody body, const LowbitConv2d& call, LowbitDevice device) {
    const LowbitWeight& weight = call.weight;
    switch (body) {
        case LowbitBody::s8:
            return true;
        case LowbitBody::s4:
            return device.capability < 90 && call.x.bits <= 4 && weight.bits <= 4;
        case LowbitBody::b1:
            return device.capability < 100 && weight.bits <= 2 && weight.scale_groups == 1;
        case LowbitBody::rows:
            return call.map.plain() && call.groups == 1 && call.map.pixels() <= LowbitRows::most &&
                   weight.scale_groups == 1;
        case LowbitBody::direct:
            return call.groups > 1 && LowbitDirect::words_of(call) <= LowbitDirect::most_words;
    }
    return false;
}

namespace {

// Several blocks share a k of so many steps where blocks alone are too few; each takes at least `least` steps.
int splits_of(int64_t blocks, int64_t steps, int64_t least, int64_t wanted_blocks, int wanted) {
    if (blocks < 1 || blocks > lowbit_counters) return 1;  // none for an empty batch
    const int64_t splits = std::min<int64_t>({wanted_blocks / blocks, steps / least, 32});
    return static_cast<int>(std::clamp<int64_t>(wanted ? wanted : splits, 1, steps));
}

}  // namespace

LowbitPlan lowbit_plan(const LowbitConv2d& call, LowbitDevice device, LowbitWanted wanted) {
    LowbitPlan plan{};
    plan.body = wanted.body >= 0 ? static_cast<LowbitBody>(wanted.body) : body_of(call, device);
    plan.tile = 64, plan.splits = 1;
    const Layout layout = layout_of(plan.body, call);
    plan.form = layout.form;
    plan.input_bytes = plan.workspace_bytes = round_up(layout.input_bytes, 16);
    int64_t tiles, partial_bytes;  // bytes: of a tile's integers
    if (plan.body == LowbitBody::direct) {
        // Eight pixels a thread, or fewer where that would leave multiprocessors without two blocks.
        const int quads = LowbitDirect::quads_of(call), at_once = LowbitDirect::threads / quads;
        const int64_t all = blocks_of(call.map.pixels(), at_once) * blocks_of(call.columns(), 4 * quads);
        plan.tile = at_once * static_cast<int>(std::clamp<int64_t>(all / (2 * device.multiprocessors), 1, 8));
        return plan;
    }
    if (plan.body == LowbitBody::rows) {
        plan.tile = LowbitRows::columns;
        tiles = blocks_of(call.outputs, plan.tile), partial_bytes = LowbitRows::partial_bytes(call.map.pixels());
        const int64_t steps = blocks_of(call.k(), LowbitRows::step);
        plan.splits = splits_of(tiles, steps, 1, 4 * device.multiprocessors, wanted.splits);
    } else {
        const bool scaled = call.weight.scale_groups > 1;
        // Large tiles read less, if there are enough of them.
        const bool large =
            wanted.tile ? wanted.tile == 128 : call.outputs > 64 && tiles_of(call, 128) >= device.multiprocessors;
        if (large && !scaled && plan.body != LowbitBody::b1) plan.tile = 128;
        tiles = tiles_of(call, plan.tile);
        partial_bytes = 4 * (plan.tile == 128 ? LowbitTile<64>::partial_words : LowbitTile<32>::partial_words);
        if (!scaled) plan.splits = splits_of(tiles, layout.steps(1), 4, 2 * device.multiprocessors, wanted.splits);
    }
    if (plan.splits > 1) plan.workspace_bytes += tiles * plan.splits * partial_bytes;
    return plan;
}

namespace {

LowbitInput input_of(const LowbitConv2d& call, const Layout& layout, void* to) {
    LowbitInput input{call.x, call.map, CodeMaker(call.x.scale, call.x.zero, (1 << call.x.bits) - 1)};
    input.windows = layout.form == LowbitForm::windows;
    input.parts = layout.parts, input.inputs = layout.inputs, input.codes = layout.codes;
    input.chunks = layout.chunks, input.planes = layout.planes;
    input.rows = input.windows ? call.map.pixels() : call.map.in_pixels();
    input.to = static_cast<uint8_t*>(to);
    return input;
}

int run_direct(LowbitConv2d call, const LowbitPlan& plan, const Layout& layout, void* workspace, cudaStream_t stream) {
    if (plan.form != LowbitForm::in_place) {
        const LowbitInput input = input_of(call, layout, workspace);
        const int error = lowbit_input_s8(input, stream);
        if (error) return error;
        call.x.codes = input.to, call.x.stride = input.row_bytes();
    }
    LowbitDirect product{call,
                         LowbitFinish(call),
                         static_cast<int>(LowbitDirect::words_of(call)),
                         LowbitDirect::quads_of(call),
                         0,
                         plan.tile,
                         false};
    product.column_blocks = static_cast<int>(blocks_of(call.columns(), 4 * product.quads));
    product.whole = reinterpret_cast<uintptr_t>(call.x.codes) % 4 == 0 && call.x.stride % 4 == 0 &&
                    (LowbitDirect::depthwise(call) || call.inputs % 4 == 0);
    return lowbit_direct(product, stream);
}

int run_tensor_cores(const LowbitConv2d& call, const LowbitPlan& plan, const Layout& layout, void* workspace,
                     const LowbitSplit& split, cudaStream_t stream) {
    LowbitProduct product{call, {}, LowbitFinish(call), split, 0, 0, 0, 0, 0, false};
    LowbitOperand& x = product.x;
    x.chunks = layout.chunks, x.codes = layout.codes, x.map = call.map;
    if (plan.form == LowbitForm::in_place) {
        x.rows = call.x.codes, x.row_bytes = call.x.stride, x.valid = layout.codes;
        x.group_bytes = x.segment_bytes = layout.inputs;
    } else {
        LowbitInput input = input_of(call, layout, workspace);
        input.outside = !input.windows && call.x.zero != 0 && call.map.padded();
        const auto pack = plan.body == LowbitBody::s8   ? lowbit_input_s8
                          : plan.body == LowbitBody::s4 ? lowbit_input_s4
                                                        : lowbit_input_b1;
        const int error = pack(input, stream);
        if (error) return error;
        x.rows = input.to, x.row_bytes = input.row_bytes(), x.valid = 16 * layout.chunks;
        x.group_bytes = input.part_bytes(), x.segment_bytes = input.plane_bytes();
        if (input.outside) x.outside = input.to + input.rows * input.row_bytes();
        if (input.windows) {
            const Extent one{1, 1}, none{0, 0};
            const int height = call.map.out_height, width = call.map.out_width;
            x.map = {call.map.batch, height, width, height, width, one, one, none, one};
        }
    }
    product.pixels = static_cast<int>(call.map.pixels());
    product.segments = segments_of(plan.body, call);
    product.steps = static_cast<int>(layout.steps(1));
    product.tile_rows = static_cast<int>(blocks_of(call.map.pixels(), plan.tile));
    product.tile_columns = static_cast<int>(blocks_of(call.outputs, plan.tile));
    product.row_sums = plan.body == LowbitBody::b1 || !call.weight.centred;
    if (plan.body == LowbitBody::b1) return lowbit_gemm_b1(product, stream);
    return (plan.body == LowbitBody::s4 ? lowbit_gemm_s4 : lowbit_gemm_s8)(product, plan.tile, stream);
}

}  // namespace

int lowbit_conv2d(const LowbitConv2d& call, const LowbitPlan& plan, void* workspace, int* counters, void* stream_) {
    const auto stream = static_cast<cudaStream_t>(stream_);
    const Layout layout = layout_of(plan.body, call);
    if (plan.body == LowbitBody::direct) return run_direct(call, plan, layout, workspace, stream);
    const LowbitSplit split{plan.splits,
                            reinterpret_cast<int32_t*>(static_cast<uint8_t*>(workspace) + plan.input_bytes),
                            reinterpret_cast<uint32_t*>(counters)};
    if (plan.body == LowbitBody::rows)
        return lowbit_rows({call, input_of(call, layout, nullptr), LowbitFinish(call), split,
                            static_cast<int>(blocks_of(call.k(), LowbitRows::step))},
                           stream);
    return run_tensor_cores(call, plan, layout, workspace, split, stream);
}

}  // namespace spos::cuda
