// The bodies of sgd.h, one for each instruction set.
#pragma once

#include "cpu/sgd.h"

namespace spos {

template <typename T>
using SgdBody = void (*)(const SgdPiece<T>&);

SgdBody<float> sgd_body_avx512();
SgdBody<float> sgd_body_avx2();

}  // namespace spos
