// The check that keeps a call from running instructions that the processor does not have.
#pragma once

#include <pybind11/pybind11.h>

#include <array>

#include "bindings/tensor.h"
#include "core/isa.h"

namespace spos {

// ValueError if float32 kernels for `isa` cannot run here; float64 has portable kernels only.
inline void require_isa(Isa isa, Dtype dtype) {
    // Asked once: the instruction that asks the processor traps in a virtual machine, 25 microseconds each time.
    static const std::array<bool, 4> supported = {isa_supported(Isa::portable), isa_supported(Isa::avx2),
                                                  isa_supported(Isa::avx512), isa_supported(Isa::amx)};
    if (dtype == Dtype::float32 && !supported[static_cast<size_t>(isa)])
        throw py::value_error("isa: this processor does not support it");
}

}  // namespace spos
