#include "core/isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace spos {
namespace {

#if defined(__x86_64__)

struct Leaf {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

bool read_leaf(unsigned leaf, Leaf& out) {
    return __get_cpuid_count(leaf, 0, &out.eax, &out.ebx, &out.ecx, &out.edx) != 0;
}

// XCR0 as inline assembly: the _xgetbv intrinsic would need -mxsave for this file, which runs on every processor.
unsigned enabled_register_state() {
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

bool all_set(unsigned value, unsigned bits) { return (value & bits) == bits; }

// Linux gives a process the registers of AMX when it asks for them.
bool may_use_tiles() {
#if defined(__linux__)
    constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

bool detect(Isa isa) {
    Leaf features, extended;
    if (!read_leaf(1, features) || !read_leaf(7, extended)) return false;
    if (!all_set(features.ecx, bit_OSXSAVE | bit_AVX | bit_FMA)) return false;
    const unsigned state = enabled_register_state();
    constexpr unsigned ymm_state = 0x06;  // xmm and the upper halves of ymm
    constexpr unsigned zmm_state = 0xe6;  // the above, mask registers, upper halves of zmm0-15, zmm16-31
    if (isa == Isa::avx2 || avx512_is_twins) return all_set(state, ymm_state) && all_set(extended.ebx, bit_AVX2);
    if (!all_set(state, zmm_state) ||
        !all_set(extended.ebx, bit_AVX2 | bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ))
        return false;
    if (isa == Isa::avx512) return true;
    constexpr unsigned tile_state = 0x60000, amx_tile_and_int8 = 0x3000000;
    return all_set(state, tile_state) && all_set(extended.edx, amx_tile_and_int8) &&
           all_set(extended.ecx, bit_AVX512VBMI | bit_AVX512VNNI | bit_AVX512VPOPCNTDQ) && may_use_tiles();
}

#else

bool detect(Isa) { return false; }

#endif

}  // namespace

bool isa_supported(Isa isa) { return isa == Isa::portable || detect(isa); }

Isa best_isa() {
    if (isa_supported(Isa::amx)) return Isa::amx;
    if (isa_supported(Isa::avx512)) return Isa::avx512;
    if (isa_supported(Isa::avx2)) return Isa::avx2;
    return Isa::portable;
}

}  // namespace spos
