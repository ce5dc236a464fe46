// Counts what warps do. Threads run one after another, so the accesses that a warp makes as one instruction are put
// together again: the n-th execution of an instruction by one lane belongs to the n-th by the others, counted anew
// after each barrier.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "cuda_emulation/emulator.h"

namespace cuda_emulation {

class Counting {
  public:
    void add_launch() { ++counters_.launches; }
    void start_launch();
    void start_block(size_t warps) { sites_.assign(warps, {}); }
    // What this launch did.
    Counters end_launch() const;
    void forget_sectors() { read_.clear(), written_.clear(); }
    void add_atomic(uintptr_t address, bool global);
    void add(Instruction kind) { ++counters_.instructions[static_cast<size_t>(kind)]; }
    // The side of a cp.async that is in shared memory: passes over the banks, but no instruction.
    static constexpr Instruction copy_target = Instruction::how_many;
    // One lane's part of a load, a store or a cp.async, `size` bytes of it.
    void add_access(uint32_t warp, uint32_t lane, uintptr_t pc, Instruction kind, uintptr_t address, size_t size);
    void add_ldmatrix(const uintptr_t* rows, int matrices);
    // At a barrier of the warp, and at its end.
    void flush(uint32_t warp);
    Counters take();

  private:
    struct Access {
        uint32_t lanes = 0;
        std::array<uintptr_t, 32> address;
        std::array<uint32_t, 32> size;
    };
    struct Site {
        Instruction kind;
        std::array<uint32_t, 32> executed{};
        std::deque<Access> accesses;
    };
    void evaluate(Instruction kind, const Access& access);
    void touch(uintptr_t sector, bool writes);

    Counters counters_, before_;                              // before_: this launch
    std::unordered_set<uintptr_t> read_, written_;            // sectors
    std::vector<std::unordered_map<uintptr_t, Site>> sites_;  // of each warp, by return address
};

}  // namespace cuda_emulation
