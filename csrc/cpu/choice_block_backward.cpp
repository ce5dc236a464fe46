// The backward pass of a choice block.
//
// Work      Twice the operations of the forward pass: one product or convolution for the gradient of the input (dgrad)
//           and one for that of the weight (wgrad).
// Method    From the last convolution to the first, "dn" being the gradient of a normalised output, "dz" that of a
//           convolution's output, g that of what ReLU let through:
//             pointwise   dz = norm_backward(g) is made a piece of rows at a time, and multiplied while it is in cache:
//                         by the weight (dn of the previous convolution, or dx) and, where weights are few, by the
//                         piece's inputs (wgrad).
//             depthwise   a piece of dz = norm_backward(dn) and of the input, relu(norm(z)), are made in L2; wgrad and
//                         dgrad read them there, and g of the previous convolution is masked and summed on the spot.
//           The two sums over pixels that batch normalisation needs come for free: after a depthwise convolution from
//           the piece just written, and in front of a pointwise one from its weight gradient, since
//           sum_p dn[p, i] * z[p, i] = sum_o weight[o, i] * (sum_p dz[p, o] * z[p, i]), and the bracket is what wgrad
//           computes. Only the block's own dy needs a reduction of its own.
#include "cpu/choice_block.h"
#include "cpu/choice_block_gradient.h"
#include "cpu/choice_block_parts.h"

namespace spos {
namespace {

template <typename T>
class Backward {
  public:
    Backward(Isa isa, const ChoiceBlock<T>& block, const T* dy, int64_t dy_stride, T* dx, void* workspace, int threads)
        : isa_(isa),
          block_(block),
          dy_{dy, dy_stride},
          dx_(dx),
          gemm_(gemm_body<T>(isa)),
          ops_(channel_ops<T>(isa)),
          arena_(workspace),
          counting_(!workspace),
          threads_(threads) {}

    size_t run() {
        int64_t widest = block_.inputs;
        for (const ConvNorm<T>& layer : block_.main) widest = std::max(widest, layer.outputs);
        totals_ = arena_.take<double>(widest);
        chain(block_.main, block_.main_count, block_.passed(), false);
        chain(block_.proj, block_.proj_count, 0, true);
        return arena_.used();
    }

  private:
    using Layer = GradientLayer<T>;

    Layer take_layer(const ConvNorm<T>& layer) {
        const Layer result = take_gradient_layer<T>(arena_, layer.outputs);
        if (!counting_) prepare_norm(layer, block_.eps, result.norm);
        return result;
    }

    void finish_layer(const ConvNorm<T>& layer, const Layer& own, int64_t pixels) const {
        finish_gradient(layer, own, block_.training ? 1.0 / static_cast<double>(pixels) : 0);
    }

    void combine_parts(const T* sums, int64_t parts, int64_t channels, const Layer& own) {
        add_parts(sums, parts, 2 * channels, channels, totals_, own.sum);
        add_parts(sums + channels, parts, 2 * channels, channels, totals_, own.product);
    }

    // dy_channel: where the chain's output starts in dy. add: dx holds another chain's gradient already.
    void chain(const ConvNorm<T>* layers, int count, int64_t dy_channel, bool add) {
        if (count == 0) return;
        int64_t largest = 0;
        for (int i = 0; i + 1 < count; ++i)
            largest = std::max(largest, place_of(block_, layers, i).out_pixels * layers[i].outputs);
        T* const gradients[2] = {arena_.take<T>(largest), arena_.take<T>(largest)};
        Layer own = take_layer(layers[count - 1]);
        Pixels<const T> dy{counting_ ? nullptr : dy_.data + dy_channel, dy_.stride};
        reduce(place_of(block_, layers, count - 1), dy, own);
        for (int i = count - 1; i >= 0; --i) {
            const Place<T> place = place_of(block_, layers, i);
            const Layer previous = i ? take_layer(layers[i - 1]) : Layer{};
            T* const to = i ? gradients[i % 2] : nullptr;
            if (place.layer->depthwise)
                depthwise(place, own, previous, dy.data, to, add);
            else
                pointwise(place, own, previous, dy, i == count - 1, to, add);
            own = previous;
            dy = {to, place.layer->inputs};
        }
    }

    // The sums for the last convolution of a chain, from dy.
    void reduce(const Place<T>& place, Pixels<const T> dy, const Layer& own) {
        const ConvNorm<T>& layer = *place.layer;
        const int64_t channels = layer.outputs;
        const Parts parts = pixel_parts(place.out_pixels);
        T* const sums = arena_.take<T>(parts.count * 2 * channels);
        if (counting_) return;
        parallel_for(parts.count, threads_, [&](int64_t begin, int64_t end) {
            for (int64_t part = begin; part < end; ++part) {
                const int64_t first = parts.begin(part);
                T* const sum = sums + part * 2 * channels;
                std::fill(sum, sum + 2 * channels, T(0));
                ops_.relu_backward({dy.data + first * dy.stride, dy.stride}, {layer.z + first * channels, channels},
                                   {nullptr, 0}, parts.size(part), channels, affine_of(own.norm, layer), sum,
                                   sum + channels);
            }
        });
        combine_parts(sums, parts.count, channels, own);
        finish_layer(layer, own, place.out_pixels);
    }

    // dy: of the block's output where `last`, else g. to: where dn of the previous convolution goes.
    void pointwise(const Place<T>& place, const Layer& own, const Layer& previous, Pixels<const T> dy, bool last, T* to,
                   bool add) {
        const ConvNorm<T>& layer = *place.layer;
        const int64_t inputs = layer.inputs, outputs = layer.outputs, pixels = place.out_pixels;
        const bool dgrad = place.previous || dx_;
        const bool split = !place.previous && block_.halves();  // every second channel of x
        // The sums of the previous batch normalisation are made from wgrad's.
        const bool previous_sums =
            place.previous && (block_.training || place.previous->dgamma || place.previous->dbeta);
        const bool wgrad = layer.dweight || previous_sums;
        const WgradCut cut = wgrad_cut(pixels, inputs, outputs);
        const bool at_once = cut.at_once || !wgrad;
        const Parts parts = cut.at_once ? cut.parts : pixel_parts(pixels);
        constexpr int64_t piece = 120;  // rows: whole tiles of every height, some 100 kB

        T* const packed = arena_.take<T>(gemm_.packed_size(inputs, outputs));
        T* const dz_sums = arena_.take<T>(parts.count * outputs);
        T* const dz_sum = arena_.take<T>(outputs);
        T* const dz_all = arena_.take<T>(at_once ? threads_ * piece * outputs : pixels * outputs);
        // A mean far from zero would take the digits of wgrad's sums: such inputs are centred first, others read in
        // place.
        const bool centre = place.previous && wgrad && (counting_ || is_far_from_zero(*place.previous));
        const bool copied = split || centre;
        T* const x_all = arena_.take<T>(!copied || !wgrad ? 0 : at_once ? threads_ * piece * inputs : pixels * inputs);
        T* const ones = arena_.take<T>(centre ? inputs : 0);
        T* const minus_mean = arena_.take<T>(centre ? inputs : 0);
        T* const dx_all = arena_.take<T>(split ? threads_ * piece * inputs : 0);
        T* const partial = arena_.take<T>(wgrad ? cut.parts.count * inputs * outputs : 0);
        if (counting_) return;

        for (int64_t i = 0; centre && i < inputs; ++i) ones[i] = 1, minus_mean[i] = -place.previous->mean[i];
        if (dgrad) {
            const int64_t panels = gemm_.panels(inputs);
            constexpr int64_t worth_a_team = 65536;  // elements
            parallel_for(panels, inputs * outputs >= worth_a_team ? threads_ : 1, [&](int64_t begin, int64_t end) {
                gemm_.pack({inputs, outputs, layer.weight, layer.weight_stride, 1, nullptr, packed, begin, end});
            });
        }
        parallel_for(parts.count, threads_, [&](int64_t begin, int64_t end, int slot) {
            for (int64_t part = begin; part < end; ++part) {
                T* const sum = dz_sums + part * outputs;
                std::fill(sum, sum + outputs, T(0));
                for (int64_t row = parts.begin(part); row < parts.end(part); row += piece) {
                    const int64_t rows = std::min(piece, parts.end(part) - row);
                    T* const dz = at_once ? dz_all + slot * piece * outputs : dz_all + row * outputs;
                    ops_.norm_backward({dy.data + row * dy.stride, dy.stride}, {layer.z + row * outputs, outputs},
                                       {dz, outputs}, rows, outputs, affine_of(own.norm, layer), own.gradient, last,
                                       sum);
                    Pixels<const T> x{nullptr, 0};
                    if (copied && wgrad) {
                        T* const copy = at_once ? x_all + slot * piece * inputs : x_all + row * inputs;
                        x = {copy, inputs};
                        const Pixels<const T> from = input_of(place, row);
                        if (split)
                            ops_.split(from, {nullptr, 0}, {copy, inputs}, rows, inputs);
                        else
                            ops_.affine(from, {copy, inputs}, rows, inputs, {ones, minus_mean, nullptr}, false);
                    } else if (wgrad) {
                        x = input_of(place, row);
                    }
                    if (wgrad && at_once)
                        multiply_wgrad(dz, outputs, x, rows, 0, outputs, inputs, partial + part * inputs * outputs,
                                       row != parts.begin(part));
                    if (!dgrad) continue;
                    Gemm<T> call{};
                    call.m = rows, call.n = inputs, call.k = outputs;
                    call.a = dz, call.a_m = outputs, call.a_k = 1, call.b = packed;
                    if (place.previous) {
                        call.c = to + row * inputs, call.c_m = inputs;
                    } else if (split) {
                        call.c = dx_all + slot * piece * inputs, call.c_m = inputs;
                    } else {
                        call.c = dx_ + row * block_.inputs, call.c_m = block_.inputs, call.accumulate = add;
                    }
                    gemm_.gemm(call);
                    if (split)
                        ops_.join({dy_.data + row * dy_.stride, dy_.stride}, {call.c, inputs},
                                  {dx_ + row * block_.inputs, block_.inputs}, rows, inputs);
                }
            }
        });
        if (!wgrad) {
            if (place.previous) {  // its statistics are constants, its gradient needs no sums
                std::fill(previous.sum, previous.sum + inputs, T(0));
                std::fill(previous.product, previous.product + inputs, T(0));
                finish_layer(*place.previous, previous, pixels);
            }
            return;
        }
        add_parts(dz_sums, parts.count, outputs, outputs, totals_, dz_sum);
        if (!at_once) {
            parallel_for(cut.parts.count * cut.groups, threads_, [&](int64_t begin, int64_t end) {
                for (int64_t task = begin; task < end; ++task) {
                    const int64_t part = task / cut.groups, group = task % cut.groups;
                    const int64_t first = outputs * group / cut.groups, last = outputs * (group + 1) / cut.groups;
                    for (int64_t row = cut.parts.begin(part); row < cut.parts.end(part); row += piece) {
                        const int64_t rows = std::min(piece, cut.parts.end(part) - row);
                        const Pixels<const T> x =
                            copied ? Pixels<const T>{x_all + row * inputs, inputs} : input_of(place, row);
                        multiply_wgrad(dz_all + row * outputs, outputs, x, rows, first, last, inputs,
                                       partial + part * inputs * outputs, row != cut.parts.begin(part));
                    }
                }
            });
        }
        combine_wgrad(place, previous, partial, cut.parts.count, dz_sum, centre);
    }

    Pixels<const T> input_of(const Place<T>& place, int64_t row) const {
        if (place.previous) return {place.previous->z + row * place.layer->inputs, place.layer->inputs};
        return {block_.x + row * block_.x_stride, block_.x_stride};
    }

    // to[o, i] (+)= sum over rows of dz[row, o] * x[row, i], for outputs from `first` up to `last`.
    void multiply_wgrad(const T* dz, int64_t outputs, Pixels<const T> x, int64_t rows, int64_t first, int64_t last,
                        int64_t inputs, T* to, bool accumulate) {
        Gemm<T> call{};
        call.m = last - first, call.n = inputs, call.k = rows;
        call.a = dz + first, call.a_m = 1, call.a_k = outputs;
        call.b = x.data, call.b_k = x.stride;
        call.c = to + first * inputs, call.c_m = inputs, call.accumulate = accumulate;
        gemm_.gemm(call);
    }

    void combine_wgrad(const Place<T>& place, const Layer& previous, const T* partial, int64_t parts, const T* dz_sum,
                       bool centred) {
        const ConvNorm<T>& layer = *place.layer;
        CombineWgrad<T> call{};
        call.partial = partial, call.parts = parts, call.part_stride = layer.inputs * layer.outputs;
        call.outputs = layer.outputs, call.inputs = layer.inputs;
        call.weight = layer.weight, call.weight_stride = layer.weight_stride;
        call.scale = previous.norm.scale, call.dz_sum = dz_sum;
        call.shift = centred ? place.previous->beta : previous.norm.shift;
        call.dweight = layer.dweight, call.product = previous.product, call.total = previous.sum;
        const int64_t vectors = (layer.inputs + ops_.lanes - 1) / ops_.lanes;
        constexpr int64_t worth_a_team = 65536;  // elements
        const int team = call.part_stride * parts >= worth_a_team ? threads_ : 1;
        parallel_for(vectors, team, [&](int64_t begin, int64_t end) {
            CombineWgrad<T> some = call;
            some.first_input = begin * ops_.lanes;
            some.end_input = std::min(end * ops_.lanes, layer.inputs);
            ops_.combine_wgrad(some);
        });
        if (!place.previous) return;
        // sum of dn * z becomes sum of dn * (z - mean)
        for (int64_t i = 0; !centred && i < layer.inputs; ++i)
            previous.product[i] -= place.previous->mean[i] * previous.sum[i];
        finish_layer(*place.previous, previous, place.in_pixels);
    }

    // dn: gradient of the normalised output, dense. to: where g of the previous convolution goes.
    void depthwise(const Place<T>& place, const Layer& own, const Layer& previous, const T* dn, T* to, bool add) {
        const ConvNorm<T>& layer = *place.layer;
        const int64_t channels = layer.outputs;
        const int kernel = layer.kernel, taps = kernel * kernel;
        const DepthwiseBody<T> body = choose_depthwise_body<T>(isa_, channels);
        const int64_t in_image = place.in_height * place.in_width, out_image = place.out_height * place.out_width;
        const DepthwiseCut cut = depthwise_cut(block_.batch, in_image, channels, body.lanes, sizeof(T));
        const int64_t parts = std::min<int64_t>(cut.chunks, 16), width_most = cut.widest_group();
        const bool dgrad = place.previous || dx_;
        const bool flip = place.stride == 1;  // dgrad is then the forward pass of dz with the taps turned round
        const int64_t partial_size = cut.blocks * taps * body.lanes;
        const int64_t in_size = cut.images * in_image * width_most, out_size = cut.images * out_image * width_most;

        T* const packed = arena_.take<T>(depthwise_weight_size(layer));
        T* const partial = arena_.take<T>(layer.dweight ? parts * partial_size : 0);
        T* const sums = arena_.take<T>(place.previous ? parts * 2 * channels : 0);
        T* const inputs = arena_.take<T>(threads_ * in_size);
        T* const outputs = arena_.take<T>(threads_ * out_size);
        if (counting_) return;

        if (dgrad) pack_depthwise_weight(layer.weight, channels, taps, body.lanes, flip, packed);
        parallel_for(parts * cut.groups, threads_, [&](int64_t begin, int64_t end, int slot) {
            for (int64_t task = begin; task < end; ++task) {
                const int64_t part = task / cut.groups, group = task % cut.groups;
                const int64_t first_chunk = cut.chunks * part / parts, end_chunk = cut.chunks * (part + 1) / parts;
                const int64_t channel = cut.first_channel(group), width = cut.end_channel(group) - channel;
                const int64_t block_offset = cut.first_block(group) * taps * body.lanes;
                T* const sum = place.previous ? sums + part * 2 * channels + channel : nullptr;
                if (sum) {
                    std::fill(sum, sum + width, T(0));
                    std::fill(sum + channels, sum + channels + width, T(0));
                }
                for (int64_t chunk = first_chunk; chunk < end_chunk; ++chunk) {
                    const int64_t first = cut.first_image(chunk), images = std::min(cut.images, block_.batch - first);
                    T* const input = inputs + slot * in_size;
                    T* const dz = outputs + slot * out_size;
                    const int64_t out_at = first * out_image * channels + channel;
                    const int64_t in_at = first * in_image * channels + channel;
                    ops_.norm_backward({dn + out_at, channels}, {layer.z + out_at, channels}, {dz, width},
                                       images * out_image, width, slice(affine_of(own.norm, layer), channel),
                                       {own.alpha + channel, own.beta + channel, own.gamma + channel}, false, nullptr);
                    const Plane<const T> dz_plane{dz,    out_image * width, place.out_width * width,
                                                  width, place.out_height,  place.out_width};
                    if (layer.dweight) {
                        const Plane<const T> x = input_plane(place, previous, input, first, images, channel, width);
                        body.wgrad({x, dz_plane, partial + part * partial_size + block_offset, images, width, kernel,
                                    place.stride, kernel / 2, 1, 1, chunk != first_chunk},
                                   1);
                    }
                    if (!dgrad) continue;
                    // Straight to its place, or through the piece's memory, whose input is done with.
                    const bool direct = place.previous || (!block_.halves() && !add);
                    T* const target = !direct          ? input
                                      : place.previous ? to + in_at
                                                       : dx_ + first * in_image * block_.inputs + channel;
                    const int64_t target_w = !direct ? width : place.previous ? channels : block_.inputs;
                    const Plane<T> target_plane{target,   in_image * target_w, place.in_width * target_w,
                                                target_w, place.in_height,     place.in_width};
                    body.rows({dz_plane, target_plane, packed + block_offset, images, width, kernel,
                               flip ? kernel - 1 - kernel / 2 : kernel / 2, flip ? Reach::same : Reach::up},
                              1);
                    if (place.previous) {
                        ops_.relu_backward({target, channels}, {place.previous->z + in_at, channels},
                                           {target, channels}, images * in_image, width,
                                           slice(affine_of(previous.norm, *place.previous), channel), sum,
                                           sum + channels);
                    } else if (block_.halves()) {
                        const int64_t row = first * in_image;
                        ops_.join({dy_.data + row * dy_.stride + channel, dy_.stride}, {input, width},
                                  {dx_ + row * block_.inputs + 2 * channel, block_.inputs}, images * in_image, width);
                    } else if (add) {
                        ops_.add({input, width}, {dx_ + first * in_image * block_.inputs + channel, block_.inputs},
                                 images * in_image, width);
                    }
                }
            }
        });
        if (layer.dweight)
            combine_depthwise_partials(partial, parts, channels, taps, body.lanes, layer.dweight, threads_);
        if (place.previous) {
            combine_parts(sums, parts, channels, previous);
            finish_layer(*place.previous, previous, place.in_pixels);
        }
    }

    static Affine<T> slice(Affine<T> norm, int64_t channel) {
        return {norm.scale + channel, norm.shift + channel, norm.mean + channel};
    }

    // A piece of the convolution's input, made in `memory` unless it is x as it is.
    Plane<const T> input_plane(const Place<T>& place, const Layer& previous, T* memory, int64_t first, int64_t images,
                               int64_t channel, int64_t width) {
        const int64_t image = place.in_height * place.in_width, channels = place.layer->inputs;
        const T* const x = block_.x + first * image * block_.x_stride;
        int64_t stride = width;
        const T* data = memory;
        if (place.previous) {
            ops_.affine({place.previous->z + first * image * channels + channel, channels}, {memory, width},
                        images * image, width, slice(affine_of(previous.norm, *place.previous), channel), true);
        } else if (block_.halves()) {
            ops_.split({x + 2 * channel, block_.x_stride}, {nullptr, 0}, {memory, width}, images * image, width);
        } else {
            data = x + channel;
            stride = block_.x_stride;
        }
        return {data, image * stride, place.in_width * stride, stride, place.in_height, place.in_width};
    }

    Isa isa_;
    const ChoiceBlock<T>& block_;
    Pixels<const T> dy_;
    T* dx_;
    GemmBody<T> gemm_;
    ChannelOps<T> ops_;
    Arena arena_;
    bool counting_;
    int threads_;
    double* totals_ = nullptr;
};

}  // namespace

template <typename T>
size_t choice_block_backward_workspace(Isa isa, const ChoiceBlock<T>& block, T* dx, int threads) {
    return Backward<T>(isa, block, nullptr, 0, dx, nullptr, threads).run();
}

template <typename T>
void choice_block_backward(Isa isa, const ChoiceBlock<T>& block, const T* dy, int64_t dy_stride, T* dx, void* workspace,
                           int threads) {
    Backward<T>(isa, block, dy, dy_stride, dx, workspace, threads).run();
}

template size_t choice_block_backward_workspace(Isa, const ChoiceBlock<float>&, float*, int);
template size_t choice_block_backward_workspace(Isa, const ChoiceBlock<double>&, double*, int);
template void choice_block_backward(Isa, const ChoiceBlock<float>&, const float*, int64_t, float*, void*, int);
template void choice_block_backward(Isa, const ChoiceBlock<double>&, const double*, int64_t, double*, void*, int);

}  // namespace spos
