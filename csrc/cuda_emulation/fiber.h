// Stacks and the switch between them.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_emulation {

// A suspended computation. On x86-64 its registers are on its stack; ucontext, for other processors, is four times
// slower because it also saves the signal mask.
struct Fiber {
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
    // Makes this fiber start with entry(), which must never return, at the next switch to it.
    void prepare(void* stack, size_t bytes, void (*entry)());
};

// Suspends the running computation in `from` and continues `to`.
void switch_fiber(Fiber& from, Fiber& to);

// Equal stacks, each with an inaccessible page below it.
class Stacks {
  public:
    static constexpr size_t bytes = 128 * 1024;
    Stacks() = default;
    ~Stacks();
    Stacks(const Stacks&) = delete;
    Stacks& operator=(const Stacks&) = delete;
    void reserve(size_t count);
    char* stack(size_t index) const { return base_ + index * (bytes + guard) + guard; }

  private:
    static constexpr size_t guard = 4096;
    void release();
    char* base_ = nullptr;
    size_t count_ = 0;
};

}  // namespace cuda_emulation
