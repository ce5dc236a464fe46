// Scratch memory for one kernel call, allocated here so that no kernel can run out of memory half way.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace spos {

class Workspace {
  public:
    explicit Workspace(size_t bytes) : memory_(bytes ? ::operator new(bytes, alignment) : nullptr) {}
    void* get() const { return memory_.get(); }

  private:
    static constexpr std::align_val_t alignment{64};
    struct Release {
        void operator()(void* memory) const { ::operator delete(memory, alignment); }
    };
    std::unique_ptr<void, Release> memory_;
};

}  // namespace spos
