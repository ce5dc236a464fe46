// What tests ask of the emulator itself. Only in spos_kernels._cuda_emulated.
#include "cuda_emulation/emulator.h"

#include "bindings/cuda/bindings.h"
#include "bindings/cuda/call.h"
#include "cuda_emulation/recording.h"

#if defined(SPOS_CUDA_EMULATED)

namespace spos {

namespace py = pybind11;

namespace {

py::dict to_dict(const cuda_emulation::Counters& counters) {
    using cuda_emulation::Instruction;
    constexpr const char* names[] = {
        "global_load", "global_store",  "shared_load",  "shared_store", "atomic",   "shuffle", "vote",     "reduce",
        "match",       "block_barrier", "warp_barrier", "cp_async",     "ldmatrix", "mma_f16", "mma_bf16", "mma_tf32",
        "mma_s8",      "mma_u8s8",      "mma_s4",       "mma_u4s4",     "mma_b1",   "dp4a"};
    static_assert(std::size(names) == static_cast<size_t>(Instruction::how_many), "a name for each instruction");
    py::dict result;
    for (size_t i = 0; i < std::size(names); ++i) result[names[i]] = counters.instructions[i];
    result["shared_wavefronts"] = counters.shared_wavefronts;
    result["ldmatrix_wavefronts"] = counters.ldmatrix_wavefronts;
    result["global_bytes"] = counters.global_bytes;
    result["global_sectors"] = counters.global_sectors;
    result["sectors_read"] = counters.sectors_read;
    result["sectors_written"] = counters.sectors_written;
    result["launches"] = counters.launches;
    return result;
}

// What a CUDA graph is on a device: launches recorded once, and replayed on the same memory, which the caller keeps.
class Graph {
  public:
    void start() {
        cuda_emulation::start_recording(launches_);
        CudaCall::record_in(&memory_);
    }
    void stop() {
        cuda_emulation::stop_recording();
        CudaCall::record_in(nullptr);
    }
    void replay() const {
        memory_.run(0, [&](void*) { return static_cast<int>(launches_.replay()); });
    }
    size_t size() const { return launches_.size(); }

  private:
    cuda_emulation::Recording launches_;
    CudaCall memory_;
};

py::list launches() {
    const auto triple = [](uint3 value) { return py::make_tuple(value.x, value.y, value.z); };
    py::list result;
    for (const cuda_emulation::Launch& launch : cuda_emulation::take_launches()) {
        py::dict each;
        each["kernel"] = launch.kernel;
        each["grid"] = triple(launch.grid);
        each["block"] = triple(launch.block);
        each["shared_bytes"] = launch.shared_bytes;
        each["counters"] = to_dict(launch.counters);
        result.append(each);
    }
    return result;
}

}  // namespace

void bind_emulator(py::module_& module) {
    // seed: the order of blocks and warps (0: by their numbers). count: fill all of the counters, which takes time.
    module.def(
        "configure", [](uint64_t seed, bool count) { cuda_emulation::configure({seed, count}); }, py::arg("seed") = 0,
        py::arg("count") = false);
    py::class_<Graph>(module, "Graph")
        .def(py::init<>())
        .def("start", &Graph::start)
        .def("stop", &Graph::stop)
        .def("replay", &Graph::replay)
        .def("__len__", &Graph::size);
    // Counters since the last call, by name.
    module.def("take_counters", [] { return to_dict(cuda_emulation::take_counters()); });
    // Each counted launch since the last call, in order: kernel, grid, block, dynamic shared_bytes, counters.
    module.def("take_launches", &launches);
}

}  // namespace spos

#endif
