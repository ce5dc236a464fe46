// The portable body of channel_ops_body.h, and the choice among the bodies.
#include <type_traits>

#include "core/simd_portable.h"
#include "cpu/channel_ops.inl"

namespace spos {

template <typename T>
ChannelOps<T> channel_ops([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
    if constexpr (std::is_same_v<T, float>) {
        if (isa >= Isa::avx512) return channel_ops_avx512();
        if (isa == Isa::avx2) return channel_ops_avx2();
    }
#endif
    return make_channel_ops<Vector128<T>>();
}

template ChannelOps<float> channel_ops(Isa);
template ChannelOps<double> channel_ops(Isa);

}  // namespace spos
