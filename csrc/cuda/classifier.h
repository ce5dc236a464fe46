// What stands around the classifier's matrix product on a GPU: the mean over all pixels with dropout behind it, its
// gradient, and the cross entropy with its gradient.
#pragma once

#include <cstdint>

#include "cuda/element.h"

namespace spos::cuda {

// Dropout of the features [batch, channels]: feature i of step *step is dropped by a Philox draw of (seed, *step, i),
// the same in pool and its gradient. rate 0: none, and step may be null.
struct Pool {
    int64_t batch;
    int pixels, channels;
    float rate;
    uint64_t seed;
    const int64_t* step;
};

// x [batch, pixels, channels] and y [batch, channels], dense. Each returns a cudaError_t.
int pool_forward(const Pool& shape, Element element, const void* x, void* y, void* stream);
int pool_backward(const Pool& shape, Element element, const void* dy, void* dx, void* stream);

// loss: the mean over the batch of -sum of target * log softmax(logits), target = (1 - smoothing) * (class == label) +
// smoothing / classes (arXiv 1512.00567, section 7). logits and dlogits [batch, classes] dense, losses [batch]. A label
// that is no class makes its loss, and so the mean, NaN.
struct CrossEntropy {
    int batch, classes;
    float smoothing;
};
int cross_entropy(const CrossEntropy& shape, Element element, const void* logits, const int64_t* labels, float* losses,
                  float* loss, void* dlogits, void* stream);

}  // namespace spos::cuda
