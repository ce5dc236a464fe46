// A choice block without backward, its statistics given.
//
// Method    Batch normalisation is folded into the weights: scale and shift of a pointwise convolution into its own
// (ReLU
//           follows in the epilogue), those of a depthwise one into the next pointwise one's. A task takes some images
//           through the whole chain; what is between the convolutions stays in the thread's L2, and memory sees x once
//           or twice and y once.
#include "cpu/choice_block.h"
#include "cpu/choice_block_parts.h"

namespace spos {
namespace {

constexpr int64_t piece_bytes = 256 << 10;  // of one map between two convolutions

template <typename T>
int64_t widest_map(const ChoiceBlock<T>& block) {  // elements of one image
    int64_t widest = 1;
    const auto chain = [&](const ConvNorm<T>* layers, int count) {
        for (int i = 0; i + 1 < count; ++i)
            widest = std::max(widest, place_of(block, layers, i).out_pixels / block.batch * layers[i].outputs);
    };
    chain(block.main, block.main_count);
    chain(block.proj, block.proj_count);
    return widest;
}

template <typename T>
int64_t images_in_piece(const ChoiceBlock<T>& block) {
    const int64_t fitting = piece_bytes / (widest_map(block) * static_cast<int64_t>(sizeof(T)));
    return std::clamp<int64_t>(fitting, 1, std::max<int64_t>(1, block.batch / 8));
}

template <typename T>
class Inference {
  public:
    Inference(Isa isa, const ChoiceBlock<T>& block, void* workspace, int threads)
        : isa_(isa),
          block_(block),
          gemm_(gemm_body<T>(isa)),
          ops_(channel_ops<T>(isa)),
          arena_(workspace),
          counting_(!workspace),
          threads_(threads) {}

    size_t run(T* y) {
        const int64_t images = images_in_piece(block_), map = images * widest_map(block_);
        Step main[ChoiceBlock<T>::most_main], proj[ChoiceBlock<T>::most_proj];
        prepare(block_.main, block_.main_count, main);
        prepare(block_.proj, block_.proj_count, proj);
        T* const maps = arena_.take<T>(threads_ * 2 * map);
        if (counting_) return arena_.used();
        const int64_t tasks = (block_.batch + images - 1) / images;
        parallel_for(tasks, threads_, [&](int64_t begin, int64_t end, int slot) {
            T* const own = maps + slot * 2 * map;
            for (int64_t task = begin; task < end; ++task) {
                const int64_t first = task * images, count = std::min(images, block_.batch - first);
                write_beside(proj, first, count, y, own, map);
                chain(block_.main, block_.main_count, main, first, count, y, block_.passed(), own, map);
            }
        });
        return arena_.used();
    }

  private:
    // A layer ready to run: weights packed, batch normalisation in them.
    struct Step {
        T* packed;
        T* bias;  // of a pointwise convolution
        DepthwiseBody<T> body;
    };

    void prepare(const ConvNorm<T>* layers, int count, Step* steps) {
        NormVectors<T> previous{};
        for (int i = 0; i < count; ++i) {
            const ConvNorm<T>& layer = layers[i];
            const NormVectors<T> norm = take_norm<T>(arena_, layer.outputs);
            if (!counting_) prepare_norm(layer, block_.eps, norm);
            if (layer.depthwise) {
                steps[i].body = choose_depthwise_body<T>(isa_, layer.outputs);
                steps[i].packed = arena_.take<T>(depthwise_weight_size(layer));
                if (!counting_)
                    pack_depthwise_weight(layer.weight, layer.outputs, layer.kernel * layer.kernel, steps[i].body.lanes,
                                          false, steps[i].packed);
            } else {
                steps[i].packed = arena_.take<T>(gemm_.packed_size(layer.outputs, layer.inputs));
                steps[i].bias = arena_.take<T>(layer.outputs);
                if (!counting_) pack(layer, i && layers[i - 1].depthwise ? previous : NormVectors<T>{}, norm, steps[i]);
            }
            previous = norm;
        }
    }

    // previous: of the depthwise convolution in front, which has no ReLU behind its batch normalisation.
    void pack(const ConvNorm<T>& layer, const NormVectors<T>& previous, const NormVectors<T>& own, const Step& step) {
        const int64_t inputs = layer.inputs, outputs = layer.outputs;
        constexpr int64_t worth_a_team = 16384;  // elements
        parallel_for(gemm_.panels(outputs), inputs * outputs >= worth_a_team ? threads_ : 1,
                     [&](int64_t begin, int64_t end) {
                         gemm_.pack({outputs, inputs, layer.weight, 1, layer.weight_stride, previous.scale, step.packed,
                                     begin, end, own.scale});
                     });
        if (previous.scale)
            ops_.matrix_vector({layer.weight, layer.weight_stride}, previous.shift, step.bias, outputs, inputs);
        else
            std::fill(step.bias, step.bias + outputs, T(0));
        for (int64_t o = 0; o < outputs; ++o) step.bias[o] = own.scale[o] * step.bias[o] + own.shift[o];
    }

    // What stands beside the main branch's output: the passed half, or the projection.
    void write_beside(const Step* proj, int64_t first, int64_t count, T* y, T* maps, int64_t map) {
        if (block_.whole) return;
        if (block_.stride == 2) return chain(block_.proj, block_.proj_count, proj, first, count, y, 0, maps, map);
        const int64_t pixels = block_.in_height * block_.in_width, row = first * pixels, outputs = channels_of_y();
        ops_.split({block_.x + row * block_.x_stride, block_.x_stride}, {y + row * outputs, outputs}, {nullptr, 0},
                   count * pixels, block_.passed());
    }

    int64_t channels_of_y() const { return block_.passed() + block_.main[block_.main_count - 1].outputs; }

    // Runs `count` images through a chain; its output starts at y's channel `channel`.
    void chain(const ConvNorm<T>* layers, int layer_count, const Step* steps, int64_t first, int64_t count, T* y,
               int64_t channel, T* maps, int64_t map) {
        const int64_t in_image = block_.in_height * block_.in_width;
        const bool every_second = block_.halves();
        const T* source = block_.x + first * in_image * block_.x_stride;
        int64_t source_stride = block_.x_stride;
        for (int i = 0; i < layer_count; ++i) {
            const Place<T> place = place_of(block_, layers, i);
            const int64_t outputs = layers[i].outputs;
            const int64_t pixels = count * place.out_height * place.out_width;
            const bool last = i + 1 == layer_count;
            T* target = maps + i % 2 * map;
            int64_t target_stride = outputs;
            if (last) {
                target_stride = channels_of_y();
                target = y + first * place.out_height * place.out_width * target_stride + channel;
            }
            if (layers[i].depthwise) {
                if (i == 0 && every_second) {  // every second channel of x, into the map that this layer does not write
                    T* const odd = maps + map;
                    ops_.split({source, source_stride}, {nullptr, 0}, {odd, outputs}, count * in_image, outputs);
                    source = odd;
                    source_stride = outputs;
                }
                depthwise(place, steps[i], count, source, source_stride, target);
            } else {
                Gemm<T> call{};
                call.m = pixels, call.n = outputs, call.k = layers[i].inputs;
                call.a = source + (i == 0 && every_second), call.a_m = source_stride;
                call.a_k = i == 0 && every_second ? 2 : 1;
                call.b = steps[i].packed, call.c = target, call.c_m = target_stride;
                call.bias = steps[i].bias, call.relu = true;
                gemm_.gemm(call);
            }
            source = target;
            source_stride = target_stride;
        }
    }

    void depthwise(const Place<T>& place, const Step& step, int64_t count, const T* source, int64_t stride, T* target) {
        const int64_t channels = place.layer->outputs;
        const int kernel = place.layer->kernel;
        const Plane<const T> from{
            source,        place.in_height * place.in_width * stride, place.in_width * stride, stride, place.in_height,
            place.in_width};
        const Plane<T> to{target,
                          place.out_height * place.out_width * channels,
                          place.out_width * channels,
                          channels,
                          place.out_height,
                          place.out_width};
        step.body.rows(
            {from, to, step.packed, count, channels, kernel, kernel / 2, place.stride == 1 ? Reach::same : Reach::down},
            1);
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
bool choice_block_inference_fits(const ChoiceBlock<T>& block) {
    return block.batch / images_in_piece(block) >= 8;
}

template <typename T>
size_t choice_block_inference_workspace(Isa isa, const ChoiceBlock<T>& block, int threads) {
    return Inference<T>(isa, block, nullptr, threads).run(nullptr);
}

template <typename T>
void choice_block_inference(Isa isa, const ChoiceBlock<T>& block, T* y, void* workspace, int threads) {
    Inference<T>(isa, block, workspace, threads).run(y);
}

template bool choice_block_inference_fits(const ChoiceBlock<float>&);
template bool choice_block_inference_fits(const ChoiceBlock<double>&);
template size_t choice_block_inference_workspace(Isa, const ChoiceBlock<float>&, int);
template size_t choice_block_inference_workspace(Isa, const ChoiceBlock<double>&, int);
template void choice_block_inference(Isa, const ChoiceBlock<float>&, float*, void*, int);
template void choice_block_inference(Isa, const ChoiceBlock<double>&, double*, void*, int);

}  // namespace spos
