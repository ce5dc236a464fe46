// The functions that headers and host programs call. Those for kernels note where they were called from, and are never
// inlined: a kernel's code is instrumented, this is not.
#include "cuda_emulation/runtime.h"

namespace cuda_emulation {
namespace {

#define RETURN_ADDRESS reinterpret_cast<uintptr_t>(__builtin_return_address(0))

uint3 triple(dim3 extents) { return {extents.x, extents.y, extents.z}; }

template <typename T>
T changed(Atomic kind, T old, T value, T expected) {
    using Signed = std::make_signed_t<T>;
    const auto less = [](T a, T b) { return static_cast<Signed>(a) < static_cast<Signed>(b); };
    switch (kind) {
        case Atomic::add:
            return old + value;
        case Atomic::exchange:
            return value;
        case Atomic::compare_exchange:
            return old == expected ? value : old;
        case Atomic::minimum:
            return less(value, old) ? value : old;
        case Atomic::maximum:
            return less(old, value) ? value : old;
        case Atomic::unsigned_minimum:
            return value < old ? value : old;
        case Atomic::unsigned_maximum:
            return value > old ? value : old;
        case Atomic::bit_and:
            return old & value;
        case Atomic::bit_or:
            return old | value;
        case Atomic::bit_xor:
            return old ^ value;
        case Atomic::add_float:
            return bits_of(float_of(static_cast<uint32_t>(old)) + float_of(static_cast<uint32_t>(value)));
    }
    return old;
}

template <typename T>
T atomic(Atomic kind, void* address, T value, T expected, uintptr_t pc) {
    Emulator& self = *running;
    const uintptr_t where = reinterpret_cast<uintptr_t>(address);
    if (self.kernel.checked) {
        self.access(where, sizeof(T), Access::atomic, true, pc);
        if (!self.shared.contains(where)) self.order_through(where);
    } else if (self.options.count) {
        self.counting.add(Instruction::atomic);
    }
    T old;
    std::memcpy(&old, address, sizeof old);
    const T result = changed(kind, old, value, expected);
    std::memcpy(address, &result, sizeof result);
    return old;
}

}  // namespace

uint3 thread_index() { return running->thread_index(running->current->number); }
uint3 block_index() { return running->block_index(running->block_number); }
uint3 block_extents() { return triple(running->block); }
uint3 grid_extents() { return triple(running->grid); }

void* shared_array(const void* site, size_t bytes, size_t alignment) {
    void* const array = running->shared.array(site, bytes, alignment);
    if (array) return array;
    running->report(Kind::invalid_launch, *running->current, {RETURN_ADDRESS},
                    "more than 48 KB in arrays, or 227 KB of shared memory in all");
    running->abandon();
}
void* dynamic_shared() { return running->shared.base(); }

int block_barrier(Barrier kind, int predicate, int line) {
    return running->block_barrier(kind, predicate, {RETURN_ADDRESS, line});
}
void warp_barrier(uint32_t mask, int line) {
    running->collective(Operation::synchronise, 0, mask, {RETURN_ADDRESS, line}, nullptr, 0);
}
uint64_t shuffle(Shuffle kind, uint32_t mask, uint64_t value, int operand, int width, int line) {
    const uint32_t in[] = {static_cast<uint32_t>(value), static_cast<uint32_t>(value >> 32),
                           static_cast<uint32_t>(operand), static_cast<uint32_t>(width)};
    const Arrival& arrival =
        running->collective(Operation::shuffle, static_cast<int>(kind), mask, {RETURN_ADDRESS, line}, in, 4);
    return static_cast<uint64_t>(arrival.out[1]) << 32 | arrival.out[0];
}
uint32_t vote(Vote kind, uint32_t mask, bool predicate, int line) {
    const uint32_t in[] = {predicate ? 1u : 0u};
    return running->collective(Operation::vote, static_cast<int>(kind), mask, {RETURN_ADDRESS, line}, in, 1).out[0];
}
uint32_t reduce(Reduction kind, uint32_t mask, uint32_t value, int line) {
    return running->collective(Operation::reduce, static_cast<int>(kind), mask, {RETURN_ADDRESS, line}, &value, 1)
        .out[0];
}
uint32_t match(Match kind, uint32_t mask, uint64_t value, int line) {
    const uint32_t in[] = {static_cast<uint32_t>(value), static_cast<uint32_t>(value >> 32)};
    return running->collective(Operation::match, static_cast<int>(kind), mask, {RETURN_ADDRESS, line}, in, 2).out[0];
}
Words4 ldmatrix(int count, bool transposed, const void* row, int line) {
    const uint64_t address = reinterpret_cast<uintptr_t>(row);
    const uint32_t in[] = {static_cast<uint32_t>(address), static_cast<uint32_t>(address >> 32)};
    const Arrival& arrival =
        running->collective(Operation::ldmatrix, transposed ? -count : count, ~0u, {RETURN_ADDRESS, line}, in, 2);
    return {{arrival.out[0], arrival.out[1], arrival.out[2], arrival.out[3]}};
}
Words4 mma(Product kind, Words4 a, Words2 b, Words4 c, int line) {
    uint32_t in[10];
    std::memcpy(in, a.word, sizeof a.word);
    std::memcpy(in + 4, b.word, sizeof b.word);
    std::memcpy(in + 6, c.word, sizeof c.word);
    const Arrival& arrival =
        running->collective(Operation::mma, static_cast<int>(kind), ~0u, {RETURN_ADDRESS, line}, in, 10);
    return {{arrival.out[0], arrival.out[1], arrival.out[2], arrival.out[3]}};
}

uint32_t atomic32(Atomic kind, void* address, uint32_t value, uint32_t expected) {
    return atomic(kind, address, value, expected, RETURN_ADDRESS);
}
uint64_t atomic64(Atomic kind, void* address, uint64_t value, uint64_t expected) {
    return atomic(kind, address, value, expected, RETURN_ADDRESS);
}
void fence() { running->current->fenced = true; }
void count_dp4a() {
    if (running->options.count) running->counting.add(Instruction::dp4a);
}

void cp_async(void* shared, const void* global, int bytes, int source_bytes) {
    running->start_copy(static_cast<char*>(shared), static_cast<const char*>(global), bytes, source_bytes,
                        RETURN_ADDRESS);
}
void cp_async_commit() { ++running->current->groups; }
void cp_async_wait(int groups) {
    const uint64_t committed = running->current->groups, kept = static_cast<uint64_t>(groups);
    running->deliver_copies(committed > kept ? committed - kept : 0);
}

void configure(const Options& options) { emulator().options = options; }
std::vector<Report> take_reports() { return emulator().reporter.take(); }
Counters take_counters() { return emulator().counting.take(); }
std::vector<Launch> take_launches() {
    std::vector<Launch> launches;
    for (const CountedLaunch& each : emulator().launched)
        launches.push_back(
            {emulator().reporter.name_of(each.kernel), each.grid, each.block, each.shared_bytes, each.counters});
    emulator().launched.clear();
    emulator().counting.forget_sectors();
    return launches;
}

GlobalMemory::GlobalMemory(const void* data, size_t bytes, const char* name, Use use) : data_(data) {
    emulator().registry.add(reinterpret_cast<uintptr_t>(data), bytes, name, use == Use::read_only);
}
GlobalMemory::~GlobalMemory() { emulator().registry.remove(reinterpret_cast<uintptr_t>(data_)); }

}  // namespace cuda_emulation
