// The forward pass of a choice block.
//
// Work      Per pointwise convolution 2 * pixels * inputs * outputs operations, per depthwise one 2 * k * k * pixels *
//           channels. Memory: x is read once or twice, every z written once and read once, y written once.
// Method    One parallel loop per convolution, and one for y, because batch statistics separate them. A pointwise
//           convolution is a matrix product that reads every second channel of x in place, or the previous z with its
//           batch normalisation folded into the weight, and sums its statistics in the epilogue. A depthwise one
//           normalises a piece of the previous z into L2, convolves it from there, and sums what it has just written.
#include "cpu/choice_block.h"
#include "cpu/choice_block_parts.h"

namespace spos {
namespace {

template <typename T>
class Forward {
  public:
    Forward(Isa isa, const ChoiceBlock<T>& block, void* workspace, int threads)
        : isa_(isa),
          block_(block),
          gemm_(gemm_body<T>(isa)),
          ops_(channel_ops<T>(isa)),
          arena_(workspace),
          counting_(!workspace),
          threads_(threads) {}

    size_t run(T* y) {
        const NormVectors<T> proj = chain(block_.proj, block_.proj_count);
        const NormVectors<T> main = chain(block_.main, block_.main_count);
        if (!counting_) write(y, proj, main);
        return arena_.used();
    }

  private:
    // Returns what normalises the chain's last z.
    NormVectors<T> chain(const ConvNorm<T>* layers, int count) {
        NormVectors<T> norm{};
        for (int i = 0; i < count; ++i) {
            const Place<T> place = place_of(block_, layers, i);
            const NormVectors<T> next = take_norm<T>(arena_, place.layer->outputs);
            if (place.layer->depthwise)
                depthwise(place, norm);
            else
                pointwise(place, norm);
            if (!counting_) prepare_norm(*place.layer, block_.eps, next);
            norm = next;
        }
        return norm;
    }

    void pointwise(const Place<T>& place, const NormVectors<T>& norm) {
        const ConvNorm<T>& layer = *place.layer;
        const int64_t inputs = layer.inputs, outputs = layer.outputs;
        const Parts parts = pixel_parts(place.out_pixels);
        T* const packed = arena_.take<T>(gemm_.packed_size(outputs, inputs));
        T* const bias = place.previous ? arena_.take<T>(outputs) : nullptr;
        T* const sums = block_.training ? arena_.take<T>(parts.count * 3 * outputs) : nullptr;
        double* const scratch = arena_.take<double>(2 * outputs);
        if (counting_) return;
        PackB<T> pack{outputs, inputs, layer.weight, 1, layer.weight_stride, norm.scale, packed};
        const int64_t panels = gemm_.panels(outputs);
        constexpr int64_t worth_a_team = 16384;  // elements
        parallel_for(panels, inputs * outputs >= worth_a_team ? threads_ : 1, [&](int64_t begin, int64_t end) {
            PackB<T> some = pack;
            some.first_panel = begin;
            some.end_panel = end;
            gemm_.pack(some);
        });
        if (bias) ops_.matrix_vector({layer.weight, layer.weight_stride}, norm.shift, bias, outputs, inputs);
        const bool every_second = !place.previous && block_.halves();
        const T* const a = place.previous ? place.previous->z : block_.x + every_second;
        const int64_t a_m = place.previous ? inputs : block_.x_stride;
        parallel_for(parts.count, threads_, [&](int64_t begin, int64_t end) {
            for (int64_t part = begin; part < end; ++part) {
                Gemm<T> call{};
                call.m = parts.size(part), call.n = outputs, call.k = inputs;
                call.a = a + parts.begin(part) * a_m, call.a_m = a_m, call.a_k = every_second ? 2 : 1;
                call.b = packed;
                call.c = layer.z + parts.begin(part) * outputs, call.c_m = outputs;
                call.bias = bias;
                if (sums) call.sums = sums_of(sums, part, outputs, 0);
                gemm_.gemm(call);
            }
        });
        if (sums)
            combine_sums(
                sums, parts.count, outputs, [&](int64_t part) { return parts.size(part); }, scratch, layer.mean,
                layer.variance);
    }

    void depthwise(const Place<T>& place, const NormVectors<T>& norm) {
        const ConvNorm<T>& layer = *place.layer;
        const int64_t channels = layer.outputs, taps = layer.kernel * layer.kernel;
        const DepthwiseBody<T> body = choose_depthwise_body<T>(isa_, channels);
        const int64_t in_image = place.in_height * place.in_width, out_image = place.out_height * place.out_width;
        const DepthwiseCut cut = depthwise_cut(block_.batch, in_image, channels, body.lanes, sizeof(T));
        const bool direct = !place.previous && !block_.halves();  // x as it is
        const int64_t scratch_size = direct ? 0 : cut.images * in_image * cut.widest_group();
        T* const packed = arena_.take<T>(depthwise_weight_size(layer));
        T* const sums = block_.training ? arena_.take<T>(cut.chunks * 3 * channels) : nullptr;
        double* const totals = arena_.take<double>(2 * channels);
        T* const inputs = arena_.take<T>(threads_ * scratch_size);
        if (counting_) return;
        pack_depthwise_weight(layer.weight, channels, static_cast<int>(taps), body.lanes, false, packed);
        const auto images_in = [&](int64_t chunk) {
            return std::min(cut.images, block_.batch - cut.first_image(chunk));
        };
        parallel_for(cut.chunks * cut.groups, threads_, [&](int64_t begin, int64_t end, int slot) {
            T* const input = inputs + slot * scratch_size;
            for (int64_t task = begin; task < end; ++task) {
                const int64_t chunk = task / cut.groups, group = task % cut.groups;
                const int64_t channel = cut.first_channel(group), width = cut.end_channel(group) - channel;
                const int64_t images = images_in(chunk), first_pixel = cut.first_image(chunk) * in_image;
                Plane<const T> source{input, in_image * width, place.in_width * width,
                                      width, place.in_height,  place.in_width};
                if (direct) {
                    const int64_t stride = block_.x_stride;
                    source = {block_.x + first_pixel * stride + channel,
                              in_image * stride,
                              place.in_width * stride,
                              stride,
                              place.in_height,
                              place.in_width};
                } else if (place.previous) {
                    const T* const z = place.previous->z + first_pixel * channels + channel;
                    ops_.affine({z, channels}, {input, width}, images * in_image, width,
                                {norm.scale + channel, norm.shift + channel, nullptr}, true);
                } else {
                    const T* const x = block_.x + first_pixel * block_.x_stride + 2 * channel;
                    ops_.split({x, block_.x_stride}, {nullptr, 0}, {input, width}, images * in_image, width);
                }
                T* const z = layer.z + cut.first_image(chunk) * out_image * channels + channel;
                const Plane<T> destination{z,        out_image * channels, place.out_width * channels,
                                           channels, place.out_height,     place.out_width};
                body.rows({source, destination, packed + cut.first_block(group) * taps * body.lanes, images, width,
                           layer.kernel, layer.kernel / 2, place.stride == 1 ? Reach::same : Reach::down},
                          1);
                if (sums)
                    ops_.sums({z, channels}, images * out_image, width, sums_of(sums, chunk, channels, channel), true);
            }
        });
        if (sums)
            combine_sums(
                sums, cut.chunks, channels, [&](int64_t chunk) { return images_in(chunk) * out_image; }, totals,
                layer.mean, layer.variance);
    }

    static ColumnSums<T> sums_of(T* sums, int64_t part, int64_t channels, int64_t channel) {
        T* const own = sums + part * 3 * channels + channel;
        return {own, own + channels, own + 2 * channels};
    }

    void write(T* y, const NormVectors<T>& proj, const NormVectors<T>& main) {
        const ConvNorm<T>& last = block_.main[block_.main_count - 1];
        const int64_t passed = block_.passed();
        const int64_t outputs = passed + last.outputs;
        const Parts parts = pixel_parts(block_.batch * block_.out_height * block_.out_width);
        parallel_for(parts.count, threads_, [&](int64_t begin, int64_t end) {
            for (int64_t part = begin; part < end; ++part) {
                const int64_t first = parts.begin(part), rows = parts.size(part);
                T* const to = y + first * outputs;
                if (block_.halves()) {
                    ops_.split({block_.x + first * block_.x_stride, block_.x_stride}, {to, outputs}, {nullptr, 0}, rows,
                               passed);
                } else if (passed) {
                    const ConvNorm<T>& projected = block_.proj[block_.proj_count - 1];
                    ops_.affine({projected.z + first * passed, passed}, {to, outputs}, rows, passed,
                                affine_of(proj, projected), true);
                }
                ops_.affine({last.z + first * last.outputs, last.outputs}, {to + passed, outputs}, rows, last.outputs,
                            affine_of(main, last), true);
            }
        });
    }

    Isa isa_;
    const ChoiceBlock<T>& block_;
    GemmBody<T> gemm_;
    ChannelOps<T> ops_;
    Arena arena_;
    bool counting_;
    int threads_;
};

}  // namespace

template <typename T>
size_t choice_block_forward_workspace(Isa isa, const ChoiceBlock<T>& block, int threads) {
    return Forward<T>(isa, block, nullptr, threads).run(nullptr);
}

template <typename T>
void choice_block_forward(Isa isa, const ChoiceBlock<T>& block, T* y, void* workspace, int threads) {
    Forward<T>(isa, block, workspace, threads).run(y);
}

template size_t choice_block_forward_workspace(Isa, const ChoiceBlock<float>&, int);
template size_t choice_block_forward_workspace(Isa, const ChoiceBlock<double>&, int);
template void choice_block_forward(Isa, const ChoiceBlock<float>&, float*, void*, int);
template void choice_block_forward(Isa, const ChoiceBlock<double>&, double*, void*, int);

}  // namespace spos
