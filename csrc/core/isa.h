// Which vector instruction sets this processor (and its operating system) can run.
#pragma once

namespace spos {

enum class Isa { portable, avx2, avx512 };

// True when the processor has every feature the bodies built for `isa` use and the operating system saves its
// registers.
bool isa_supported(Isa isa);

// The widest supported instruction set.
Isa best_isa();

}  // namespace spos
