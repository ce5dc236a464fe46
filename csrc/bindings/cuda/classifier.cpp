// im2row, pool and cross entropy on a GPU: tensors in, checked sizes and pointers out to the kernels.
#include "cuda/classifier.h"

#include "bindings/cuda/bindings.h"
#include "bindings/cuda/call.h"
#include "cuda/im2row.h"

namespace spos {
namespace {

// x [N, C, H, W] channels_last; y [N, k * k * C, H', W'] dense channels_last.
void windows(py::handle x_object, py::handle y_object, int kernel, int stride, int padding, uintptr_t stream) {
    const Tensor x = read_tensor_of(cuda_floats, x_object, "x"), y = read_tensor_of(cuda_floats, y_object, "y");
    const NhwcStrides strides = nhwc_strides(x, "x"), y_strides = nhwc_strides(y, "y");
    for (const int64_t size : x.shape) check_range("x's sizes", size, 1, 1 << 24);
    check_range("kernel", kernel, 1, 64);
    check_range("stride", stride, 1, 64);
    check_range("padding", padding, 0, kernel - 1);
    const auto out = [&](int64_t size) { return (size + 2 * padding - kernel) / stride + 1; };
    if (std::min(x.shape[2], x.shape[3]) + 2 * padding < kernel)
        throw py::value_error("x: expected maps that a kernel of " + std::to_string(kernel) + " fits in once padded");
    check_shape(y, "y", {x.shape[0], kernel * kernel * x.shape[1], out(x.shape[2]), out(x.shape[3])});
    check_same_dtype(y, "y", x, "x");
    if (y_strides.w != y.shape[1] || y_strides.h != y.shape[3] * y_strides.w || y_strides.n != y.shape[2] * y_strides.h)
        throw py::value_error("y: expected a dense channels_last tensor");
    const auto size = [](int64_t value) { return static_cast<int>(value); };
    const cuda::Im2Row shape{x.shape[0],       size(x.shape[1]), size(x.shape[2]), size(x.shape[3]),
                             size(y.shape[2]), size(y.shape[3]), strides.n,        strides.h,
                             strides.w,        kernel,           stride,           padding};
    CudaCall().reads(x, "x").writes(y, "y").run(
        stream, [&](void* stream) { return cuda::im2row(shape, element_of(x), x.data, y.data, stream); });
}

// map [N, C, H, W] dense channels_last and features [N, C] contiguous: the one is read, the other written.
void pool(py::handle map_object, py::handle features_object, double rate, uint64_t seed, py::handle step_object,
          bool backward, uintptr_t stream) {
    const Tensor map = read_tensor_of(cuda_floats, map_object, "map");
    const Tensor features = read_tensor_of(cuda_floats, features_object, "features");
    const NhwcStrides strides = nhwc_strides(map, "map");
    for (const int64_t size : map.shape) check_range("map's sizes", size, 1, INT32_MAX);
    check_range("map's pixels", map.shape[2] * map.shape[3], 1, INT32_MAX);
    if (strides.w != map.shape[1] || strides.h != map.shape[3] * strides.w || strides.n != map.shape[2] * strides.h)
        throw py::value_error("map: expected a dense channels_last tensor");
    check_shape(features, "features", {map.shape[0], map.shape[1]});
    check_contiguous(features, "features");
    check_same_dtype(features, "features", map, "map");
    if (!(rate >= 0 && rate < 1)) throw py::value_error("rate: expected a number from 0, below 1");
    CudaCall call;
    cuda::Pool shape{map.shape[0],
                     static_cast<int>(map.shape[2] * map.shape[3]),
                     static_cast<int>(map.shape[1]),
                     static_cast<float>(rate),
                     seed,
                     nullptr};
    if (!step_object.is_none()) {
        const Tensor step = read_tensor_of({Dtype::int64}, step_object, "step");
        check_shape(step, "step", {1});
        call.reads(step, "step");
        shape.step = step.as<int64_t>();
    } else if (rate > 0) {
        throw py::value_error("step: expected a tensor with dropout");
    }
    backward ? call.reads(features, "features").writes(map, "map")
             : call.reads(map, "map").writes(features, "features");
    call.run(stream, [&](void* stream) {
        return backward ? cuda::pool_backward(shape, element_of(map), features.data, map.data, stream)
                        : cuda::pool_forward(shape, element_of(map), map.data, features.data, stream);
    });
}

void cross_entropy(py::handle logits_object, py::handle labels_object, py::handle losses_object, py::handle loss_object,
                   py::handle dlogits_object, double smoothing, uintptr_t stream) {
    const Tensor logits = read_tensor_of(cuda_floats, logits_object, "logits");
    const Tensor labels = read_tensor_of({Dtype::int64}, labels_object, "labels");
    const Tensor losses = read_tensor_of({Dtype::float32}, losses_object, "losses");
    const Tensor loss = read_tensor_of({Dtype::float32}, loss_object, "loss");
    const Tensor dlogits = read_tensor_of(cuda_floats, dlogits_object, "dlogits");
    if (logits.ndim != 2) throw py::value_error("logits: expected [N, classes]");
    check_range("logits' rows", logits.shape[0], 1, INT32_MAX);
    check_range("logits' columns", logits.shape[1], 1, INT32_MAX);
    check_contiguous(logits, "logits");
    check_shape(labels, "labels", {logits.shape[0]});
    check_contiguous(labels, "labels");
    check_shape(losses, "losses", {logits.shape[0]});
    check_contiguous(losses, "losses");
    check_shape(loss, "loss", {1});
    check_shape(dlogits, "dlogits", {logits.shape[0], logits.shape[1]});
    check_contiguous(dlogits, "dlogits");
    check_same_dtype(dlogits, "dlogits", logits, "logits");
    if (!(smoothing >= 0 && smoothing < 1)) throw py::value_error("smoothing: expected a number from 0, below 1");
    const cuda::CrossEntropy shape{static_cast<int>(logits.shape[0]), static_cast<int>(logits.shape[1]),
                                   static_cast<float>(smoothing)};
    CudaCall()
        .reads(logits, "logits")
        .reads(labels, "labels")
        .writes(losses, "losses")
        .writes(loss, "loss")
        .writes(dlogits, "dlogits")
        .run(stream, [&](void* stream) {
            return cuda::cross_entropy(shape, element_of(logits), logits.data, labels.as<int64_t>(), losses.as<float>(),
                                       loss.as<float>(), dlogits.data, stream);
        });
}

}  // namespace

void bind_cuda_classifier(py::module_& module) {
    module.def("im2row", &windows);
    module.def("pool", &pool);
    module.def("cross_entropy", &cross_entropy);
}

}  // namespace spos
