// choice_block: what surrounds its kernels in an eager call, for some microseconds less than Python takes: checking and
// measuring the tensors of a branch, and updating running statistics.
//
// A branch is a Branch of choice_block_reference.py, (main, proj), two tuples of ConvBN: (weight, gamma, beta,
// running_mean, running_var, num_batches_tracked).
#include <cmath>
#include <type_traits>

#include "bindings/bindings.h"
#include "bindings/tensor.h"

namespace spos {

namespace {

constexpr size_t branch_fields = 2, layer_fields = 6;

bool is_vector(const Tensor& tensor, int64_t size) {
    return tensor.ndim == 1 && tensor.shape[0] == size && (size == 1 || tensor.strides[0] == 1);
}

// Two vectors of `size` elements, or None twice.
bool check_pair(py::handle first, py::handle second, int64_t size, Dtype dtype, bool& given) {
    given = !first.is_none();
    if (first.is_none() || second.is_none()) return first.is_none() && second.is_none();
    for (const py::handle object : {first, second}) {
        Tensor tensor{};
        if (!try_read_tensor(object, tensor) || tensor.dtype != dtype || !is_vector(tensor, size)) return false;
    }
    return true;
}

bool is_dense(const Tensor& tensor) {
    int64_t stride = 1;
    for (int i = tensor.ndim - 1; i >= 0; stride *= tensor.shape[i--])
        if (tensor.shape[i] != 1 && tensor.strides[i] != stride) return false;
    return true;
}

// Dense or a slice of the channels of what is: pixels at one distance, channels adjacent.
bool has_even_pixels(const Tensor& x) {
    const auto& [batch, channels, height, width] = x.shape;
    const int64_t pixel = width > 1 ? x.strides[3] : channels;
    return (channels == 1 || x.strides[1] == 1) && (height == 1 || x.strides[2] == width * pixel) &&
           (batch == 1 || x.strides[0] == height * width * pixel);
}

struct Measured {
    py::list bank, affine;
    int64_t height, width, kept = 0, statistics = 0, multiply_adds = 0, outputs = 0;
};

// Checks a chain as choice_block_reference.py does and adds it up. False: anything is not as it should be, or not plain.
bool measure_chain(const py::tuple& chain, py::handle layer_type, const Tensor& x, int64_t channels, int64_t stride,
                   bool training, bool averages, Measured& found) {
    constexpr size_t longest = 6;
    int64_t height = x.shape[2], width = x.shape[3];
    bool after_depthwise = false;
    if (chain.size() < 2 || chain.size() > longest) return false;
    for (size_t i = 0; i < chain.size(); ++i) {
        if (py::type::of(chain[i]).ptr() != layer_type.ptr()) return false;
        const auto fields = py::reinterpret_borrow<py::tuple>(chain[i]);
        Tensor weight{};
        if (!try_read_tensor(fields[0], weight) || weight.dtype != x.dtype || weight.ndim != 4) return false;
        const auto& [outputs, inputs, kernel, kernel_width] = weight.shape;
        const bool depthwise = kernel_width > 1;
        if (outputs < 1 || kernel != kernel_width || (i && depthwise == after_depthwise)) return false;
        if (depthwise) {
            if (outputs != channels || inputs != 1 || !(kernel == 3 || kernel == 5 || kernel == 7)) return false;
            if (!is_dense(weight)) return false;
            height = (height - 1) / stride + 1, width = (width - 1) / stride + 1, stride = 1;
        } else if (inputs != channels || (inputs > 1 && weight.strides[1] != 1)) {
            return false;
        }
        bool affine, tracked;
        if (!check_pair(fields[1], fields[2], outputs, x.dtype, affine)) return false;
        if (!check_pair(fields[3], fields[4], outputs, x.dtype, tracked)) return false;
        const bool counted = !fields[5].is_none();
        if (counted && (!tracked || !try_read_count(fields[5]))) return false;
        if (training ? averages && tracked && !counted : !tracked) return false;
        const int64_t pixels = x.shape[0] * height * width;
        if (training && pixels < 2) return false;
        found.bank.append(fields[0]);
        if (affine) found.bank.append(fields[1]), found.bank.append(fields[2]);
        found.affine.append(py::bool_(affine));
        found.kept += pixels * outputs;
        found.statistics += 2 * outputs;
        found.multiply_adds += pixels * outputs * inputs * kernel * kernel;
        after_depthwise = depthwise, channels = outputs;
    }
    found.height = height, found.width = width, found.outputs += channels;
    return !after_depthwise;
}

bool is_branch(const py::tuple& branch) {
    return branch.size() == branch_fields && PyTuple_CheckExact(PyTuple_GET_ITEM(branch.ptr(), 0)) &&
           PyTuple_CheckExact(PyTuple_GET_ITEM(branch.ptr(), 1));
}

// (bank, affine, shape of y, elements kept, elements of statistics, multiply-adds), or None for a call that is not
// plain or not right, of which choice_block_reference.describe knows more. averages: momentum is None.
py::object measure(py::handle x_object, const py::tuple& branch, py::handle layer_type, int64_t stride, bool training,
                   bool averages) {
    Tensor x{};
    if (!is_branch(branch) || !try_read_tensor(x_object, x) || x.ndim != 4) return py::none();
    const auto& [batch, channels, height, width] = x.shape;
    if (batch < 1 || channels < 1 || height < 1 || width < 1 || !has_even_pixels(x)) return py::none();
    if (stride == 1 && channels % 2) return py::none();
    const auto main = py::reinterpret_borrow<py::tuple>(branch[0]), proj = py::reinterpret_borrow<py::tuple>(branch[1]);
    if (proj.size() != (stride == 2 ? 2 : 0)) return py::none();
    Measured found;
    const int64_t arriving = stride == 1 ? channels / 2 : channels;
    if (!measure_chain(main, layer_type, x, arriving, stride, training, averages, found)) return py::none();
    if (stride == 1)
        found.outputs += arriving;
    else if (!measure_chain(proj, layer_type, x, arriving, stride, training, averages, found))
        return py::none();
    return py::make_tuple(py::tuple(found.bank), py::tuple(found.affine),
                          py::make_tuple(batch, found.outputs, found.height, found.width), found.kept, found.statistics,
                          found.multiply_adds);
}

template <typename T>
T* vector_of(py::handle object, const char* name, int64_t size, Dtype dtype) {
    const Tensor tensor = read_tensor(object, name);
    if (tensor.dtype != dtype) throw py::type_error(std::string(name) + ": dtype differs from that of statistics");
    check_shape(tensor, name, {size});
    check_contiguous(tensor, name);
    return tensor.as<T>();
}

// Moves a layer's running statistics towards the batch's, [mean, variance] of `count` values a channel, and counts the
// batch, as torch's batch normalisation does. The variance is made unbiased.
template <typename T>
void track_layer(const py::tuple& layer, const T* batch, int64_t channels, double count, py::handle momentum,
                 Dtype dtype) {
    int64_t* const batches = layer[5].is_none() ? nullptr : try_read_count(layer[5]);
    if (!layer[5].is_none() && !batches) throw py::type_error("num_batches_tracked: expected an int64 scalar");
    if (batches) ++*batches;
    if (layer[3].is_none()) return;
    T* const mean = vector_of<T>(layer[3], "running_mean", channels, dtype);
    T* const variance = vector_of<T>(layer[4], "running_var", channels, dtype);
    const double share = !momentum.is_none() ? py::cast<double>(momentum)
                         : batches           ? 1 / static_cast<double>(*batches)
                                             : 0;
    const double unbiased = count > 1 ? count / (count - 1) : std::nan("");
    for (int64_t c = 0; c < channels; ++c) {
        mean[c] = static_cast<T>((1 - share) * mean[c] + share * batch[c]);
        variance[c] = static_cast<T>((1 - share) * variance[c] + share * unbiased * batch[channels + c]);
    }
}

// statistics: of each layer of main, then of proj, the mean and the biased variance of a batch [batch, ., height, width].
void track(py::handle statistics_object, const py::tuple& branch, int64_t batch, int64_t height, int64_t width,
           int64_t stride, py::object momentum) {
    const Tensor statistics = read_tensor(statistics_object, "statistics");
    if (statistics.ndim != 1) throw py::value_error("statistics: expected one dimension");
    check_contiguous(statistics, "statistics");
    if (stride < 1) throw py::value_error("stride: expected 1 or 2");
    const auto run = [&](auto element) {
        using T = decltype(element);
        int64_t offset = 0;
        for (const py::handle chain : branch) {
            double pixels = static_cast<double>(batch * height * width);
            for (const py::handle object : py::cast<py::tuple>(chain)) {
                const auto layer = py::cast<py::tuple>(object);
                if (layer.size() != layer_fields) throw py::value_error("layer: expected a ConvBN");
                const Tensor weight = read_tensor(layer[0], "weight");
                const int64_t channels = weight.ndim == 4 ? weight.shape[0] : 0;
                if (channels < 1 || offset + 2 * channels > statistics.shape[0])
                    throw py::value_error("statistics: do not fit the branch");
                if (weight.shape[3] > 1)
                    pixels = static_cast<double>(batch * ((height - 1) / stride + 1) * ((width - 1) / stride + 1));
                track_layer<T>(layer, statistics.as<T>() + offset, channels, pixels, momentum, statistics.dtype);
                offset += 2 * channels;
            }
        }
    };
    if (statistics.dtype == Dtype::float32)
        run(float{});
    else
        run(double{});
}

}  // namespace

void bind_choice_block_call(py::module_& module) {
    module.def("choice_block_measure", &measure, py::arg("x"), py::arg("branch"), py::arg("layer_type"),
               py::arg("stride"), py::arg("training"), py::arg("averages"));
    module.def("choice_block_track", &track, py::arg("statistics"), py::arg("branch"), py::arg("batch"),
               py::arg("height"), py::arg("width"), py::arg("stride"), py::arg("momentum").none(true));
}

}  // namespace spos
