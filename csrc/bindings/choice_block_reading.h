// choice_block: how the tensors of a chain of blocks become what the kernels take.
//
// A chain's bank is flat: of each layer its weight and, where affine says so, gamma and beta; of each block the layers
// of main, then those of proj. What forward keeps of a block is one flat tensor, and all statistics are another, in the
// same order.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "bindings/processor.h"
#include "bindings/tensor.h"
#include "cpu/choice_block.h"

namespace spos {

// What is the same for all blocks of a chain.
struct ChainOptions {
    bool training;
    double eps;
    Isa isa;
};

// What says of which layers a block is made: (affine of each layer, layers of main, stride, whole, ...).
struct Plan {
    explicit Plan(py::handle object) : fields(py::cast<py::tuple>(object)) {
        if (fields.size() < 4) throw py::value_error("plans: expected (affine, main, stride, whole, ...)");
        affine = py::cast<py::tuple>(fields[0]);
        main_layers = py::cast<int64_t>(fields[1]);
        stride = py::cast<int64_t>(fields[2]);
        whole = py::cast<bool>(fields[3]);
    }
    py::tuple fields, affine;
    int64_t main_layers, stride;
    bool whole;
};

// Hands out the entries of a flat list.
class Entries {
  public:
    Entries(const py::tuple& from, const char* name) : from_(from), name_(name) {}
    py::handle next() {
        if (at_ == from_.size()) throw py::value_error(std::string(name_) + ": expected more entries");
        return from_[at_++];
    }
    void check_used() const {
        if (at_ != from_.size()) throw py::value_error(std::string(name_) + ": expected fewer entries");
    }

  private:
    const py::tuple& from_;
    const char* name_;
    size_t at_ = 0;
};

template <typename T>
const T* optional_vector(py::handle object, const char* name, int64_t size, Dtype dtype) {
    if (object.is_none()) return nullptr;
    const Tensor tensor = read_tensor(object, name);
    check_shape(tensor, name, {size});
    check_contiguous(tensor, name);
    if (tensor.dtype != dtype) throw py::type_error(std::string(name) + ": dtype differs from that of x");
    return tensor.as<T>();
}

template <typename T>
ConvNorm<T> read_layer(Entries& bank, bool affine, int64_t inputs, Dtype dtype) {
    const Tensor weight = read_tensor(bank.next(), "weight");
    if (weight.dtype != dtype) throw py::type_error("weight: dtype differs from that of x");
    if (weight.ndim != 4) throw py::value_error("weight: expected 4 dimensions");
    ConvNorm<T> layer{};
    layer.depthwise = weight.shape[3] > 1;
    layer.kernel = static_cast<int>(weight.shape[3]);
    layer.inputs = inputs;
    layer.outputs = weight.shape[0];
    if (layer.depthwise) {
        if (layer.kernel != 3 && layer.kernel != 5 && layer.kernel != 7)
            throw py::value_error("weight: expected a kernel of 1, 3, 5 or 7");
        check_shape(weight, "weight", {inputs, 1, layer.kernel, layer.kernel});
        check_contiguous(weight, "weight");
    } else {
        check_shape(weight, "weight", {weight.shape[0], inputs, 1, 1});
        if (layer.outputs < 1 || (inputs > 1 && weight.strides[1] != 1))
            throw py::value_error("weight: expected [O, I, 1, 1] with adjacent inputs");
        layer.weight_stride = layer.outputs > 1 ? weight.strides[0] : inputs;
    }
    layer.weight = weight.as<T>();
    if (affine) {
        layer.gamma = optional_vector<T>(bank.next(), "gamma", layer.outputs, dtype);
        layer.beta = optional_vector<T>(bank.next(), "beta", layer.outputs, dtype);
    }
    return layer;
}

template <typename T>
void read_chain(Entries& bank, Entries& affine, int64_t count, int most, int64_t inputs, Dtype dtype,
                ConvNorm<T>* layers) {
    if (count < 0 || count > most) throw py::value_error("layers: a chain has at most " + std::to_string(most));
    for (int64_t i = 0; i < count; ++i) {
        layers[i] = read_layer<T>(bank, py::cast<bool>(affine.next()), inputs, dtype);
        inputs = layers[i].outputs;
    }
    if (count && layers[count - 1].depthwise) throw py::value_error("layers: a chain ends in a pointwise convolution");
}

template <typename T>
ChoiceBlock<T> read_block(const Tensor& x, Entries& bank, const Plan& plan, const ChainOptions& options) {
    const NhwcStrides strides = nhwc_strides(x, "x");
    ChoiceBlock<T> block{};
    block.batch = x.shape[0], block.inputs = x.shape[1], block.in_height = x.shape[2], block.in_width = x.shape[3];
    if (std::min({block.batch, block.inputs, block.in_height, block.in_width}) < 1)
        throw py::value_error("x: expected at least one image, channel and pixel");
    if (strides.h != block.in_width * strides.w || strides.n != block.in_height * strides.h)
        throw py::value_error("x: expected pixels at one distance");
    if (plan.stride != 1 && plan.stride != 2) throw py::value_error("stride: accepted are 1 and 2");
    block.whole = plan.whole;
    if (plan.stride == 1 && !block.whole && block.inputs % 2)
        throw py::value_error("x: expected an even number of channels");
    if (!(options.eps > 0)) throw py::value_error("eps: expected a positive number");
    block.stride = static_cast<int>(plan.stride);
    block.out_height = (block.in_height - 1) / block.stride + 1;
    block.out_width = (block.in_width - 1) / block.stride + 1;
    block.training = options.training;
    block.eps = options.eps;
    block.x = x.as<T>();
    block.x_stride = strides.w;
    const int64_t branch = block.halves() ? block.inputs / 2 : block.inputs;
    Entries affine(plan.affine, "affine");
    const int64_t main_layers = plan.main_layers;
    const int64_t proj_layers = static_cast<int64_t>(plan.affine.size()) - main_layers;
    read_chain<T>(bank, affine, main_layers, ChoiceBlock<T>::most_main, branch, x.dtype, block.main);
    read_chain<T>(bank, affine, proj_layers, ChoiceBlock<T>::most_proj, branch, x.dtype, block.proj);
    block.main_count = static_cast<int>(main_layers), block.proj_count = static_cast<int>(proj_layers);
    const auto strided = [](const ConvNorm<T>* layers, int count) {
        return std::any_of(layers, layers + count, [](const ConvNorm<T>& layer) { return layer.depthwise; });
    };
    if (block.stride == 2 &&
        (!strided(block.main, block.main_count) || (block.proj_count && !strided(block.proj, block.proj_count))))
        throw py::value_error("layers: at stride 2 a chain needs a depthwise convolution");
    if (block.main_count < 1 || (block.proj_count > 0) != (block.stride == 2 && !block.whole))
        throw py::value_error("layers: expected a main chain, and a projection at stride 2 alone");
    if (block.proj_count && block.proj[block.proj_count - 1].outputs != branch)
        throw py::value_error("layers: the projection must have as many outputs as x has channels");
    require_isa(options.isa, x.dtype);
    return block;
}

// Calls visit(layer, pixels of its output) for every layer.
template <typename T, typename Visit>
void for_layers(ChoiceBlock<T>& block, const Visit& visit) {
    const auto chain = [&](ConvNorm<T>* layers, int count) {
        int64_t pixels = block.batch * block.in_height * block.in_width;
        for (int i = 0; i < count; ++i) {
            if (layers[i].depthwise) pixels = block.batch * block.out_height * block.out_width;
            visit(layers[i], pixels);
        }
    };
    chain(block.main, block.main_count);
    chain(block.proj, block.proj_count);
}

// A dense channels_last tensor's pixel stride is its number of channels.
inline void check_dense(const Tensor& tensor, const char* name) {
    const NhwcStrides strides = nhwc_strides(tensor, name);
    const int64_t channels = tensor.shape[1];
    if (strides.w != channels || strides.h != tensor.shape[3] * channels || strides.n != tensor.shape[2] * strides.h)
        throw py::value_error(std::string(name) + ": expected a dense channels_last tensor");
}

// What a block writes, dense, in memory still to be named.
template <typename T>
Tensor output_of(const ChoiceBlock<T>& block, Dtype dtype) {
    const int64_t outputs = block.passed() + block.main[block.main_count - 1].outputs;
    const int64_t row = block.out_width * outputs;
    return {nullptr,
            dtype,
            4,
            {block.batch, outputs, block.out_height, block.out_width},
            {block.out_height * row, 1, row, outputs}};
}

// The blocks of a chain one after another; x of all but the first is still to be set.
template <typename T>
std::vector<ChoiceBlock<T>> read_blocks(const Tensor& x, const py::tuple& bank, const py::tuple& plans,
                                        const ChainOptions& options) {
    if (plans.size() < 1) throw py::value_error("plans: expected at least one");
    std::vector<ChoiceBlock<T>> blocks;
    Entries entries(bank, "bank");
    Tensor in = x;
    for (const py::handle plan : plans) {
        blocks.push_back(read_block<T>(in, entries, Plan(plan), options));
        in = output_of(blocks.back(), x.dtype);
    }
    entries.check_used();
    return blocks;
}

// Elements of all z of a block.
template <typename T>
int64_t kept_size(ChoiceBlock<T>& block) {
    int64_t size = 0;
    for_layers(block, [&](ConvNorm<T>& layer, int64_t pixels) { size += pixels * layer.outputs; });
    return size;
}

// Points the layers of a block at memory for kept_size() elements.
template <typename T>
void place_outputs(ChoiceBlock<T>& block, T* kept) {
    for_layers(block, [&](ConvNorm<T>& layer, int64_t pixels) {
        layer.z = kept;
        kept += pixels * layer.outputs;
    });
}

// Points the layers of all blocks into the statistics: of each layer mean, then biased variance.
template <typename T>
void place_statistics(std::vector<ChoiceBlock<T>>& blocks, const Tensor& statistics) {
    int64_t channels = 0;
    for (ChoiceBlock<T>& block : blocks)
        for_layers(block, [&](ConvNorm<T>& layer, int64_t) {
            layer.mean = statistics.as<T>() + channels;
            layer.variance = layer.mean + layer.outputs;
            channels += 2 * layer.outputs;
        });
    check_shape(statistics, "statistics", {channels});
    check_contiguous(statistics, "statistics");
}

// Calls run(element of x's type).
template <typename Run>
void dispatch(const Tensor& x, const Run& run) {
    if (x.dtype == Dtype::float32)
        run(float{});
    else
        run(double{});
}

template <typename T>
Isa isa_for(const ChainOptions& options) {
    return sizeof(T) == sizeof(float) ? options.isa : Isa::portable;
}

}  // namespace spos
