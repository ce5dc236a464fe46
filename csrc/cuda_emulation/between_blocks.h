// What blocks tell each other: __threadfence, then an atomic operation on an address that another block does one on
// later.
//
// Such an operation tells of what is ordered before it in its own block, by block barriers and by the clocks of its
// warp, and of all that its thread was told. It tells that to the other operation's thread, and to the threads that a
// barrier orders after this one.
#pragma once

#include <array>
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cuda_emulation/shadow.h"

namespace cuda_emulation {

class BetweenBlocks {
  public:
    using Clocks = std::array<uint32_t, 32>;  // of a warp's lanes, as one of them knows them
    // A thread at some moment.
    struct Here {
        uint32_t block, epoch, warp, lane;  // blocks from 1
        const uint32_t* clocks;
    };

    void start_launch(size_t blocks);
    void start_block();
    void pass_barrier();
    void atomic(uintptr_t address, bool fenced, const Here& here);
    // Whether what another block did is known to be done.
    bool ordered(Stamp earlier, const Here& here) const;

  private:
    // What of a block is told: its epochs before this one, and of this one what some warps' clocks have seen.
    struct Point {
        uint32_t epoch;
        std::vector<std::pair<uint32_t, Clocks>> warps;
    };
    using Told = std::vector<uint32_t>;  // for each block one of `points_`, 0 for nothing
    struct Recent {
        uint32_t warp, lane, clock;
        Told told;
    };

    uint32_t join(uint32_t a, uint32_t b);
    void join(Told& to, const Told& from);
    bool covers(uint32_t point, Stamp stamp) const;
    static bool follows(const Here& here, const Recent& recent) {
        return here.warp == recent.warp && here.clocks[recent.lane] >= recent.clock;
    }

    size_t blocks_ = 0;
    std::vector<Point> points_;
    std::unordered_map<uintptr_t, Told> by_address_;
    Told all_;                    // what every thread of the running block was told
    std::vector<Recent> recent_;  // what single threads were since the last barrier
};

}  // namespace cuda_emulation
