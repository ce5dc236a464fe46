#include "bindings/cuda/choice_block_reading.h"

#include <algorithm>

namespace spos {

namespace {

const float* vector_of(CudaCall& call, py::handle object, const char* name, int64_t size, bool written) {
    if (object.is_none()) return nullptr;
    const Tensor tensor = read_tensor_of({Dtype::float32}, object, name);
    check_shape(tensor, name, {size});
    check_contiguous(tensor, name);
    written ? call.writes(tensor, name) : call.reads(tensor, name);
    return tensor.as<float>();
}

struct Size {
    int64_t height, width;
};

// One layer, whose `inputs` channels arrive as maps of `size`, which becomes that of its output.
cuda::ConvNorm read_layer(ChoiceBlockReading& reading, py::handle object, int64_t inputs, Size& size, int& stride,
                          bool tracks) {
    const auto tensors = py::cast<py::tuple>(object);
    if (tensors.size() != 6) throw py::value_error("layers: expected tuples of 6");
    const Tensor weight = read_tensor_of(cuda_floats, tensors[0], "weight");
    check_same_dtype(weight, "weight", reading.x, "x");
    if (weight.ndim != 4) throw py::value_error("weight: expected 4 dimensions");
    cuda::ConvNorm layer{};
    const int64_t kernel = weight.shape[3], outputs = weight.shape[0];
    if (kernel != 1 && kernel != 3 && kernel != 5 && kernel != 7)
        throw py::value_error("weight: expected a kernel of 1, 3, 5 or 7");
    check_range("weight's outputs", outputs, 1, cuda::most_channels);
    check_range("weight's inputs", inputs, 1, cuda::most_channels);
    layer.kernel = static_cast<int32_t>(kernel);
    layer.stride = kernel > 1 ? stride : 1;
    layer.weight_stride = static_cast<int32_t>(inputs);
    if (kernel > 1) {
        stride = 1;
        check_shape(weight, "weight", {inputs, 1, kernel, kernel});
        check_contiguous(weight, "weight");
    } else {
        check_shape(weight, "weight", {outputs, inputs, 1, 1});
        if (inputs > 1 && weight.strides[1] != 1)
            throw py::value_error("weight: expected [O, I, 1, 1] with adjacent inputs");
        if (outputs > 1) {
            check_range("weight's stride", weight.strides[0], inputs, INT32_MAX);
            layer.weight_stride = static_cast<int32_t>(weight.strides[0]);
        }
    }
    reading.call.reads(weight, "weight");
    layer.weight = weight.data;
    layer.inputs = static_cast<int32_t>(inputs), layer.outputs = static_cast<int32_t>(outputs);
    layer.gamma = vector_of(reading.call, tensors[1], "gamma", outputs, false);
    layer.beta = vector_of(reading.call, tensors[2], "beta", outputs, false);
    layer.running_mean = const_cast<float*>(vector_of(reading.call, tensors[3], "running_mean", outputs, tracks));
    layer.running_var = const_cast<float*>(vector_of(reading.call, tensors[4], "running_var", outputs, tracks));
    if ((layer.running_mean == nullptr) != (layer.running_var == nullptr))
        throw py::value_error("running_mean and running_var: expected both or neither");
    if (!tensors[5].is_none()) {
        const Tensor count = read_tensor_of({Dtype::int64}, tensors[5], "num_batches_tracked");
        check_shape(count, "num_batches_tracked", {});
        tracks ? reading.call.writes(count, "num_batches_tracked") : reading.call.reads(count, "num_batches_tracked");
        layer.count = count.as<int64_t>();
    }
    layer.in_height = static_cast<int32_t>(size.height), layer.in_width = static_cast<int32_t>(size.width);
    size = {(size.height - 1) / layer.stride + 1, (size.width - 1) / layer.stride + 1};
    layer.height = static_cast<int32_t>(size.height), layer.width = static_cast<int32_t>(size.width);
    // Kept outputs begin at whole vectors.
    layer.kept = (reading.kept + 7) / 8 * 8;
    layer.statistics = reading.statistics;
    reading.kept = layer.kept + reading.block.batch * size.height * size.width * outputs;
    reading.statistics += 2 * outputs;
    return layer;
}

// A tensor with at least this many elements, dense, from a multiple of 16 bytes on.
Tensor read_memory(py::handle object, const char* name, std::initializer_list<Dtype> dtypes, int64_t size) {
    const Tensor tensor = read_tensor_of(dtypes, object, name);
    check_contiguous(tensor, name);
    if (tensor.ndim != 1 || tensor.shape[0] < size || reinterpret_cast<uintptr_t>(tensor.data) % 16)
        throw py::value_error(std::string(name) + ": expected at least " + std::to_string(size) +
                              " elements, aligned to 16 bytes");
    return tensor;
}

// A dense channels_last tensor of this shape.
Tensor read_map(py::handle object, const char* name, const Tensor& x, std::initializer_list<int64_t> shape,
                bool dense) {
    const Tensor tensor = read_tensor_of(cuda_floats, object, name);
    check_same_dtype(tensor, name, x, "x");
    check_shape(tensor, name, shape);
    const NhwcStrides strides = nhwc_strides(tensor, name);
    if (strides.h != tensor.shape[3] * strides.w || strides.n != tensor.shape[2] * strides.h ||
        (dense && strides.w != tensor.shape[1]))
        throw py::value_error(std::string(name) + ": expected a dense channels_last tensor");
    return tensor;
}

}  // namespace

ChoiceBlockReading read_choice_block(const ChoiceBlockArguments& arguments, bool tracks) {
    ChoiceBlockReading reading;
    cuda::ChoiceBlock& block = reading.block;
    const Tensor& x = reading.x = read_tensor_of(cuda_floats, arguments.x, "x");
    const NhwcStrides strides = nhwc_strides(x, "x");
    for (const int64_t size : x.shape) check_range("x's sizes", size, 1, INT32_MAX);
    if (strides.h != x.shape[3] * strides.w || strides.n != x.shape[2] * strides.h)
        throw py::value_error("x: expected pixels at one distance");
    if (x.shape[0] * x.shape[2] * x.shape[3] > INT32_MAX - cuda::most_channels)
        throw py::value_error("x: expected fewer than 2^31 pixels");
    check_range("stride", arguments.stride, 1, 2);
    reading.call.reads(x, "x");
    block.batch = static_cast<int32_t>(x.shape[0]), block.channels = static_cast<int32_t>(x.shape[1]);
    block.height = static_cast<int32_t>(x.shape[2]), block.width = static_cast<int32_t>(x.shape[3]);
    block.x = x.data;
    block.x_pixel = strides.w;
    block.passes = arguments.stride == 1 && !arguments.whole;
    if (block.passes && block.channels % 2) throw py::value_error("x: expected an even number of channels");
    const int64_t arriving = block.passes ? block.channels / 2 : block.channels;
    const int count = static_cast<int>(arguments.layers.size()), proj = count - arguments.main;
    check_range("main", arguments.main, 1, std::min<int64_t>(count, cuda::Branch::most_main));
    if (proj != (arguments.stride == 2 && !arguments.whole ? 2 : 0))
        throw py::value_error("layers: expected a main chain, and a projection of two at stride 2 alone");
    block.branch.main = arguments.main, block.branch.proj = proj;
    Size size{};
    int stride = 1;
    int64_t inputs = 0;
    for (int i = 0; i < count; ++i) {
        if (i == 0 || i == arguments.main)
            size = {block.height, block.width}, stride = arguments.stride, inputs = arriving;
        block.branch.layer[i] = read_layer(reading, arguments.layers[i], inputs, size, stride, tracks);
        inputs = block.branch.layer[i].outputs;
        const bool last = i == arguments.main - 1 || i == count - 1;
        if (last && (stride != 1 || block.branch.layer[i].kernel != 1))
            throw py::value_error(
                "layers: a chain ends in a pointwise convolution, and has a depthwise one at stride 2");
    }
    const cuda::ConvNorm& end = block.branch.layer[arguments.main - 1];
    block.beside = arguments.whole ? 0 : static_cast<int32_t>(arriving);
    if (proj && block.branch.layer[count - 1].outputs != arriving)
        throw py::value_error("layers: the projection must have as many outputs as x has channels");
    block.out_channels = block.beside + end.outputs;
    block.out_height = end.height, block.out_width = end.width;
    return reading;
}

void read_choice_block_gradients(ChoiceBlockReading& reading, const py::tuple& gradients) {
    const auto count = static_cast<size_t>(reading.block.branch.main + reading.block.branch.proj);
    if (gradients.size() != count) throw py::value_error("gradients: expected one tuple a layer");
    for (size_t i = 0; i < count; ++i) {
        cuda::ConvNorm& layer = reading.block.branch.layer[i];
        const auto of = py::cast<py::tuple>(gradients[i]);
        if (of.size() != 3) throw py::value_error("gradients: expected tuples of 3");
        if (!of[0].is_none()) {
            const Tensor dweight = read_tensor_of(cuda_floats, of[0], "dweight");
            check_same_dtype(dweight, "dweight", reading.x, "x");
            check_shape(dweight, "dweight",
                        {layer.outputs, layer.kernel > 1 ? 1 : layer.inputs, layer.kernel, layer.kernel});
            check_contiguous(dweight, "dweight");
            layer.dweight = dweight.data;
            reading.call.writes(dweight, "dweight");
        }
        layer.dgamma = const_cast<float*>(vector_of(reading.call, of[1], "dgamma", layer.outputs, true));
        layer.dbeta = const_cast<float*>(vector_of(reading.call, of[2], "dbeta", layer.outputs, true));
    }
}

void place_output(ChoiceBlockReading& reading, py::handle object) {
    cuda::ChoiceBlock& block = reading.block;
    const Tensor y =
        read_map(object, "y", reading.x, {block.batch, block.out_channels, block.out_height, block.out_width}, true);
    block.y = y.data;
    reading.call.writes(y, "y");
}

void place_gradients_of_maps(ChoiceBlockReading& reading, py::handle dy_object, py::handle dx_object) {
    cuda::ChoiceBlock& block = reading.block;
    const Tensor dy = read_map(dy_object, "dy", reading.x,
                               {block.batch, block.out_channels, block.out_height, block.out_width}, false);
    block.dy = dy.data;
    block.dy_pixel = nhwc_strides(dy, "dy").w;
    reading.call.reads(dy, "dy");
    if (dx_object.is_none()) return;
    const Tensor dx =
        read_map(dx_object, "dx", reading.x, {block.batch, block.channels, block.height, block.width}, true);
    block.dx = dx.data;
    reading.call.writes(dx, "dx");
}

void place_memory(ChoiceBlockReading& reading, const ChoiceBlockMemory& memory, bool backward) {
    cuda::ChoiceBlock& block = reading.block;
    const Tensor kept = read_memory(memory.kept, "kept", cuda_floats, reading.kept);
    check_same_dtype(kept, "kept", reading.x, "x");
    block.kept = kept.data;
    backward ? reading.call.reads(kept, "kept") : reading.call.writes(kept, "kept");
    if (!memory.statistics.is_none()) {
        const Tensor statistics = read_memory(memory.statistics, "statistics", {Dtype::float32}, reading.statistics);
        block.statistics = statistics.as<float>();
        backward ? reading.call.reads(statistics, "statistics") : reading.call.writes(statistics, "statistics");
    } else {
        if (block.training) throw py::value_error("statistics: expected a tensor in training");
        for (int i = 0; i < block.branch.main + block.branch.proj; ++i)
            if (!block.branch.layer[i].running_mean)
                throw py::value_error("statistics: expected a tensor, or running statistics of all layers");
    }
    const size_t bytes = backward ? cuda::choice_block_backward_workspace(block, element_of(reading.x))
                                  : cuda::choice_block_forward_workspace(block);
    const Tensor workspace = read_memory(memory.workspace, "workspace", {Dtype::uint8}, static_cast<int64_t>(bytes));
    const Tensor counters = read_memory(memory.counters, "counters", {Dtype::int32}, cuda::choice_block_counters);
    block.workspace = workspace.data;
    block.counters = counters.as<uint32_t>();
    reading.call.writes(workspace, "workspace").writes(counters, "counters");
}

}  // namespace spos
