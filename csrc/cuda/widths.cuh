// Widths that a kernel reads when it runs: of buffers sized for the largest choice, what the current one uses.
#pragma once

#include "cuda_emulation/device.h"

namespace spos::cuda {

// `width`, or less where device memory says so. limit: may be null.
__device__ __forceinline__ int active_width(int width, const int32_t* limit) {
    return limit ? max(0, min(width, *limit)) : width;
}

}  // namespace spos::cuda
