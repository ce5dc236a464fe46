// The calls that -fsanitize=thread puts in front of loads and stores, answered here instead of by libtsan, which must
// not be linked. Only code compiled with that flag makes them; outside of a launch they do nothing.
#include <atomic>

#include "cuda_emulation/runtime.h"

using cuda_emulation::Access;
using cuda_emulation::running;

namespace {

inline void check(void* address, size_t size, Access access, bool aligned, void* return_address) {
    if (running && running->current)
        running->access(reinterpret_cast<uintptr_t>(address), size, access, aligned,
                        reinterpret_cast<uintptr_t>(return_address));
}

}  // namespace

extern "C" {

#define HOOK(name, size, access, aligned) \
    void __tsan_##name(void* address);    \
    void __tsan_##name(void* address) { check(address, size, access, aligned, __builtin_return_address(0)); }
#define HOOKS(size)                                                \
    HOOK(read##size, size, Access::read, true)                     \
    HOOK(write##size, size, Access::write, true)                   \
    HOOK(volatile_read##size, size, Access::read, true)            \
    HOOK(volatile_write##size, size, Access::write, true)          \
    HOOK(unaligned_read##size, size, Access::read, false)          \
    HOOK(unaligned_write##size, size, Access::write, false)        \
    HOOK(unaligned_volatile_read##size, size, Access::read, false) \
    HOOK(unaligned_volatile_write##size, size, Access::write, false)
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)

void __tsan_read_range(void* address, size_t size);
void __tsan_read_range(void* address, size_t size) {
    check(address, size, Access::read, false, __builtin_return_address(0));
}
void __tsan_write_range(void* address, size_t size);
void __tsan_write_range(void* address, size_t size) {
    check(address, size, Access::write, false, __builtin_return_address(0));
}
void __tsan_init();
void __tsan_init() {}
void __tsan_func_entry(void*);
void __tsan_func_entry(void*) {}
void __tsan_func_exit();
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*);
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**);
void __tsan_vptr_read(void**) {}

// Host code beside the kernels may use std::atomic, and function-local statics do: these are the operations themselves,
// in sequentially consistent order, whatever order was asked for.
#define ATOMICS(bits, Type)                                                                                         \
    Type __tsan_atomic##bits##_load(const volatile Type* at, int);                                                  \
    Type __tsan_atomic##bits##_load(const volatile Type* at, int) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); } \
    void __tsan_atomic##bits##_store(volatile Type* at, Type value, int);                                           \
    void __tsan_atomic##bits##_store(volatile Type* at, Type value, int) {                                          \
        __atomic_store_n(at, value, __ATOMIC_SEQ_CST);                                                              \
    }                                                                                                               \
    ATOMIC_UPDATE(bits, Type, exchange, __atomic_exchange_n)                                                        \
    ATOMIC_UPDATE(bits, Type, fetch_add, __atomic_fetch_add)                                                        \
    ATOMIC_UPDATE(bits, Type, fetch_sub, __atomic_fetch_sub)                                                        \
    ATOMIC_UPDATE(bits, Type, fetch_and, __atomic_fetch_and)                                                        \
    ATOMIC_UPDATE(bits, Type, fetch_or, __atomic_fetch_or)                                                          \
    ATOMIC_UPDATE(bits, Type, fetch_xor, __atomic_fetch_xor)                                                        \
    ATOMIC_COMPARE(bits, Type, strong)                                                                              \
    ATOMIC_COMPARE(bits, Type, weak)
#define ATOMIC_UPDATE(bits, Type, name, builtin)                            \
    Type __tsan_atomic##bits##_##name(volatile Type* at, Type value, int);  \
    Type __tsan_atomic##bits##_##name(volatile Type* at, Type value, int) { \
        return builtin(at, value, __ATOMIC_SEQ_CST);                        \
    }
#define ATOMIC_COMPARE(bits, Type, name)                                                                         \
    int __tsan_atomic##bits##_compare_exchange_##name(volatile Type* at, Type* expected, Type value, int, int);  \
    int __tsan_atomic##bits##_compare_exchange_##name(volatile Type* at, Type* expected, Type value, int, int) { \
        return __atomic_compare_exchange_n(at, expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);      \
    }
ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)

void __tsan_atomic_thread_fence(int);
void __tsan_atomic_thread_fence(int) { std::atomic_thread_fence(std::memory_order_seq_cst); }
void __tsan_atomic_signal_fence(int);
void __tsan_atomic_signal_fence(int) {}

}  // extern "C"
