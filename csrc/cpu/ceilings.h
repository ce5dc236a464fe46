// What this processor can do at most, measured: the yardstick that benchmarks print beside a kernel's rate.
//
// fma:  multiply-adds on registers alone, enough independent chains to hide their latency.
// load: multiply-adds with one operand from the first-level cache each, what a kernel without reuse in registers gets.
// tiles: multiply-adds of bytes by AMX, on tiles alone; for Isa::amx.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace spos {

enum class Ceiling { fma, load, tiles };

// Runs `iterations` rounds on each of `threads` threads and returns the operations done in all.
double run_ceiling(Ceiling ceiling, Isa isa, int64_t iterations, int threads);

}  // namespace spos
