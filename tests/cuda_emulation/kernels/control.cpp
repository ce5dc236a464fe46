// The emulator's host interface in C, for ctypes.
#include <string>

#include "cuda_emulation/emulator.h"

extern "C" {

void* register_memory(const void* data, size_t bytes, const char* name, int read_only) {
    using cuda_emulation::GlobalMemory;
    return new GlobalMemory(data, bytes, name,
                            read_only ? GlobalMemory::Use::read_only : GlobalMemory::Use::read_write);
}
void release_memory(void* memory) { delete static_cast<cuda_emulation::GlobalMemory*>(memory); }

void configure(uint64_t seed, int count) { cuda_emulation::configure({seed, count != 0}); }

// A line for each report: kind|file|line|block.x|thread.x|kernel|text. Valid until the next call.
const char* take_reports() {
    static std::string lines;
    lines.clear();
    for (const cuda_emulation::Report& report : cuda_emulation::take_reports())
        lines += std::string(cuda_emulation::name_of(report.kind)) + "|" + report.file + "|" +
                 std::to_string(report.line) + "|" + std::to_string(report.block.x) + "|" +
                 std::to_string(report.thread.x) + "|" + report.kernel + "|" + report.text + "\n";
    return lines.c_str();
}

// What a kernel may read without its being registered, and what not.
extern const unsigned constant_words[3];
const unsigned constant_words[3] = {1, 2, 3};
unsigned variable_words[3] = {1, 2, 3};

// A line for each launch: kernel|grid.x|block.x|shared bytes|sectors read|sectors written. Valid until the next call.
const char* take_launches() {
    static std::string lines;
    lines.clear();
    for (const cuda_emulation::Launch& launch : cuda_emulation::take_launches())
        lines += launch.kernel + "|" + std::to_string(launch.grid.x) + "|" + std::to_string(launch.block.x) + "|" +
                 std::to_string(launch.shared_bytes) + "|" + std::to_string(launch.counters.sectors_read) + "|" +
                 std::to_string(launch.counters.sectors_written) + "\n";
    return lines.c_str();
}

// The instructions in the order of their enumeration, then the four other counters.
void take_counters(uint64_t* to) {
    const cuda_emulation::Counters counters = cuda_emulation::take_counters();
    for (const uint64_t count : counters.instructions) *to++ = count;
    *to++ = counters.shared_wavefronts;
    *to++ = counters.ldmatrix_wavefronts;
    *to++ = counters.global_bytes;
    *to++ = counters.global_sectors;
}

}  // extern "C"
