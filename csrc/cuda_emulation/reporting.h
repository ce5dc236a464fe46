// Collects what is wrong and looks up its source lines when asked for.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "cuda_emulation/emulator.h"

namespace cuda_emulation {

struct Place {
    std::string function;  // the outermost one that was inlined: the kernel
    std::string file;
    int line = 0;
    std::string module;
};

// Where a kernel called the emulator. The line is known where the caller passed it on, and then better than by the
// address: compilers merge calls that differ in nothing else.
struct Site {
    uintptr_t return_address = 0;
    int line = 0;
};

class Reporter {
  public:
    void add(Kind kind, const void* kernel, uint3 block, uint3 thread, Site site, std::string text, Site other);
    // Starts addr2line for addresses it has not met, so not inside of a launch.
    std::vector<Report> take();
    std::string name_of(const void* kernel);

  private:
    struct Found {
        Kind kind;
        const void* kernel;
        uint3 block, thread;
        Site site;
        std::string text;
        Site other;
    };
    void look_up(const std::set<uintptr_t>& addresses);
    Place place_of(Site site) const;

    std::vector<Found> found_;
    std::set<std::tuple<Kind, uintptr_t, int>> known_;
    std::map<uintptr_t, Place> places_;
};

}  // namespace cuda_emulation
