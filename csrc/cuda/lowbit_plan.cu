// Which kernels run a low-bit convolution, and how: a plan follows from sizes, widths and the device, by arithmetic
// that is written out here, not by measurement.
#include "cuda/lowbit_gemm.cuh"
#include "cuda/lowbit_input.cuh"

#include <algorithm>

namespace spos::cuda {

int lowbit_gemm_s8(const LowbitProduct& product, int tile, cudaStream_t stream);

namespace {

constexpr int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
constexpr int64_t blocks_of(int64_t value, int64_t size) { return (value + size - 1) / size; }

int codes_of_chunk(LowbitBody body) {
    return body == LowbitBody::s4   ? BodyTraits<LowbitBody::s4>::codes
           : body == LowbitBody::b1 ? BodyTraits<LowbitBody::b1>::codes
                                    : BodyTraits<LowbitBody::s8>::codes;
}
bool on_tensor_cores(LowbitBody body) { return body <= LowbitBody::b1; }

// How a tensor-core body goes through x.
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

// Clocks of one SM of an A100, summed over SMs. A step of a tile of 128 x 128 takes 512: a tensor core's mma of s8, s4
// and b1 multiply 32, 64 and 256 codes in the same time. HBM gives an SM 10 bytes a clock. A launch takes 4000 clocks
// of every SM.
double clocks_of(LowbitBody body, const LowbitConv2d& call, LowbitDevice device) {
    const Layout layout = layout_of(body, call);
    const double tiles = static_cast<double>(call.map.pixels()) * call.columns() / (128 * 128);
    double clocks = 512 * tiles * static_cast<double>(layout.steps(segments_of(body, call)));
    if (layout.form != LowbitForm::in_place) {
        const double codes = static_cast<double>(call.map.in_pixels()) * call.groups * call.inputs;
        const double size = call.x.codes ? 1 : call.x.element == Element::float32 ? 4 : 2;
        clocks += (codes * size + 2 * static_cast<double>(layout.input_bytes)) / 10 + 4000.0 * device.multiprocessors;
    }
    return clocks;
}

LowbitBody body_of(const LowbitConv2d& call, LowbitDevice device) {
    for (const LowbitBody own : {LowbitBody::depthwise, LowbitBody::rows})
        if (lowbit_can(own, call, device)) return own;
    LowbitBody best = LowbitBody::s8;
    for (const LowbitBody other : {LowbitBody::s4, LowbitBody::b1})
        if (lowbit_can(other, call, device) && clocks_of(other, call, device) < clocks_of(best, call, device))
            best = other;
    return best;
}

int64_t tiles_of(const LowbitConv2d& call, int tile) {
    return blocks_of(call.map.pixels(), tile) * blocks_of(call.outputs, tile) * call.groups;
}

}  // namespace

LowbitDevice lowbit_device() {
#if defined(__CUDACC__)
    int device = 0, major = 0, minor = 0, multiprocessors = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
    return {10 * major + minor, std::max(multiprocessors, 1)};
#else
    return {__CUDA_ARCH__ / 10, 108};  // an A100's
#endif
}

// Bytes on tensor cores serve every call; there are no kernels of the other bodies yet.
bool lowbit_can(LowbitBody body, const LowbitConv2d&, LowbitDevice) { return body == LowbitBody::s8; }

LowbitPlan lowbit_plan(const LowbitConv2d& call, LowbitDevice device, LowbitWanted wanted) {
    LowbitPlan plan{};
    plan.body = wanted.body >= 0 ? static_cast<LowbitBody>(wanted.body) : body_of(call, device);
    plan.tile = 64, plan.splits = 1;
    if (!on_tensor_cores(plan.body)) return plan;
    const Layout layout = layout_of(plan.body, call);
    plan.form = layout.form;
    plan.input_bytes = round_up(layout.input_bytes, 16);
    const bool scaled = call.weight.scale_groups > 1;
    // Large tiles read less, if there are enough of them.
    const bool large =
        wanted.tile ? wanted.tile == 128 : call.outputs > 64 && tiles_of(call, 128) >= device.multiprocessors;
    if (large && !scaled) plan.tile = 128;
    const int64_t tiles = tiles_of(call, plan.tile);
    if (!scaled && tiles <= lowbit_counters) {
        const int64_t steps = layout.steps(1);
        // Two blocks for each SM, of at least 4 steps each.
        const int64_t splits = std::min<int64_t>({2 * device.multiprocessors / tiles, steps / 4, 32});
        plan.splits = static_cast<int>(std::clamp<int64_t>(wanted.splits ? wanted.splits : splits, 1, steps));
    }
    plan.workspace_bytes = plan.input_bytes;
    if (plan.splits > 1) {
        const int words = plan.tile == 128 ? LowbitTile<64>::partial_words : LowbitTile<32>::partial_words;
        plan.workspace_bytes += tiles * plan.splits * words * 4;
    }
    return plan;
}

int lowbit_conv2d(const LowbitConv2d& call, const LowbitPlan& plan, void* workspace, int* counters, void* stream_) {
    const auto stream = static_cast<cudaStream_t>(stream_);
    const Layout layout = layout_of(plan.body, call);
    LowbitProduct product{call, {}, LowbitFinish(call), {}, 0, 0, 0, 0, 0, false};
    LowbitOperand& x = product.x;
    x.chunks = layout.chunks, x.codes = layout.codes, x.map = call.map;
    if (plan.form == LowbitForm::in_place) {
        x.rows = call.x.codes, x.row_bytes = call.x.stride, x.valid = layout.codes;
        x.group_bytes = x.segment_bytes = layout.inputs;
    } else {
        LowbitInput input{call.x, call.map, CodeMaker(call.x.scale, call.x.zero, (1 << call.x.bits) - 1)};
        input.windows = plan.form == LowbitForm::windows;
        input.parts = layout.parts, input.inputs = layout.inputs, input.codes = layout.codes;
        input.chunks = layout.chunks, input.planes = layout.planes;
        input.rows = input.windows ? call.map.pixels() : call.map.in_pixels();
        input.outside = !input.windows && call.x.zero != 0 && call.map.padded();
        input.to = static_cast<uint8_t*>(workspace);
        const int error = lowbit_input_s8(input, stream);
        if (error) return error;
        x.rows = input.to, x.row_bytes = input.row_bytes(), x.valid = 16 * layout.chunks;
        x.group_bytes = input.part_bytes(), x.segment_bytes = input.plane_bytes();
        if (input.outside) x.outside = input.to + input.rows * input.row_bytes();
        if (input.windows) {
            const Extent one{1, 1}, none{0, 0};
            x.map = {call.map.batch,
                     call.map.out_height,
                     call.map.out_width,
                     call.map.out_height,
                     call.map.out_width,
                     one,
                     one,
                     none,
                     one};
        }
    }
    product.pixels = static_cast<int>(call.map.pixels());
    product.segments = segments_of(plan.body, call);
    product.steps = static_cast<int>(layout.steps(1));
    product.tile_rows = static_cast<int>(blocks_of(call.map.pixels(), plan.tile));
    product.tile_columns = static_cast<int>(blocks_of(call.outputs, plan.tile));
    product.row_sums = plan.body == LowbitBody::b1 || !call.weight.centred;
    product.split = {plan.splits, reinterpret_cast<int32_t*>(static_cast<uint8_t*>(workspace) + plan.input_bytes),
                     counters};
    return lowbit_gemm_s8(product, plan.tile, stream);
}

}  // namespace spos::cuda
