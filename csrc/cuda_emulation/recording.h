// Launches to be run again, as a captured graph is: with copies of their arguments, on whatever the memory that these
// point to holds by then.
#pragma once

#include <memory>
#include <vector>

#include "cuda_emulation/emulated.h"

namespace cuda_emulation {

class Recording {
  public:
    // Runs all of them in their order; the error of the first that fails.
    cudaError_t replay() const;
    size_t size() const { return launches_.size(); }

  private:
    friend void record(const Kernel& kernel, dim3 grid, dim3 block, size_t shared_bytes);
    struct Launch {
        Kernel kernel;
        std::unique_ptr<char[]> arguments;
        dim3 grid, block;
        size_t shared_bytes;
    };
    std::vector<Launch> launches_;
};

// From start to stop, launches of this thread are run and recorded.
void start_recording(Recording& recording);
void stop_recording();

// What launch() tells of each launch that succeeds.
void record(const Kernel& kernel, dim3 grid, dim3 block, size_t shared_bytes);

}  // namespace cuda_emulation
