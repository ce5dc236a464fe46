// The launches that a pass of choice_block.h is made of: one for each slot of a chain (choice_block_parts.cuh).
#pragma once

#include "cuda/choice_block.h"

namespace spos::cuda {

struct BackwardPlan;
struct Slot;

int pointwise_forward(const ChoiceBlock& block, Element element, Product product, Slot slot, void* stream);
int depthwise_forward(const ChoiceBlock& block, Element element, Slot slot, void* stream);
int pointwise_backward(const ChoiceBlock& block, const BackwardPlan& plan, Element element, Product product, Slot slot,
                       void* stream);
int depthwise_backward(const ChoiceBlock& block, const BackwardPlan& plan, Element element, Slot slot, void* stream);

// The whole pass where nothing is kept and a tile's maps fit into shared memory: a launch for each pointwise, depthwise
// and pointwise convolution in a row, or for each of the last two.
bool inference_fits(const ChoiceBlock& block);
int inference(const ChoiceBlock& block, Element element, Product product, void* stream);

}  // namespace spos::cuda
