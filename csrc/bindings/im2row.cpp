// im2row: tensors in, checked views out to the kernel.
#include "cpu/im2row.h"

#include <algorithm>

#include "bindings/bindings.h"
#include "bindings/tensor.h"

namespace spos {

namespace {

void run_im2row(py::handle x_object, py::handle y_object, int64_t kernel, int64_t stride, int64_t padding,
                int64_t threads) {
    const Tensor x = read_tensor(x_object, "x"), y = read_tensor(y_object, "y");
    const NhwcStrides strides = nhwc_strides(x, "x"), y_strides = nhwc_strides(y, "y");
    if (kernel < 1 || kernel > 64 || stride < 1 || stride > 64 || padding < 0 || padding >= kernel)
        throw py::value_error("kernel, stride, padding: expected 1 to 64, 1 to 64, 0 to kernel - 1");
    const auto output = [&](int64_t size) { return (size + 2 * padding - kernel) / stride + 1; };
    if (std::min(x.shape[2], x.shape[3]) + 2 * padding < kernel)
        throw py::value_error("x: expected a map that the kernel fits in once padded");
    const int64_t channels = kernel * kernel * x.shape[1];
    check_shape(y, "y", {x.shape[0], channels, output(x.shape[2]), output(x.shape[3])});
    check_same_dtype(y, "y", x, "x");
    if (y_strides.w != channels || y_strides.h != y.shape[3] * channels || y_strides.n != y.shape[2] * y_strides.h)
        throw py::value_error("y: expected a dense channels_last tensor");
    const int team = static_cast<int>(std::clamp<int64_t>(threads, 1, 1024));
    const auto call = [&](auto element) {
        using T = decltype(element);
        const Im2Row<T> work{x.as<T>(),
                             x.shape[0],
                             x.shape[1],
                             x.shape[2],
                             x.shape[3],
                             y.shape[2],
                             y.shape[3],
                             strides.n,
                             strides.h,
                             strides.w,
                             static_cast<int>(kernel),
                             static_cast<int>(stride),
                             static_cast<int>(padding),
                             y.as<T>()};
        py::gil_scoped_release release;
        im2row(work, team);
    };
    if (x.dtype == Dtype::float32)
        call(float{});
    else
        call(double{});
}

}  // namespace

void bind_im2row(py::module_& module) {
    module.def("im2row", &run_im2row, py::arg("x"), py::arg("y"), py::arg("kernel"), py::arg("stride"),
               py::arg("padding"), py::arg("threads"));
}

}  // namespace spos
