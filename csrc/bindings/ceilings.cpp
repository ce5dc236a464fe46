// The ceilings of this processor, for the benchmarks.
#include "cpu/ceilings.h"

#include <algorithm>

#include "bindings/bindings.h"

namespace spos {

void bind_ceilings(pybind11::module_& module) {
    namespace py = pybind11;
    py::enum_<Ceiling>(module, "Ceiling")
        .value("fma", Ceiling::fma)
        .value("load", Ceiling::load)
        .value("tiles", Ceiling::tiles);
    module.def(
        "run_ceiling",
        [](Ceiling ceiling, Isa isa, int64_t iterations, int threads) {
            if (!isa_supported(isa)) throw py::value_error("isa: this processor does not support it");
            if (ceiling == Ceiling::tiles && isa != Isa::amx) throw py::value_error("isa: tiles are amx's");
            return run_ceiling(ceiling, isa, iterations, std::clamp(threads, 1, 1024));
        },
        py::arg("ceiling"), py::arg("isa"), py::arg("iterations"), py::arg("threads"),
        py::call_guard<py::gil_scoped_release>());
}

}  // namespace spos
