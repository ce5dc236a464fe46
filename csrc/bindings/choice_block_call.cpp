// choice_block: what surrounds its kernels in an eager call, for a tenth of the time that Python takes: checking and
// measuring the tensors of a chain of blocks, and updating running statistics.
//
// A chain is a tuple of the Link of choice_block_reference.py, (branch, stride, whole); a branch is a Branch, (main,
// proj), two tuples of ConvBN: (weight, gamma, beta, running_mean, running_var, num_batches_tracked).
#include <cmath>
#include <type_traits>

#include "bindings/bindings.h"
#include "bindings/tensor.h"

namespace spos {

namespace {

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

struct Types {
    py::handle link, branch, layer;
};

bool is_exactly(py::handle object, py::handle type) { return py::type::handle_of(object).ptr() == type.ptr(); }

// How the statistics are used: of the batch or given; averaged over all batches or moved towards the batch's.
struct Mode {
    bool training, averages;
};

// The shape of a block's input, then of its output.
struct Shape {
    int64_t batch, channels, height, width;
};

struct Measured {
    py::list bank, plans;
};

// What one block adds up to.
struct Block {
    py::list affine;
    int64_t kept = 0, statistics = 0, multiply_adds = 0;
};

// Checks a chain of layers as choice_block_reference.py does and adds it up; `shape` becomes that of its output. False:
// anything is not as it should be, or not plain.
bool measure_layers(const py::tuple& layers, const Types& types, Dtype dtype, int64_t stride, const Mode& mode,
                    Shape& shape, py::list& bank, Block& block) {
    bool after_depthwise = false;
    for (size_t i = 0; i < layers.size(); ++i) {
        if (!is_exactly(layers[i], types.layer)) return false;
        const auto fields = py::reinterpret_borrow<py::tuple>(layers[i]);
        Tensor weight{};
        if (!try_read_tensor(fields[0], weight) || weight.dtype != dtype || weight.ndim != 4) return false;
        const auto& [outputs, inputs, kernel, kernel_width] = weight.shape;
        const bool depthwise = kernel_width > 1;
        if (outputs < 1 || kernel != kernel_width || (i && depthwise == after_depthwise)) return false;
        if (depthwise) {
            if (outputs != shape.channels || inputs != 1 || !(kernel == 3 || kernel == 5 || kernel == 7)) return false;
            if (!is_dense(weight)) return false;
            shape.height = (shape.height - 1) / stride + 1, shape.width = (shape.width - 1) / stride + 1, stride = 1;
        } else if (inputs != shape.channels || (inputs > 1 && weight.strides[1] != 1)) {
            return false;
        }
        bool affine, tracked;
        if (!check_pair(fields[1], fields[2], outputs, dtype, affine)) return false;
        if (!check_pair(fields[3], fields[4], outputs, dtype, tracked)) return false;
        const bool counted = !fields[5].is_none();
        if (counted && (!tracked || !try_read_count(fields[5]))) return false;
        if (mode.training ? mode.averages && tracked && !counted : !tracked) return false;
        const int64_t pixels = shape.batch * shape.height * shape.width;
        if (mode.training && pixels < 2) return false;
        bank.append(fields[0]);
        if (affine) bank.append(fields[1]), bank.append(fields[2]);
        block.affine.append(py::bool_(affine));
        block.kept += pixels * outputs;
        block.statistics += 2 * outputs;
        block.multiply_adds += pixels * outputs * inputs * kernel * kernel;
        after_depthwise = depthwise, shape.channels = outputs;
    }
    return !after_depthwise;
}

bool measure_link(py::handle object, const Types& types, Dtype dtype, const Mode& mode, Shape& shape, Measured& found) {
    constexpr size_t longest = 6;
    if (!is_exactly(object, types.link)) return false;
    const auto link = py::reinterpret_borrow<py::tuple>(object);
    if (!is_exactly(link[0], types.branch) || !PyLong_CheckExact(link[1].ptr()) || !PyBool_Check(link[2].ptr()))
        return false;
    const auto branch = py::reinterpret_borrow<py::tuple>(link[0]);
    if (!PyTuple_CheckExact(branch[0].ptr()) || !PyTuple_CheckExact(branch[1].ptr())) return false;
    const auto main = py::reinterpret_borrow<py::tuple>(branch[0]), proj = py::reinterpret_borrow<py::tuple>(branch[1]);
    int overflow = 0;
    const int64_t stride = PyLong_AsLongLongAndOverflow(link[1].ptr(), &overflow);
    const bool whole = link[2].ptr() == Py_True;
    if (overflow || (stride != 1 && stride != 2) || proj.size() != (stride == 2 ? 2 : 0)) return false;
    if (whole ? stride != 1 || main.size() != 1 : main.size() < 2 || main.size() > longest) return false;
    if (!whole && stride == 1 && shape.channels % 2) return false;
    Shape arriving = shape;
    if (!whole && stride == 1) arriving.channels /= 2;
    Block block;
    Shape result = arriving, beside = arriving;
    if (!measure_layers(main, types, dtype, stride, mode, result, found.bank, block)) return false;
    if (stride == 2 && !measure_layers(proj, types, dtype, stride, mode, beside, found.bank, block)) return false;
    if (stride == 2 && beside.channels != arriving.channels) return false;
    if (!whole) result.channels += beside.channels;
    shape = result;
    found.plans.append(py::make_tuple(py::tuple(block.affine), main.size(), stride, whole,
                                      py::make_tuple(shape.batch, shape.channels, shape.height, shape.width),
                                      block.kept, block.statistics, block.multiply_adds));
    return true;
}

// (bank, plans), a plan being (affine, layers of main, stride, whole, shape of y, elements kept, elements of
// statistics, multiply-adds); None for a call that is not plain or not right, of which choice_block_reference.py knows
// more. types: Link, Branch, ConvBN. averages: momentum is None.
py::object measure(py::handle x_object, const py::tuple& links, const py::tuple& types, bool training, bool averages) {
    if (types.size() != 3) throw py::value_error("types: expected three");
    Tensor x{};
    if (!try_read_tensor(x_object, x) || x.ndim != 4) return py::none();
    Shape shape{x.shape[0], x.shape[1], x.shape[2], x.shape[3]};
    if (shape.batch < 1 || shape.channels < 1 || shape.height < 1 || shape.width < 1 || !has_even_pixels(x))
        return py::none();
    Measured found;
    for (const py::handle link : links)
        if (!measure_link(link, {types[0], types[1], types[2]}, x.dtype, {training, averages}, shape, found))
            return py::none();
    return py::make_tuple(py::tuple(found.bank), py::tuple(found.plans));
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

// statistics: of each block, of each layer of main, then of proj, the mean and the biased variance of a batch.
void track(py::handle statistics_object, const py::tuple& links, const py::tuple& x_shape, py::object momentum) {
    constexpr size_t layer_fields = 6;
    const Tensor statistics = read_tensor(statistics_object, "statistics");
    if (statistics.ndim != 1) throw py::value_error("statistics: expected one dimension");
    check_contiguous(statistics, "statistics");
    if (x_shape.size() != 4) throw py::value_error("x_shape: expected four sizes");
    const auto batch = py::cast<int64_t>(x_shape[0]);
    auto height = py::cast<int64_t>(x_shape[2]), width = py::cast<int64_t>(x_shape[3]);
    const auto run = [&](auto element) {
        using T = decltype(element);
        int64_t offset = 0;
        for (const py::handle object : links) {
            const auto link = py::cast<py::tuple>(object);
            const auto stride = py::cast<int64_t>(link[1]);
            if (stride < 1) throw py::value_error("stride: expected 1 or 2");
            const int64_t small_height = (height - 1) / stride + 1, small_width = (width - 1) / stride + 1;
            for (const py::handle chain : py::cast<py::tuple>(link[0])) {
                int64_t pixels = batch * height * width;
                for (const py::handle layer_object : py::cast<py::tuple>(chain)) {
                    const auto layer = py::cast<py::tuple>(layer_object);
                    if (layer.size() != layer_fields) throw py::value_error("layer: expected a ConvBN");
                    const Tensor weight = read_tensor(layer[0], "weight");
                    const int64_t channels = weight.ndim == 4 ? weight.shape[0] : 0;
                    if (channels < 1 || offset + 2 * channels > statistics.shape[0])
                        throw py::value_error("statistics: do not fit the links");
                    if (weight.shape[3] > 1) pixels = batch * small_height * small_width;
                    track_layer<T>(layer, statistics.as<T>() + offset, channels, static_cast<double>(pixels), momentum,
                                   statistics.dtype);
                    offset += 2 * channels;
                }
            }
            height = small_height, width = small_width;
        }
    };
    if (statistics.dtype == Dtype::float32)
        run(float{});
    else
        run(double{});
}

}  // namespace

void bind_choice_block_call(py::module_& module) {
    module.def("choice_block_measure", &measure, py::arg("x"), py::arg("links"), py::arg("types"), py::arg("training"),
               py::arg("averages"));
    module.def("choice_block_track", &track, py::arg("statistics"), py::arg("links"), py::arg("x_shape"),
               py::arg("momentum").none(true));
}

}  // namespace spos
