#include "cuda_emulation/counting.h"

#include <algorithm>
#include <utility>

namespace cuda_emulation {
namespace {

std::vector<uintptr_t> distinct(std::vector<uintptr_t> values) {
    std::sort(values.begin(), values.end());
    values.erase(std::unique(values.begin(), values.end()), values.end());
    return values;
}

// Passes over 32 banks of 4 bytes: in one pass each bank gives one word, to as many lanes as ask for it.
uint64_t passes(std::vector<uintptr_t> words) {
    std::array<uint64_t, 32> load{};
    for (const uintptr_t word : distinct(std::move(words))) ++load[word % 32];
    return *std::max_element(load.begin(), load.end());
}

}  // namespace

void Counting::add_access(uint32_t warp, uint32_t lane, uintptr_t pc, Instruction kind, uintptr_t address,
                          size_t size) {
    // A cp.async is met twice at one place: its other side has a key of its own, inside of the call instruction.
    const uintptr_t key = kind == copy_target ? pc - 1 : pc;
    Site& site = sites_[warp].try_emplace(key, Site{kind, {}, {}}).first->second;
    const uint32_t execution = site.executed[lane]++;
    while (site.accesses.size() <= execution) site.accesses.emplace_back();
    Access& access = site.accesses[execution];
    access.lanes |= 1u << lane;
    access.address[lane] = address;
    access.size[lane] = static_cast<uint32_t>(size);
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

void Counting::evaluate(Instruction kind, const Access& access) {
    if (kind != copy_target) add(kind);
    const auto pieces = [&](uint32_t first, uint32_t lanes, uintptr_t bytes) {
        std::vector<uintptr_t> touched;
        for (uint32_t lane = first; lane < first + lanes; ++lane) {
            if (!(access.lanes >> lane & 1) || access.size[lane] == 0) continue;
            const uintptr_t end = access.address[lane] + access.size[lane];
            for (uintptr_t piece = access.address[lane] / bytes; piece * bytes < end; ++piece) touched.push_back(piece);
        }
        return touched;
    };
    if (kind == Instruction::shared_load || kind == Instruction::shared_store || kind == copy_target) {
        // 8 bytes go half a warp at a time, 16 bytes a quarter.
        const uint32_t size = access.size[__builtin_ctz(access.lanes)];
        const uint32_t together = size <= 4 ? 32 : size <= 8 ? 16 : 8;
        for (uint32_t first = 0; first < 32; first += together)
            counters_.shared_wavefronts += passes(pieces(first, together, 4));
        return;
    }
    for (uint32_t lane = 0; lane < 32; ++lane)
        if (access.lanes >> lane & 1) counters_.global_bytes += access.size[lane];
    const std::vector<uintptr_t> sectors = distinct(pieces(0, 32, 32));
    counters_.global_sectors += sectors.size();
    for (const uintptr_t sector : sectors) touch(sector, kind == Instruction::global_store);
}

void Counting::touch(uintptr_t sector, bool writes) {
    if (writes)
        counters_.sectors_written += written_.insert(sector).second;
    else if (written_.count(sector) == 0)
        counters_.sectors_read += read_.insert(sector).second;
}

void Counting::add_atomic(uintptr_t address, bool global) {
    add(Instruction::atomic);
    if (!global) return;
    touch(address / 32, false);
    touch(address / 32, true);
}

void Counting::start_launch() { before_ = counters_; }

Counters Counting::end_launch() const {
    Counters difference = counters_;
    for (size_t i = 0; i < difference.instructions.size(); ++i) difference.instructions[i] -= before_.instructions[i];
    for (const auto member :
         {&Counters::shared_wavefronts, &Counters::ldmatrix_wavefronts, &Counters::global_bytes,
          &Counters::global_sectors, &Counters::sectors_read, &Counters::sectors_written, &Counters::launches})
        difference.*member -= before_.*member;
    return difference;
}

void Counting::flush(uint32_t warp) {
    if (warp >= sites_.size()) return;
    for (const auto& [pc, site] : sites_[warp])
        for (const Access& access : site.accesses) evaluate(site.kind, access);
    sites_[warp].clear();
}

Counters Counting::take() {
    before_ = {};
    return std::exchange(counters_, {});
}

}  // namespace cuda_emulation
