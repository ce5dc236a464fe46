// Scratch memory for one kernel call, allocated here so that no kernel can run out of memory half way.
//
// A thread keeps the largest piece that it has used, up to a limit: the system would otherwise take the pages back
// after every call and hand them out again zeroed, fault by fault, which can cost as much as the kernel does.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <utility>

namespace spos {

class Workspace {
  public:
    explicit Workspace(size_t bytes) : piece_(std::exchange(kept(), Piece{})) {
        if (piece_.bytes >= bytes) return;
        piece_.memory.reset();  // before the next is asked for
        piece_ = {Memory(bytes ? ::operator new(bytes, alignment) : nullptr), bytes};
    }
    ~Workspace() {
        if (piece_.bytes <= most_kept) kept() = std::move(piece_);
    }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;

    void* get() const { return piece_.memory.get(); }

  private:
    static constexpr std::align_val_t alignment{64};
    static constexpr size_t most_kept = 256 << 20;
    struct Release {
        void operator()(void* memory) const { ::operator delete(memory, alignment); }
    };
    using Memory = std::unique_ptr<void, Release>;
    struct Piece {
        Memory memory;
        size_t bytes = 0;
    };
    static Piece& kept() {
        thread_local Piece piece;
        return piece;
    }

    Piece piece_;
};

}  // namespace spos
