// The check that keeps a call from running instructions that the processor does not have.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <mutex>

#include "bindings/tensor.h"
#include "core/isa.h"

namespace spos {

// ValueError if float32 kernels for `isa` cannot run here; float64 has portable kernels only.
inline void require_isa(Isa isa, Dtype dtype) {
    // Asked once: the instruction that asks the processor traps in a virtual machine, 25 microseconds each time. Only
    // of what is used, since asking for AMX changes the process.
    static std::array<std::once_flag, 4> asked;
    static std::array<bool, 4> supported;
    const auto which = static_cast<size_t>(isa);
    std::call_once(asked[which], [&] { supported[which] = isa_supported(isa); });
    if (dtype == Dtype::float32 && !supported[which]) throw py::value_error("isa: this processor does not support it");
}

}  // namespace spos
