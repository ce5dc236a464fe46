// What this processor can do at most, measured: the yardstick that benchmarks print beside a kernel's rate.
//
// fma:  multiply-adds on registers alone, enough independent chains to hide their latency.
// load: multiply-adds with one operand from the first-level cache each, what a kernel without reuse in registers gets.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace spos {

enum class Ceiling { fma, load };

// Runs `iterations` rounds on each of `threads` threads and returns the floating-point operations done in all.
double run_ceiling(Ceiling ceiling, Isa isa, int64_t iterations, int threads);

}  // namespace spos
