// The types that elements may have in a GPU's memory.
#pragma once

namespace spos::cuda {

enum class Element { float32, float16, bfloat16 };

}  // namespace spos::cuda
