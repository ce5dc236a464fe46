// Error codes of the CUDA runtime, for callers that include no header of it.
#pragma once

namespace spos::cuda {

const char* error_text(int error);

}  // namespace spos::cuda
