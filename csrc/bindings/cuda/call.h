// One call of a CUDA operation: which tensors it may touch, and what went wrong, as a Python exception.
//
// On a device only the start of a kernel can fail here. Emulated, each tensor is registered for the time of the call,
// so that an access of anything else is found, and whatever the emulator reports is raised.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "bindings/tensor.h"
#include "cuda/element.h"

namespace spos {

// What the kernels compute with.
constexpr std::initializer_list<Dtype> cuda_floats = {Dtype::float32, Dtype::float16, Dtype::bfloat16};
cuda::Element element_of(const Tensor& tensor);

class CudaCall {
  public:
    // Tensors without data (not given) are left out. ValueError for one on another GPU than those before.
    CudaCall& reads(const Tensor& tensor, const char* name) { return add(tensor, name, false); }
    CudaCall& writes(const Tensor& tensor, const char* name) { return add(tensor, name, true); }

#if defined(SPOS_CUDA_EMULATED)
    // While there is a record, the memory of every call is added to it too.
    static void record_in(CudaCall* record);
#endif
    CudaCall& append(const CudaCall& other) {
        ranges_.insert(ranges_.end(), other.ranges_.begin(), other.ranges_.end());
        return *this;
    }

    int device() const { return device_; }

    // start(stream) starts kernels on the tensors' device and returns a cudaError_t. RuntimeError where that is not
    // cudaSuccess.
    void run(uintptr_t stream, const std::function<int(void* stream)>& start) const;

  private:
    struct Range {
        uintptr_t begin, end;
        std::string name;
        bool written;
    };
    CudaCall& add(const Tensor& tensor, const char* name, bool written);
    std::vector<Range> merged() const;

    std::vector<Range> ranges_;
    int device_ = 0;
};

}  // namespace spos
