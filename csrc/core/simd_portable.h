// One 16-byte vector, and a vector of one element for tensors narrower than that, in the compilers' vector extension:
// any processor runs it. Multiply and add round separately.
#pragma once

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
