// ldmatrix and mma.sync for a whole warp. All shapes have one layout, given in device.h in terms of the number of
// elements in a register.
//
// Float products are summed exactly (in double) and rounded once. Tensor cores round otherwise, in a way that is not
// documented: results agree to the bit where all sums are exact, and to about 1e-6 of the sum of magnitudes elsewhere.
#include "cuda_emulation/runtime.h"

namespace cuda_emulation {

void Emulator::load_matrices(Warp& warp) {
    const int kind = lane(warp, 0).arrival.kind, count = kind < 0 ? -kind : kind;
    const bool transposed = kind < 0;
    uintptr_t rows[warp_lanes];
    for (uint32_t i = 0; i < static_cast<uint32_t>(8 * count); ++i) {
        Thread& thread = lane(warp, i);
        const uint64_t address = static_cast<uint64_t>(thread.arrival.in[1]) << 32 | thread.arrival.in[0];
        rows[i] = static_cast<uintptr_t>(address);
        if (!shared.contains(rows[i])) {
            report(Kind::out_of_bounds, thread, thread.arrival.site, "ldmatrix of memory that is not shared");
            abandon();
        }
        if (rows[i] % 16 != 0) {
            report(Kind::misaligned, thread, thread.arrival.site, "ldmatrix of a row that is not aligned to 16 bytes");
            abandon();
        }
        if (kernel.checked) check_shared(thread, rows[i], 16, Access::read, thread.arrival.site.return_address);
    }
    if (options.count) counting.add_ldmatrix(rows, count);
    const auto element = [&](int matrix, uint32_t row, uint32_t column) {
        return uint32_t{reinterpret_cast<const uint16_t*>(rows[8 * matrix + static_cast<int>(row)])[column]};
    };
    for (uint32_t i = 0; i < warp_lanes; ++i) {
        const uint32_t group = i / 4, pair = i % 4 * 2;
        for (int matrix = 0; matrix < count; ++matrix)
            lane(warp, i).arrival.out[matrix] =
                transposed ? element(matrix, pair, group) | element(matrix, pair + 1, group) << 16
                           : element(matrix, group, pair) | element(matrix, group, pair + 1) << 16;
    }
}

namespace {

// How to read element e of a register.
struct F16 {
    using Sum = double;
    static constexpr int elements = 2;
    static double a(uint32_t word, int e) { return float_of_half(static_cast<uint16_t>(word >> (16 * e))); }
    static double b(uint32_t word, int e) { return a(word, e); }
};
struct Bf16 {
    using Sum = double;
    static constexpr int elements = 2;
    static double a(uint32_t word, int e) { return float_of_bfloat16(static_cast<uint16_t>(word >> (16 * e))); }
    static double b(uint32_t word, int e) { return a(word, e); }
};
struct Tf32 {  // the low 13 bits of a float are ignored
    using Sum = double;
    static constexpr int elements = 1;
    static double a(uint32_t word, int) { return float_of(word & ~0x1fffu); }
    static double b(uint32_t word, int) { return float_of(word & ~0x1fffu); }
};
struct S8 {
    using Sum = uint32_t;  // wraps
    static constexpr int elements = 4;
    static uint32_t a(uint32_t word, int e) { return static_cast<uint32_t>(static_cast<int8_t>(word >> (8 * e))); }
    static uint32_t b(uint32_t word, int e) { return a(word, e); }
};
struct U8S8 : S8 {
    static uint32_t a(uint32_t word, int e) { return word >> (8 * e) & 0xff; }
};
struct S4 {
    using Sum = uint32_t;
    static constexpr int elements = 8;
    static uint32_t a(uint32_t word, int e) {
        return static_cast<uint32_t>(static_cast<int32_t>(word << (28 - 4 * e)) >> 28);
    }
    static uint32_t b(uint32_t word, int e) { return a(word, e); }
};
struct U4S4 : S4 {
    static uint32_t a(uint32_t word, int e) { return word >> (4 * e) & 0xf; }
};
struct B1 {
    using Sum = uint32_t;
    static constexpr int elements = 32;
    static uint32_t a(uint32_t word, int e) { return word >> e & 1; }
    static uint32_t b(uint32_t word, int e) { return a(word, e); }
};

uint32_t finish(double sum) { return bits_of(static_cast<float>(sum)); }
uint32_t finish(uint32_t sum) { return sum; }
double start(uint32_t word, double) { return float_of(word); }
uint32_t start(uint32_t word, uint32_t) { return word; }

template <typename Type>
void multiply(Arrival* const (&lanes)[warp_lanes]) {
    constexpr int per_register = Type::elements, depth = 8 * per_register;
    using Sum = typename Type::Sum;
    Sum a[16][depth], b[8][depth];
    for (int lane = 0; lane < static_cast<int>(warp_lanes); ++lane) {
        const int group = lane / 4, position = lane % 4;
        const uint32_t* const words = lanes[lane]->in;
        for (int e = 0; e < per_register; ++e) {
            for (int r = 0; r < 4; ++r)
                a[group + 8 * (r % 2)][per_register * (position + 4 * (r / 2)) + e] = Type::a(words[r], e);
            for (int r = 0; r < 2; ++r) b[group][per_register * (position + 4 * r) + e] = Type::b(words[4 + r], e);
        }
    }
    for (int lane = 0; lane < static_cast<int>(warp_lanes); ++lane) {
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
            Sum sum = start(lanes[lane]->in[6 + i], Sum());
            for (int k = 0; k < depth; ++k) sum += a[row][k] * b[column][k];
            lanes[lane]->out[i] = finish(sum);
        }
    }
}

}  // namespace

void multiply_matrices(Product kind, Arrival* const (&lanes)[warp_lanes]) {
    switch (kind) {
        case Product::f16:
            return multiply<F16>(lanes);
        case Product::bf16:
            return multiply<Bf16>(lanes);
        case Product::tf32:
            return multiply<Tf32>(lanes);
        case Product::s8:
            return multiply<S8>(lanes);
        case Product::u8s8:
            return multiply<U8S8>(lanes);
        case Product::s4:
            return multiply<S4>(lanes);
        case Product::u4s4:
            return multiply<U4S4>(lanes);
        case Product::b1:
            return multiply<B1>(lanes);
    }
}

}  // namespace cuda_emulation
