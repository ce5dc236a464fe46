// The tiles of ceilings.h.
#if defined(__x86_64__)

#include "core/amx.h"
#include "cpu/ceilings_body.h"

namespace spos {

double tile_rounds(int64_t iterations) {
    configure_tiles();
    for (int64_t round = 0; round < iterations; ++round) {
        dot_tiles<0, 4, 6>();
        dot_tiles<1, 4, 7>();
        dot_tiles<2, 5, 6>();
        dot_tiles<3, 5, 7>();
    }
    release_tiles();
    return 4.0 * 2 * 16 * 16 * 64 * static_cast<double>(iterations);
}

}  // namespace spos

#endif
