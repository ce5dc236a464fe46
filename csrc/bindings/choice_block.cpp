// choice_block: tensors in, a checked chain of convolutions out to the kernels. Every output is allocated by the
// caller; what forward keeps is two flat tensors, laid out here: the layers of main, then those of proj, one after
// another.
#include "cpu/choice_block.h"

#include <algorithm>
#include <cmath>

#include "bindings/bindings.h"
#include "bindings/processor.h"
#include "bindings/tensor.h"
#include "bindings/workspace.h"

namespace spos {

namespace {

// What a call says besides its input. The bank is flat: of each layer its weight and, where affine says so, gamma and
// beta; the first main_layers of them are main's, the others proj's.
struct Options {
    py::tuple bank, affine;
    int64_t main_layers;
    int64_t stride;
    bool whole, training;
    double eps;
    Isa isa;
    int64_t threads;
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
ChoiceBlock<T> read_block(const Tensor& x, const Options& options) {
    const NhwcStrides strides = nhwc_strides(x, "x");
    ChoiceBlock<T> block{};
    block.batch = x.shape[0], block.inputs = x.shape[1], block.in_height = x.shape[2], block.in_width = x.shape[3];
    if (std::min({block.batch, block.inputs, block.in_height, block.in_width}) < 1)
        throw py::value_error("x: expected at least one image, channel and pixel");
    if (strides.h != block.in_width * strides.w || strides.n != block.in_height * strides.h)
        throw py::value_error("x: expected pixels at one distance");
    if (options.stride != 1 && options.stride != 2) throw py::value_error("stride: accepted are 1 and 2");
    block.whole = options.whole;
    if (options.stride == 1 && !block.whole && block.inputs % 2)
        throw py::value_error("x: expected an even number of channels");
    if (!(options.eps > 0)) throw py::value_error("eps: expected a positive number");
    block.stride = static_cast<int>(options.stride);
    block.out_height = (block.in_height - 1) / block.stride + 1;
    block.out_width = (block.in_width - 1) / block.stride + 1;
    block.training = options.training;
    block.eps = options.eps;
    block.x = x.as<T>();
    block.x_stride = strides.w;
    const int64_t branch = block.halves() ? block.inputs / 2 : block.inputs;
    Entries bank(options.bank, "bank"), affine(options.affine, "affine");
    const int64_t main_layers = options.main_layers;
    const int64_t proj_layers = static_cast<int64_t>(options.affine.size()) - main_layers;
    read_chain<T>(bank, affine, main_layers, ChoiceBlock<T>::most_main, branch, x.dtype, block.main);
    read_chain<T>(bank, affine, proj_layers, ChoiceBlock<T>::most_proj, branch, x.dtype, block.proj);
    bank.check_used();
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

// Points the layers into the flat tensors. statistics: of each layer mean, then biased variance. saved: null for none.
template <typename T>
void place_layers(ChoiceBlock<T>& block, const Tensor* saved, const Tensor& statistics) {
    int64_t kept = 0, channels = 0;
    for_layers(block, [&](ConvNorm<T>& layer, int64_t pixels) {
        layer.z = saved ? saved->as<T>() + kept : nullptr;
        layer.mean = statistics.as<T>() + channels;
        layer.variance = layer.mean + layer.outputs;
        kept += pixels * layer.outputs;
        channels += 2 * layer.outputs;
    });
    if (saved) {
        check_shape(*saved, "saved", {kept});
        check_contiguous(*saved, "saved");
    }
    check_shape(statistics, "statistics", {channels});
    check_contiguous(statistics, "statistics");
}

template <typename T>
void check_output(const ChoiceBlock<T>& block, const Tensor& y, const char* name) {
    const int64_t outputs = block.passed() + block.main[block.main_count - 1].outputs;
    check_shape(y, name, {block.batch, outputs, block.out_height, block.out_width});
}

// A dense channels_last tensor's pixel stride is its number of channels.
void check_dense(const Tensor& tensor, const char* name) {
    const NhwcStrides strides = nhwc_strides(tensor, name);
    const int64_t channels = tensor.shape[1];
    if (strides.w != channels || strides.h != tensor.shape[3] * channels || strides.n != tensor.shape[2] * strides.h)
        throw py::value_error(std::string(name) + ": expected a dense channels_last tensor");
}

int threads_of(const Options& options) { return static_cast<int>(std::clamp<int64_t>(options.threads, 1, 1024)); }

// Calls run(element of x's type).
template <typename Run>
void dispatch(const Tensor& x, const Run& run) {
    if (x.dtype == Dtype::float32)
        run(float{});
    else
        run(double{});
}

template <typename T>
Isa isa_for(const Options& options) {
    return sizeof(T) == sizeof(float) ? options.isa : Isa::portable;
}

void forward(py::handle x_object, py::tuple bank, py::tuple affine, int64_t main_layers, py::handle y_object,
             py::handle saved_object, py::handle statistics_object, int64_t stride, bool whole, bool training, double eps, Isa isa,
             int64_t threads) {
    const Options options{bank, affine, main_layers, stride, whole, training, eps, isa, threads};
    const Tensor x = read_tensor(x_object, "x"), y = read_tensor(y_object, "y");
    const Tensor saved = read_tensor(saved_object, "saved"), statistics = read_tensor(statistics_object, "statistics");
    for (const auto& [tensor, name] : {std::pair{&y, "y"}, {&saved, "saved"}, {&statistics, "statistics"}})
        check_same_dtype(*tensor, name, x, "x");
    dispatch(x, [&](auto element) {
        using T = decltype(element);
        ChoiceBlock<T> block = read_block<T>(x, options);
        place_layers(block, &saved, statistics);
        check_output(block, y, "y");
        check_dense(y, "y");
        const int team = threads_of(options);
        const Isa own = isa_for<T>(options);
        const Workspace workspace(choice_block_forward_workspace(own, block, team));
        py::gil_scoped_release release;
        choice_block_forward(own, block, y.as<T>(), workspace.get(), team);
    });
}

// Forward that keeps nothing. False, with y left as it is, where choice_block_forward is the better way.
bool inference(py::handle x_object, py::tuple bank, py::tuple affine, int64_t main_layers, py::handle y_object,
               py::handle statistics_object, int64_t stride, bool whole, double eps, Isa isa, int64_t threads) {
    const Options options{bank, affine, main_layers, stride, whole, false, eps, isa, threads};
    const Tensor x = read_tensor(x_object, "x"), y = read_tensor(y_object, "y");
    const Tensor statistics = read_tensor(statistics_object, "statistics");
    for (const auto& [tensor, name] : {std::pair{&y, "y"}, {&statistics, "statistics"}})
        check_same_dtype(*tensor, name, x, "x");
    bool done = false;
    dispatch(x, [&](auto element) {
        using T = decltype(element);
        ChoiceBlock<T> block = read_block<T>(x, options);
        place_layers<T>(block, nullptr, statistics);
        check_output(block, y, "y");
        check_dense(y, "y");
        done = choice_block_inference_fits(block);
        if (!done) return;
        const int team = threads_of(options);
        const Isa own = isa_for<T>(options);
        const Workspace workspace(choice_block_inference_workspace(own, block, team));
        py::gil_scoped_release release;
        choice_block_inference(own, block, y.as<T>(), workspace.get(), team);
    });
    return done;
}

// gradients: in the order of the bank, None for those not wanted.
template <typename T>
void read_gradients(ChoiceBlock<T>& block, const py::tuple& gradients, const py::tuple& affine, Dtype dtype) {
    Entries from(gradients, "gradients"), has_affine(affine, "affine");
    for_layers(block, [&](ConvNorm<T>& layer, int64_t) {
        if (const py::handle object = from.next(); !object.is_none()) {
            const Tensor dweight = read_tensor(object, "dweight");
            if (dweight.dtype != dtype) throw py::type_error("dweight: dtype differs from that of x");
            const int64_t kernel = layer.kernel;
            check_shape(dweight, "dweight", {layer.outputs, layer.depthwise ? 1 : layer.inputs, kernel, kernel});
            check_contiguous(dweight, "dweight");
            layer.dweight = dweight.as<T>();
        }
        if (py::cast<bool>(has_affine.next())) {
            layer.dgamma = const_cast<T*>(optional_vector<T>(from.next(), "dgamma", layer.outputs, dtype));
            layer.dbeta = const_cast<T*>(optional_vector<T>(from.next(), "dbeta", layer.outputs, dtype));
        }
    });
    from.check_used();
}

void backward(py::handle dy_object, py::handle x_object, py::tuple bank, py::tuple affine, int64_t main_layers,
              py::handle saved_object, py::handle statistics_object, py::handle dx_object, py::tuple gradients, int64_t stride, bool whole,
              bool training, double eps, Isa isa, int64_t threads) {
    const Options options{bank, affine, main_layers, stride, whole, training, eps, isa, threads};
    const Tensor dy = read_tensor(dy_object, "dy"), x = read_tensor(x_object, "x");
    const Tensor saved = read_tensor(saved_object, "saved"), statistics = read_tensor(statistics_object, "statistics");
    for (const auto& [tensor, name] : {std::pair{&dy, "dy"}, {&saved, "saved"}, {&statistics, "statistics"}})
        check_same_dtype(*tensor, name, x, "x");
    dispatch(x, [&](auto element) {
        using T = decltype(element);
        ChoiceBlock<T> block = read_block<T>(x, options);
        place_layers(block, &saved, statistics);
        read_gradients(block, gradients, affine, x.dtype);
        check_output(block, dy, "dy");
        const NhwcStrides strides = nhwc_strides(dy, "dy");
        if (strides.h != dy.shape[3] * strides.w || strides.n != dy.shape[2] * strides.h)
            throw py::value_error("dy: expected pixels at one distance");
        T* dx = nullptr;
        if (!dx_object.is_none()) {
            const Tensor tensor = read_tensor(dx_object, "dx");
            check_same_dtype(tensor, "dx", x, "x");
            check_shape(tensor, "dx", {x.shape[0], x.shape[1], x.shape[2], x.shape[3]});
            check_dense(tensor, "dx");
            dx = tensor.as<T>();
        }
        const int team = threads_of(options);
        const Isa own = isa_for<T>(options);
        const Workspace workspace(choice_block_backward_workspace(own, block, dx, team));
        py::gil_scoped_release release;
        choice_block_backward(own, block, dy.as<T>(), strides.w, dx, workspace.get(), team);
    });
}

}  // namespace

void bind_choice_block(py::module_& module) {
    module.def("choice_block_forward", &forward, py::arg("x"), py::arg("bank"), py::arg("affine"), py::arg("main_layers"), py::arg("y"),
               py::arg("saved"), py::arg("statistics"), py::arg("stride"), py::arg("whole"), py::arg("training"),
               py::arg("eps"), py::arg("isa"), py::arg("threads"));
    module.def("choice_block_inference", &inference, py::arg("x"), py::arg("bank"), py::arg("affine"), py::arg("main_layers"), py::arg("y"),
               py::arg("statistics"), py::arg("stride"), py::arg("whole"), py::arg("eps"), py::arg("isa"),
               py::arg("threads"));
    module.def("choice_block_backward", &backward, py::arg("dy"), py::arg("x"), py::arg("bank"), py::arg("affine"), py::arg("main_layers"),
               py::arg("saved"), py::arg("statistics"), py::arg("dx"), py::arg("gradients"), py::arg("stride"),
               py::arg("whole"), py::arg("training"), py::arg("eps"), py::arg("isa"), py::arg("threads"));
}

}  // namespace spos
