#include "cuda/runtime.h"

#include "cuda_emulation/device.h"

namespace spos::cuda {

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

// The emulator has one device. An error shows at the launch that follows.
DeviceGuard::DeviceGuard([[maybe_unused]] int device) {
#if defined(__CUDACC__)
    int current = -1;
    if (cudaGetDevice(&current) == cudaSuccess && current != device && cudaSetDevice(device) == cudaSuccess)
        before_ = current;
#endif
}

DeviceGuard::~DeviceGuard() {
#if defined(__CUDACC__)
    if (before_ >= 0) cudaSetDevice(before_);
#endif
}

}  // namespace spos::cuda
