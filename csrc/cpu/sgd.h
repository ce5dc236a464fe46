// Stochastic gradient descent with momentum on parts of parameters, on the CPU.
//
//     g = gradient + weight_decay * w;   m = momentum * m + g;   w -= lr * (nesterov ? g + momentum * m : m)
//
// as torch.optim.SGD has it without dampening (after Sutskever et al., "On the importance of initialization and
// momentum in deep learning", 2013). Momentum buffers begin as zeros, so that an element's first step has m = g.
#pragma once

#include <cstdint>

#include "core/isa.h"

namespace spos {

// `rows` runs of `length` adjacent elements, `stride` elements apart, of three buffers of the same layout. m is null
// without momentum: then the step is g.
template <typename T>
struct SgdPiece {
    T* w;
    const T* gradient;
    T* m;
    int64_t rows, length, stride;
    T lr, momentum, weight_decay;
    bool nesterov;
};

// Updates all pieces, which must not overlap; a piece is a thread's task. Every element's result depends on itself
// alone: the same bits for every thread count, and however a parameter is cut. T is float with any supported Isa, or
// double with Isa::portable.
template <typename T>
void sgd_step(Isa isa, const SgdPiece<T>* pieces, int64_t count, int threads);

}  // namespace spos
