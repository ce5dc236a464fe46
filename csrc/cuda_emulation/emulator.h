// What a host program says to the emulator and hears from it, from one thread at a time. Kernels include device.h.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda_emulation/vector_types.h"

namespace cuda_emulation {

struct Options {
    // 0: blocks and warps in order of their number, no preemption. Any other number: a random order of blocks, and of
    // warps by random priorities that change now and then, at any access of a checked kernel.
    uint64_t seed = 0;
    bool count = false;  // fill `instructions`, wavefronts, sectors and bytes of loads and stores; takes time
};
void configure(const Options& options);

enum class Kind {
    out_of_bounds,         // or of no registered memory at all; the launch ends there
    misaligned,            // the launch ends there
    write_to_constant,     // the launch ends there
    uninitialised_shared,  // a read of shared memory that nobody wrote in this block
    pending_copy,          // an access of bytes that a cp.async not waited for may still write
    shared_race,           // two threads of a block, not both reading, with no barrier between
    global_race,           // the same in global memory, or between blocks
    divergent_barrier,     // not all threads of the block came to the same __syncthreads; the launch ends there
    missing_participant,   // lanes named in a mask that do not come, or come to something else; the launch ends there
    undefined_result,      // a shuffle from a lane that takes no part
    invalid_launch,        // shape or shared memory beyond what devices have
};
const char* name_of(Kind kind);

struct Report {
    Kind kind;
    std::string kernel;
    uint3 block, thread;
    std::string file;  // of the source line, empty if the debug information does not tell
    int line;
    std::string text;  // what was accessed, who else is involved, and where that one was
};
std::string to_string(const Report& report);
// Reports since the last call, one for each pair of kind and source line.
std::vector<Report> take_reports();

enum class Instruction {
    global_load,
    global_store,
    shared_load,
    shared_store,
    atomic,
    shuffle,
    vote,
    reduce,
    match,
    block_barrier,
    warp_barrier,
    cp_async,
    ldmatrix,
    mma_f16,
    mma_bf16,
    mma_tf32,
    mma_s8,
    mma_u8s8,
    mma_s4,
    mma_u4s4,
    mma_b1,
    dp4a,
    how_many,
};
struct Counters {
    // Instructions as warps issue them; atomics and dp4a one for each thread. Loads and stores only of checked kernels.
    std::array<uint64_t, static_cast<size_t>(Instruction::how_many)> instructions{};
    // Passes over the 32 banks that loads, stores, ldmatrix and the writes of cp.async need: as many as instructions
    // without a bank conflict at 4 bytes, twice and four times as many at 8 and 16 bytes and for x2 and x4.
    uint64_t shared_wavefronts = 0;
    uint64_t ldmatrix_wavefronts = 0;  // of these, the part of ldmatrix
    uint64_t global_bytes = 0;         // asked for by threads, cp.async included
    uint64_t global_sectors = 0;       // of 32 bytes, counted once for each instruction of a warp
    // Different sectors that are read of which nothing was read or written before, and different ones that are written,
    // each once since take_launches(): what has to come from memory and to go there, however large the caches are.
    uint64_t sectors_read = 0, sectors_written = 0;
    uint64_t launches = 0;  // counted always
    uint64_t operator[](Instruction kind) const { return instructions[static_cast<size_t>(kind)]; }
};
Counters take_counters();

// What one launch did, noted while Options::count is on.
struct Launch {
    std::string kernel;
    uint3 grid, block;
    uint64_t shared_bytes;  // dynamic
    Counters counters;      // of this launch alone
};
std::vector<Launch> take_launches();

// Memory that kernels may access as global memory, for as long as this object lives. Needed for checked kernels only.
class GlobalMemory {
  public:
    enum class Use { read_write, read_only };
    GlobalMemory(const void* data, size_t bytes, const char* name, Use use = Use::read_write);
    ~GlobalMemory();
    GlobalMemory(const GlobalMemory&) = delete;
    GlobalMemory& operator=(const GlobalMemory&) = delete;

  private:
    const void* data_;
};

}  // namespace cuda_emulation
