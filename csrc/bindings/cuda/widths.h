// Widths that kernels read from device memory: an int32 tensor of one element, or None for the tensors' own.
#pragma once

#include "bindings/tensor.h"

namespace spos {

inline Tensor read_width(py::object object, const char* name) {
    if (object.is_none()) return Tensor{};
    const Tensor tensor = read_tensor_of({Dtype::int32}, object, name);
    for (int d = 0; d < tensor.ndim; ++d)
        if (tensor.shape[d] != 1)
            throw py::value_error(std::string(name) + " has shape " + to_string(tensor.shape.data(), tensor.ndim) +
                                  ", expected one element");
    return tensor;
}

}  // namespace spos
