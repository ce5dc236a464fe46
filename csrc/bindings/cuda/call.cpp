#include "bindings/cuda/call.h"

#include <algorithm>
#include <memory>

#include "cuda/runtime.h"

#if defined(SPOS_CUDA_EMULATED)
#include "cuda_emulation/emulator.h"
#endif

namespace spos {

cuda::Element element_of(const Tensor& tensor) {
    return tensor.dtype == Dtype::float16    ? cuda::Element::float16
           : tensor.dtype == Dtype::bfloat16 ? cuda::Element::bfloat16
                                             : cuda::Element::float32;
}

CudaCall& CudaCall::add(const Tensor& tensor, const char* name, bool written) {
    const int64_t elements = reach(tensor);
    if (tensor.data == nullptr || elements == 0) return *this;
    if (!ranges_.empty() && tensor.device != device_)
        throw py::value_error(std::string(name) + ": is on GPU " + std::to_string(tensor.device) + ", expected " +
                              std::to_string(device_) + " like " + ranges_.front().name);
    device_ = tensor.device;
    const auto begin = reinterpret_cast<uintptr_t>(tensor.data);
    ranges_.push_back({begin, begin + static_cast<uintptr_t>(elements * size_of(tensor.dtype)), name, written});
    return *this;
}

// Views of one tensor overlap: slices of its channels lie between each other.
std::vector<CudaCall::Range> CudaCall::merged() const {
    std::vector<Range> sorted = ranges_, result;
    std::sort(sorted.begin(), sorted.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
    for (const Range& range : sorted) {
        if (result.empty() || range.begin >= result.back().end) {
            result.push_back(range);
            continue;
        }
        Range& last = result.back();
        last.end = std::max(last.end, range.end);
        last.written |= range.written;
        if (last.name.find(range.name) == std::string::npos) last.name += " and " + range.name;
    }
    return result;
}

#if defined(SPOS_CUDA_EMULATED)
namespace {
CudaCall* record = nullptr;
}

void CudaCall::record_in(CudaCall* call) { record = call; }
#endif

void CudaCall::run(uintptr_t stream, const std::function<int(void*)>& start) const {
#if defined(SPOS_CUDA_EMULATED)
    using cuda_emulation::GlobalMemory;
    if (record && record != this) record->append(*this);
    const std::vector<Range> ranges = merged();
    std::vector<std::unique_ptr<GlobalMemory>> registered;
    for (const Range& range : ranges)
        registered.push_back(std::make_unique<GlobalMemory>(
            reinterpret_cast<const void*>(range.begin), range.end - range.begin, range.name.c_str(),
            range.written ? GlobalMemory::Use::read_write : GlobalMemory::Use::read_only));
    const int error = start(reinterpret_cast<void*>(stream));
    const std::vector<cuda_emulation::Report> reports = cuda_emulation::take_reports();
    if (!reports.empty()) {
        constexpr size_t most = 20;
        std::string text = "the emulator has " + std::to_string(reports.size()) + " reports";
        for (size_t i = 0; i < std::min(reports.size(), most); ++i) text += "\n" + to_string(reports[i]);
        throw std::runtime_error(text);
    }
#else
    const cuda::DeviceGuard guard(device_);
    const int error = start(reinterpret_cast<void*>(stream));
#endif
    if (error) throw std::runtime_error(std::string("CUDA: ") + cuda::error_text(error));
}

}  // namespace spos
