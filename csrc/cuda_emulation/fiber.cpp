#include "cuda_emulation/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

namespace cuda_emulation {

#if defined(__x86_64__)

// Callee-saved registers go onto the stack that is left; the return address is already there.
extern "C" void cuda_emulation_switch(void** from, void* to);
asm(R"(
.text
.globl cuda_emulation_switch
.hidden cuda_emulation_switch
.type cuda_emulation_switch, @function
cuda_emulation_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size cuda_emulation_switch, .-cuda_emulation_switch
)");

void Fiber::prepare(void* stack, size_t bytes, void (*entry)()) {
    uintptr_t* top = reinterpret_cast<uintptr_t*>(static_cast<char*>(stack) + bytes);
    *--top = 0;  // entry() finds the stack as after a call: 8 bytes off a multiple of 16
    *--top = reinterpret_cast<uintptr_t>(entry);
    for (int saved = 0; saved < 6; ++saved) *--top = 0;
    stack_pointer = top;
}

void switch_fiber(Fiber& from, Fiber& to) { cuda_emulation_switch(&from.stack_pointer, to.stack_pointer); }

#else

void Fiber::prepare(void* stack, size_t bytes, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}

void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }

#endif

void Stacks::reserve(size_t count) {
    if (count <= count_) return;
    release();
    const size_t size = count * (bytes + guard);
    void* const mapped =
        mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<char*>(mapped);
    count_ = count;
    for (size_t i = 0; i < count; ++i) mprotect(base_ + i * (bytes + guard), guard, PROT_NONE);
}

void Stacks::release() {
    if (base_) munmap(base_, count_ * (bytes + guard));
    base_ = nullptr;
    count_ = 0;
}

Stacks::~Stacks() { release(); }

}  // namespace cuda_emulation
