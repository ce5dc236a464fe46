// The three passes of a convolution: the result, the gradient of the input, the gradient of the weight.
#pragma once

namespace spos {

enum class Pass { forward, dgrad, wgrad };

}  // namespace spos
