// The portable body of lowbit_body.h, and the choice among the bodies.
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "cpu/lowbit_bits.inl"
#include "cpu/lowbit_dots.inl"
#include "cpu/lowbit_parts.inl"

namespace spos {
namespace {

struct LowbitPortable : LowbitScalarParts {
    static constexpr int lanes = 4, panel = 2;
    static constexpr bool saturates = false;
    static constexpr int tile_rows(int) { return 3; }

    struct Sum {
        int32_t lane[lanes];
    };
    struct Bytes {
        int8_t lane[4 * lanes];
    };
    struct Quad {
        uint8_t byte[4];
    };
    static Sum zero() { return {}; }
    static Sum load(const int32_t* from) { return copy_of<Sum>(from); }
    static void store(int32_t* to, Sum value) { std::memcpy(to, &value, sizeof value); }
    static Bytes bytes(const int8_t* from) { return copy_of<Bytes>(from); }
    static Quad quad(const uint8_t* from) { return copy_of<Quad>(from); }
    template <bool>
    static Sum dot(Sum sum, Quad a, Bytes b) {
        for (int i = 0; i < lanes; ++i)
            for (int k = 0; k < 4; ++k) sum.lane[i] += a.byte[k] * b.lane[4 * i + k];
        return sum;
    }
    static void pack(const PackedRows& rows, int64_t n0, int64_t count, int vectors, SignedCodes how, uint8_t* scratch,
                     int8_t* to) {
        pack_through<LowbitPortable>(rows, n0, count, vectors, how, scratch, to);
    }

  private:
    template <typename R>
    static R copy_of(const void* from) {
        R result;
        std::memcpy(&result, from, sizeof result);
        return result;
    }
};

#if defined(__x86_64__)
bool has_vnni() {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    constexpr unsigned wanted = bit_AVX512VBMI | bit_AVX512VNNI | bit_AVX512VPOPCNTDQ;
    return (ecx & wanted) == wanted;
}
#endif

}  // namespace

LowbitBody lowbit_body([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
    // Asked once: the instruction traps in a virtual machine.
    static const bool vnni = avx512_is_twins || has_vnni();
    if (isa == Isa::amx) return lowbit_body_avx512amx();
    if (isa == Isa::avx512 && vnni) return lowbit_body_avx512vnni();
    if (isa != Isa::portable) return lowbit_body_avx2();
#endif
    return make_lowbit_body<LowbitPortable>();
}

}  // namespace spos
