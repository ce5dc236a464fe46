// What the instruction sets' files of ceilings.h share with its dispatcher: plain data, no code.
#pragma once

#include <cstdint>

namespace spos {

struct CeilingBody {
    double operations;  // floating-point operations of one iteration of either loop
    float (*fma)(int64_t iterations);
    float (*load)(int64_t iterations);
};

double tile_rounds(int64_t iterations);  // returns the operations done
CeilingBody ceiling_body_avx512();
CeilingBody ceiling_body_avx2();

}  // namespace spos
