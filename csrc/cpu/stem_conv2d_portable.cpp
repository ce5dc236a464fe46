// The portable body of stem_conv2d.h.
#include "core/simd_portable.h"
#include "cpu/stem_conv2d.inl"

namespace spos {
namespace {

struct StemPortable : Vector128<double> {
    static constexpr int tile = 3;
};

}  // namespace

StemBody stem_body_portable() { return make_stem_body<StemPortable>(); }

}  // namespace spos
