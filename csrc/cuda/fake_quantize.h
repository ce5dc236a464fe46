// Fake quantization on a GPU: what cpu/fake_quantize.h says, for elements of fp32, fp16 and bf16.
//
// x is `outer` times `channels` times `inner` adjacent elements in memory, at least one and at most 2^37; y, dy, dx and
// codes lie as x does. scale, zero_point, dscale and maximum have an element for each channel. Values of scale and
// zero_point are taken as they are: to look at them would be to wait for the GPU. None of them makes a kernel leave
// its memory.
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

// Floats of scratch memory for `backward` with dscale, and for `maximum`.
int64_t fake_quantize_workspace(const FakeQuantize& shape, Element element);

// Each returns a cudaError_t, and leaves the work to `stream`. zero_point may be null, and so may dx and dscale; dscale
// is null in dorefa. Every result has the same bits in every run.
int fake_quantize_forward(const FakeQuantize& shape, Element element, const void* x, const float* scale,
                          const int32_t* zero_point, void* y, void* stream);
int fake_quantize_codes(const FakeQuantize& shape, Element element, const void* x, const float* scale,
                        const int32_t* zero_point, uint8_t* codes, void* stream);
int fake_quantize_backward(const FakeQuantize& shape, Element element, const void* dy, const void* x,
                           const float* scale, const int32_t* zero_point, void* dx, float* dscale, float* workspace,
                           void* stream);
int fake_quantize_maximum(const FakeQuantize& shape, Element element, const void* x, float* maximum, float* workspace,
                          void* stream);

}  // namespace spos::cuda
