// What tests ask of the emulator itself. Only in spos_kernels._cuda_emulated.
#include "cuda_emulation/emulator.h"

#include "bindings/cuda/bindings.h"

#if defined(SPOS_CUDA_EMULATED)

namespace spos {

namespace py = pybind11;

namespace {

py::dict counters() {
    using cuda_emulation::Instruction;
    const cuda_emulation::Counters counters = cuda_emulation::take_counters();
    constexpr const char* names[] = {
        "global_load", "global_store", "shared_load",   "shared_store", "atomic",   "shuffle",  "vote",
        "reduce",      "match",        "block_barrier", "warp_barrier", "cp_async", "ldmatrix", "mma_f16",
        "mma_bf16",    "mma_tf32",     "mma_s8",        "mma_u8s8",     "mma_s4",   "mma_u4s4", "mma_b1"};
    static_assert(std::size(names) == static_cast<size_t>(Instruction::how_many), "a name for each instruction");
    py::dict result;
    for (size_t i = 0; i < std::size(names); ++i) result[names[i]] = counters.instructions[i];
    result["shared_wavefronts"] = counters.shared_wavefronts;
    result["ldmatrix_wavefronts"] = counters.ldmatrix_wavefronts;
    result["global_bytes"] = counters.global_bytes;
    result["global_sectors"] = counters.global_sectors;
    result["launches"] = counters.launches;
    return result;
}

}  // namespace

void bind_emulator(py::module_& module) {
    // seed: the order of blocks and warps (0: by their numbers). count: fill all of the counters, which takes time.
    module.def(
        "configure", [](uint64_t seed, bool count) { cuda_emulation::configure({seed, count}); }, py::arg("seed") = 0,
        py::arg("count") = false);
    // Counters since the last call, by name.
    module.def("take_counters", &counters);
}

}  // namespace spos

#endif
