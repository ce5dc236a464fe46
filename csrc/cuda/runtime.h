// What callers that include no header of the CUDA runtime need of it.
#pragma once

namespace spos::cuda {

// What a cudaError_t says.
const char* error_text(int error);

// Makes a device the current one, until the end of the scope.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device);
    ~DeviceGuard();
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int before_ = -1;  // none, where it was the current one already
};

}  // namespace spos::cuda
