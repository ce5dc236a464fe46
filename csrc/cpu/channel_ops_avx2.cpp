// The avx2 body of channel_ops_body.h.
#if defined(__x86_64__)

#include "core/simd_avx2.h"
#include "cpu/channel_ops.inl"

namespace spos {

ChannelOps<float> channel_ops_avx2() { return make_channel_ops<Avx2F32>(); }

}  // namespace spos

#endif
