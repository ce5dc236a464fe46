// The avx512 body of channel_ops_body.h.
#if defined(__x86_64__)

#include "core/simd_avx512.h"
#include "cpu/channel_ops.inl"

namespace spos {

ChannelOps<float> channel_ops_avx512() { return make_channel_ops<Avx512F32>(); }

}  // namespace spos

#endif
