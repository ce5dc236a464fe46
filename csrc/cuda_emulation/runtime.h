// The emulator's inside: the running launch, its threads and warps, and the parts that check and count.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cuda_emulation/between_blocks.h"
#include "cuda_emulation/counting.h"
#include "cuda_emulation/emulated.h"
#include "cuda_emulation/emulator.h"
#include "cuda_emulation/fiber.h"
#include "cuda_emulation/reporting.h"
#include "cuda_emulation/shadow.h"

namespace cuda_emulation {

constexpr uint32_t warp_lanes = 32, most_threads = 1024;

enum class Operation { synchronise, shuffle, vote, reduce, match, ldmatrix, mma };
const char* name_of(Operation operation);

// What a thread brings to a collective of its warp, and takes away.
struct Arrival {
    Operation operation;
    int kind;  // a Shuffle, Vote, Reduction, Match or Product; for ldmatrix the count, negative if transposed
    uint32_t mask;
    Site site;
    uint32_t in[10];
    uint32_t out[4];
};

struct AsyncCopy {
    char* to;
    const char* from;
    int bytes, source_bytes;
    uint64_t group;
    uintptr_t pc;
};

enum class State : uint8_t { ready, in_warp_collective, at_block_barrier, done };

struct Thread {
    Fiber fiber;
    State state;
    uint32_t number, lane;
    struct Warp* warp;
    Arrival arrival;
    Site barrier;
    int barrier_predicate;
    std::vector<AsyncCopy> copies;  // not yet delivered
    uint64_t groups;                // committed so far
    bool fenced;                    // has executed __threadfence
};

struct Warp {
    uint32_t number, lanes;                  // `lanes`: those that exist
    uint32_t ready, done;                    // masks
    uint32_t first_lane;                     // to run, if ready
    uint32_t clock[warp_lanes][warp_lanes];  // how far lane i knows of lane j by warp barriers; [i][i] is its own
};

enum class Access { read, write, atomic };

struct CountedLaunch {
    const void* kernel;
    uint3 grid, block;
    uint64_t shared_bytes;
    Counters counters;
};

class Emulator {
  public:
    cudaError_t launch(const Kernel& kernel, dim3 grid, dim3 block, size_t shared_bytes);

    // Called from the running thread. Those that wait return when the others have come.
    int block_barrier(Barrier kind, int predicate, Site site);
    Arrival& collective(Operation operation, int kind, uint32_t mask, Site site, const uint32_t* in, int words);
    void access(uintptr_t address, size_t size, Access access, bool aligned, uintptr_t pc);
    void start_copy(char* to, const char* from, int bytes, int source_bytes, uintptr_t pc);
    void deliver_copies(uint64_t up_to_group);
    void order_through(uintptr_t address);
    [[noreturn]] void abandon();
    void report(Kind kind, const Thread& thread, Site site, const std::string& text, Site other = {});

    uint3 thread_index(uint32_t number) const;
    uint3 block_index(uint32_t number) const;

    Options options;
    Registry registry;
    Reporter reporter;
    Counting counting;
    std::vector<CountedLaunch> launched;  // since they were asked for
    SharedMemory shared;

    Kernel kernel;
    dim3 grid, block;
    Thread* current = nullptr;
    uint32_t block_number = 0;

  private:
    friend struct Completion;
    void run_block();
    void start_block(uint32_t number);
    Thread* next_thread();
    void suspend();
    static void thread_entry();
    void thread_exit();
    bool complete(Thread& thread);
    void complete_block_barrier();
    void report_deadlock();
    void preempt();
    uint32_t random(uint32_t below);
    void shuffle_order(std::vector<uint32_t>& order);

    void load_matrices(Warp& warp);
    void synchronise(Warp& warp, uint32_t lanes);
    Thread& lane(const Warp& warp, uint32_t lane) { return threads_[warp.number * warp_lanes + lane]; }

    // checks.cpp
    void check_shared(Thread& thread, uintptr_t address, size_t size, Access access, uintptr_t pc);
    void check_global(Thread& thread, uintptr_t address, size_t size, Access access, uintptr_t pc);
    void check_order(Thread& thread, Shadow& shadow, size_t offset, size_t size, uint64_t generation, Access access,
                     uintptr_t pc, Kind kind);
    bool ordered(Stamp earlier, const Thread& thread) const;
    Stamp stamp(const Thread& thread, Access access) const;
    BetweenBlocks::Here here(const Thread& thread) const;
    // Addresses in cells are distances from the kernel.
    int32_t distance(uintptr_t pc) const {
        return static_cast<int32_t>(pc - reinterpret_cast<uintptr_t>(kernel.function));
    }
    uintptr_t pc_at(int32_t distance) const {
        return reinterpret_cast<uintptr_t>(kernel.function) + static_cast<uintptr_t>(static_cast<intptr_t>(distance));
    }
    std::string describe(Stamp stamp) const;

    Stacks stacks_;
    Fiber scheduler_;
    std::vector<Thread> threads_;
    std::vector<Warp> warps_;
    std::vector<uint32_t> order_;  // of warps, highest priority first
    uint64_t random_state_ = 0;
    uint32_t live_ = 0, waiting_ = 0;  // threads that have not exited; of these, those at the block barrier
    uint32_t epoch_ = 0;               // block barriers passed by this block
    uint32_t until_preemption_ = 0;
    bool abandoned_ = false;
    uint64_t launches_ = 0, blocks_ = 0;  // ever: the generations of shadows

    BetweenBlocks between_blocks_;
};

Emulator& emulator();
// The one whose kernel runs on this host thread, else null.
extern thread_local Emulator* running;

}  // namespace cuda_emulation
