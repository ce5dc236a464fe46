// Fake quantization on a GPU: what cpu/fake_quantize.h says, for elements of fp32, fp16 and bf16.
//
// x is `outer` times `channels` times `inner` adjacent elements in memory; y, dy, dx and codes lie as x does. scale and
// zero_point, float, have an element for each channel.
#pragma once

#include <cstdint>

#include "cuda/element.h"

namespace spos::cuda {

enum class QuantizeMethod { dorefa, pact, lsq };

struct FakeQuantize {
    QuantizeMethod method;
    int low, high;  // the codes' limits
    int64_t outer, channels, inner;
};

// Each returns a cudaError_t, and leaves the work to `stream`. zero_point may be null.
int fake_quantize_forward(const FakeQuantize& shape, Element element, const void* x, const float* scale,
                          const float* zero_point, void* y, void* stream);

}  // namespace spos::cuda
