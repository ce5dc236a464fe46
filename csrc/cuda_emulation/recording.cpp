#include "cuda_emulation/recording.h"

#include <cstring>

namespace cuda_emulation {

namespace {
thread_local Recording* active = nullptr;
}

void start_recording(Recording& recording) { active = &recording; }
void stop_recording() { active = nullptr; }

void record(const Kernel& kernel, dim3 grid, dim3 block, size_t shared_bytes) {
    if (active == nullptr) return;
    // Arguments are trivially copyable, as CUDA demands of them.
    auto arguments = std::make_unique<char[]>(kernel.argument_bytes);
    std::memcpy(arguments.get(), kernel.arguments, kernel.argument_bytes);
    Kernel copy = kernel;
    copy.arguments = arguments.get();
    active->launches_.push_back({copy, std::move(arguments), grid, block, shared_bytes});
}

cudaError_t Recording::replay() const {
    for (const Launch& each : launches_)
        if (const cudaError_t error = launch(each.kernel, each.grid, each.block, each.shared_bytes)) return error;
    return cudaSuccess;
}

}  // namespace cuda_emulation
