#include "cuda/errors.h"

#include "cuda_emulation/device.h"

namespace spos::cuda {

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace spos::cuda
