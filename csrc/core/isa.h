// Which vector instruction sets this processor (and its operating system) can run.
#pragma once

namespace spos {

// Each has all that those before it have.
enum class Isa { portable, avx2, avx512, amx };

// Whether the avx512 and amx bodies were compiled with csrc/avx512_twins in place of the instructions: for tests, on
// AVX2.
#if defined(SPOS_AVX512_TWINS)
inline constexpr bool avx512_is_twins = true;
#else
inline constexpr bool avx512_is_twins = false;
#endif

// True when the processor has every feature the bodies built for `isa` use and the operating system saves its
// registers.
bool isa_supported(Isa isa);

// The widest supported instruction set.
Isa best_isa();

}  // namespace spos
