#include "cuda_emulation/counting.h"

#include <algorithm>
#include <utility>

namespace cuda_emulation {
namespace {

// Passes over 32 banks of 4 bytes: in one pass each bank gives one word, to as many lanes as ask for it.
uint64_t passes(const std::vector<uintptr_t>& words) {
    std::vector<uintptr_t> distinct = words;
    std::sort(distinct.begin(), distinct.end());
    distinct.erase(std::unique(distinct.begin(), distinct.end()), distinct.end());
    std::array<uint64_t, 32> load{};
    for (const uintptr_t word : distinct) ++load[word % 32];
    return *std::max_element(load.begin(), load.end());
}

}  // namespace

void Counting::add_access(uint32_t warp, uint32_t lane, uintptr_t pc, Instruction kind, uintptr_t address,
                          size_t size) {
    Site& site = sites_[warp].try_emplace(pc, Site{kind, size, {}, {}}).first->second;
    const uint32_t execution = site.executed[lane]++;
    while (site.accesses.size() <= execution) site.accesses.emplace_back();
    Access& access = site.accesses[execution];
    access.lanes |= 1u << lane;
    access.address[lane] = address;
}

void Counting::add_global(uintptr_t address, size_t size) {
    counters_.global_bytes += size;
    if (size > 0) counters_.global_sectors += (address + size - 1) / 32 - address / 32 + 1;
}

void Counting::add_ldmatrix(const uintptr_t* rows, int matrices) {
    for (int matrix = 0; matrix < matrices; ++matrix) {
        std::vector<uintptr_t> words;
        for (int row = 0; row < 8; ++row)
            for (uintptr_t word = 0; word < 4; ++word) words.push_back(rows[8 * matrix + row] / 4 + word);
        const uint64_t wavefronts = passes(words);
        counters_.ldmatrix_wavefronts += wavefronts;
        counters_.shared_wavefronts += wavefronts;
    }
}

void Counting::evaluate(const Site& site, const Access& access) {
    add(site.kind);
    const bool shared = site.kind == Instruction::shared_load || site.kind == Instruction::shared_store;
    if (!shared) {
        std::vector<uintptr_t> sectors;
        for (uint32_t lane = 0; lane < 32; ++lane) {
            if (!(access.lanes >> lane & 1)) continue;
            counters_.global_bytes += site.size;
            for (uintptr_t sector = access.address[lane] / 32; sector * 32 < access.address[lane] + site.size; ++sector)
                sectors.push_back(sector);
        }
        std::sort(sectors.begin(), sectors.end());
        counters_.global_sectors +=
            static_cast<uint64_t>(std::unique(sectors.begin(), sectors.end()) - sectors.begin());
        return;
    }
    // 8 bytes go half a warp at a time, 16 bytes a quarter.
    const uint32_t together = site.size <= 4 ? 32 : site.size <= 8 ? 16 : 8;
    for (uint32_t first = 0; first < 32; first += together) {
        std::vector<uintptr_t> words;
        for (uint32_t lane = first; lane < first + together; ++lane) {
            if (!(access.lanes >> lane & 1)) continue;
            for (uintptr_t word = access.address[lane] / 4; word * 4 < access.address[lane] + site.size; ++word)
                words.push_back(word);
        }
        if (!words.empty()) counters_.shared_wavefronts += passes(words);
    }
}

void Counting::flush(uint32_t warp) {
    if (warp >= sites_.size()) return;
    for (const auto& [pc, site] : sites_[warp])
        for (const Access& access : site.accesses) evaluate(site, access);
    sites_[warp].clear();
}

Counters Counting::take() { return std::exchange(counters_, {}); }

}  // namespace cuda_emulation
