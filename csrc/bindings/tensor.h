// How a torch tensor becomes a pointer with sizes and strides, without a torch header, and the checks that every
// operation needs before it hands such a pointer to a kernel. Errors name the argument, its value, what is accepted.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

namespace spos {

namespace py = pybind11;

enum class Dtype { float32, float64, float16, bfloat16, int8, uint8, int32, int64 };
int64_t size_of(Dtype dtype);  // bytes

// A view of a tensor on this module's device: alive as long as the Python object it was read from.
struct Tensor {
    static constexpr int max_ndim = 4;
    void* data;
    Dtype dtype;
    int ndim;
    std::array<int64_t, max_ndim> shape;
    std::array<int64_t, max_ndim> strides;  // in elements; those of dimensions of size 1 mean nothing
    int device = 0;                         // its number among those of its kind

    template <typename T>
    T* as() const {
        return static_cast<T*>(data);
    }
};

// Tell the reader what a plain tensor is. Called once, at import: the types torch.Tensor and torch.nn.Parameter, and
// torch.Tensor's exchange capsule, or None where torch has none (then every tensor is read through its attributes).
void set_tensor_types(py::type tensor, py::type parameter, py::object exchange_capsule);

// A tensor of floats.
Tensor read_tensor(py::handle object, const char* name);

// A tensor of one of these dtypes.
Tensor read_tensor_of(std::initializer_list<Dtype> dtypes, py::handle object, const char* name);

// The same without a word: false for whatever read_tensor refuses or reads the slower way.
bool try_read_tensor(py::handle object, Tensor& result);

// The value of an int64 scalar on the CPU, or null if the object is something else.
int64_t* try_read_count(py::handle object);

// The strides of a tensor that is channels_last in memory ([N, H, W, C], channels adjacent), possibly a channel slice
// of a wider one. Those of dimensions of size 1 are computed, for torch may hold anything there.
struct NhwcStrides {
    int64_t n, h, w;
};
NhwcStrides nhwc_strides(const Tensor& tensor, const char* name);

// Elements from a tensor's first to behind its last. The strides of real tensors are not negative.
int64_t reach(const Tensor& tensor);

void check_shape(const Tensor& tensor, const char* name, std::initializer_list<int64_t> expected);
void check_contiguous(const Tensor& tensor, const char* name);
void check_same_dtype(const Tensor& tensor, const char* name, const Tensor& other, const char* other_name);
void check_range(const char* name, int64_t value, int64_t low, int64_t high);

std::string to_string(const int64_t* values, int count);

}  // namespace spos
