// One 16-byte vector, and a vector of one element for tensors narrower than that, in the compilers' vector extension:
// any processor runs it. Multiply and add round separately.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace spos {
namespace {

template <typename T>
struct Vector128 {
    using Scalar = T;
    static constexpr int lanes = 16 / sizeof(T);
    static constexpr int registers = 16;
    typedef T Value __attribute__((vector_size(16)));

    static Value zero() { return Value{}; }
    static Value load(const T* from) {
        Value value;
        std::memcpy(&value, from, sizeof value);
        return value;
    }
    static void store(T* to, Value value) { std::memcpy(to, &value, sizeof value); }
    static Value add(Value a, Value b) { return a + b; }
    static Value multiply_add(Value a, Value b, Value c) { return a * b + c; }

    static Value broadcast(const T* from) { return *from - Value{}; }
    static Value subtract(Value a, Value b) { return a - b; }
    // The first `count` lanes, 1 to `lanes` of them; the others are zero and their memory is not touched.
    static Value load_first(const T* from, int count) {
        Value value{};
        std::memcpy(&value, from, sizeof(T) * static_cast<size_t>(count));
        return value;
    }
    static void store_first(T* to, Value value, int count) {
        std::memcpy(to, &value, sizeof(T) * static_cast<size_t>(count));
    }
    // max(value, 0), NaN stays NaN.
    static Value relu(Value value) { return value < 0 ? Value{} : value; }
    // value where condition > 0, else 0.
    static Value where_positive(Value condition, Value value) { return condition > 0 ? value : Value{}; }
    // a[0] a[2] .. b[0] b[2] .., and the odd ones.
    static void deinterleave(Value a, Value b, Value& even, Value& odd) {
        Value first{}, second{};
        for (int i = 0; i < lanes / 2; ++i) {
            first[i] = a[2 * i];
            second[i] = a[2 * i + 1];
            first[lanes / 2 + i] = b[2 * i];
            second[lanes / 2 + i] = b[2 * i + 1];
        }
        even = first;
        odd = second;
    }
    // even[0] odd[0] even[1] .., and the rest.
    static void interleave(Value even, Value odd, Value& low, Value& high) {
        Value first{}, second{};
        for (int i = 0; i < lanes / 2; ++i) {
            first[2 * i] = even[i];
            first[2 * i + 1] = odd[i];
            second[2 * i] = even[lanes / 2 + i];
            second[2 * i + 1] = odd[lanes / 2 + i];
        }
        low = first;
        high = second;
    }

    using Mask = decltype(Value{} < Value{});
    static constexpr bool fused = false;
    static Value multiply(Value a, Value b) { return a * b; }
    static Value divide(Value a, Value b) { return a / b; }
    // Of two equal values, and where either is NaN: b.
    static Value minimum(Value a, Value b) { return a < b ? a : b; }
    static Value maximum(Value a, Value b) { return a > b ? a : b; }
    // To the nearest integer, half to even; |value| below 2^22. NaN stays NaN. Beside the constant there is no room for
    // digits behind the point, and a function of the library would be a call for each element.
    static Value round(Value value) {
        const T no_fractions = sizeof(T) == 4 ? T(0x1.8p23) : T(0x1.8p52);
        return (value + no_fractions) - no_fractions;
    }
    // False where either is NaN.
    static Mask less(Value a, Value b) { return a < b; }
    static Mask less_equal(Value a, Value b) { return a <= b; }
    static Mask both(Mask a, Mask b) { return a & b; }
    static Value select(Mask mask, Value yes, Value no) { return mask ? yes : no; }
    // max(largest, |value|) for largest >= 0; NaN, once met, stays.
    static Value largest_magnitude(Value largest, Value value) {
        const Value magnitude = value < 0 ? -value : value;
        return (magnitude > largest) | (magnitude != magnitude) ? magnitude : largest;
    }
    static Value tanh(Value value) {
        for (int i = 0; i < lanes; ++i) value[i] = std::tanh(value[i]);
        return value;
    }
    // Past the caches where there is an instruction for it, to an address that is a multiple of the vector.
    static void stream(T* to, Value value) { store(to, value); }
    static void fence() {}
    // Integral values of which each fits into 8 bits, signed or not: the first `count`.
    static void store_bytes(uint8_t* to, Value value, int count) {
        for (int i = 0; i < count; ++i) to[i] = static_cast<uint8_t>(static_cast<int>(value[i]));
    }
};

template <typename T>
struct VectorOfOne {
    using Scalar = T;
    static constexpr int lanes = 1;
    static constexpr int registers = 16;
    using Value = T;

    static Value zero() { return 0; }
    static Value load(const T* from) { return *from; }
    static void store(T* to, Value value) { *to = value; }
    static Value add(Value a, Value b) { return a + b; }
    static Value multiply_add(Value a, Value b, Value c) { return a * b + c; }
};

}  // namespace
}  // namespace spos
