// Fake quantization: what is done with an element. channel_pass.cuh brings the elements, fake_quantize.h has the
// formulas.
//
// Bytes     One read and one write: an element of fp32 costs 8 bytes forward, 5 for codes, 12 backward (8 where only
//           dscale is asked for); of fp16 and bf16 half of that, codes 3. maximum 4 or 2. Sums leave less than 1 %.
// Work      About 15 instructions an element for pact and lsq, 35 for dorefa, whose tanh is the accurate one. A GPU has
//           some 70 (fp32) or 35 (fp16) of them for each element that it can read and write.
// Rounding  x / s is the correctly rounded division and rounding is half to even, in fp32 whatever the element's type:
//           forward, codes and backward agree on every element, and with the reference.
#include "cuda/fake_quantize.h"

#include <cmath>

#include "cuda/channel_pass.cuh"

namespace spos::cuda {
namespace {

// 2 to the -126: what is below is subnormal.
constexpr float smallest_normal = 1.17549435e-38f;

// max|tanh| from the largest magnitude: tanh grows with x, and this is the same tanh that the other passes take.
struct LargestTanh : Largest {
    __device__ static float finish(float total, double) { return tanhf(total); }
};

struct QuantizeCoefficients {
    float divisor;    // s, or dorefa's factor 1 / 2m of tanh(x)
    float low, high;  // of the codes, less the zero point
    float bound;      // pact's clip, or dorefa's factor 1 / m of dy
};

// What all passes have in common.
template <typename T, int inputs_, typename Reduction_ = None>
struct QuantizePass {
    using Element = T;
    using Coefficients = QuantizeCoefficients;
    using Reduction = Reduction_;
    static constexpr int inputs = inputs_, vector = vector_of<T>;

    QuantizeMethod method;
    int lowest, highest;
    const float* scale;
    const int32_t* zero_point;
    const T *x, *dy = nullptr;
    float* result = nullptr;
    double factor = 1;

    QuantizePass(const FakeQuantize& shape, const void* x, const float* scale, const int32_t* zero_point)
        : method(shape.method),
          lowest(shape.low),
          highest(shape.high),
          scale(scale),
          zero_point(zero_point),
          x(static_cast<const T*>(x)) {}

    __device__ __forceinline__ QuantizeCoefficients coefficients(int64_t channel) const {
        const float value = scale[channel], zero = zero_point ? static_cast<float>(zero_point[channel]) : 0.0f;
        QuantizeCoefficients k{value, lowest - zero, highest - zero, value};
        if (method == QuantizeMethod::pact) k.divisor = __fdiv_rn(value, static_cast<float>(highest));
        if (method == QuantizeMethod::dorefa) {
            const bool zeros = value < smallest_normal;
            k.divisor = zeros ? 0.0f : __fdiv_rn(0.5f, value);
            k.bound = zeros ? 0.0f : __fdiv_rn(1.0f, value);
        }
        return k;
    }
};

// The integer that an element is rounded to: the code, less the zero point. NaN stays NaN.
template <bool dorefa>
__device__ __forceinline__ float rounded(const QuantizeCoefficients& k, float x, float levels) {
    if constexpr (dorefa) return rintf(levels * fmaf(tanhf(x), k.divisor, 0.5f));
    const float v = __fdiv_rn(x, k.divisor);
    return rintf(v < k.low ? k.low : v > k.high ? k.high : v);
}

template <typename T, bool dorefa>
struct Forward : QuantizePass<T, 1> {
    using Base = QuantizePass<T, 1>;
    using Base::vector;
    T* y;
    float levels, reciprocal;

    Forward(const FakeQuantize& shape, const void* x, const float* scale, const int32_t* zero_point, void* y)
        : Base(shape, x, scale, zero_point),
          y(static_cast<T*>(y)),
          levels(static_cast<float>(shape.high - shape.low)),
          reciprocal(1.0f / levels) {}

    __device__ __forceinline__ float visit(const QuantizeCoefficients& k, float x, float, float&) const {
        const float code = rounded<dorefa>(k, x, levels);
        if constexpr (!dorefa) return code * k.divisor;
        // (2c - n) / n to the bit, from n's reciprocal: the remainder of the first product corrects it.
        const float value = fmaf(2.0f, code, -levels), quotient = value * reciprocal;
        return fmaf(fmaf(-quotient, levels, value), reciprocal, quotient);
    }
    __device__ __forceinline__ void store(int64_t at, const float (&results)[vector], bool aligned) const {
        store_some(y + at, vector, aligned, results);
    }
    __device__ __forceinline__ void store_one(int64_t at, float value) const { y[at] = from_float<T>(value); }
};

template <typename T, bool dorefa>
struct Codes : QuantizePass<T, 1> {
    using Base = QuantizePass<T, 1>;
    using Base::vector;
    uint8_t* codes;
    float levels;

    Codes(const FakeQuantize& shape, const void* x, const float* scale, const int32_t* zero_point, uint8_t* codes)
        : Base(shape, x, scale, zero_point), codes(codes), levels(static_cast<float>(shape.high - shape.low)) {}

    __device__ __forceinline__ float visit(const QuantizeCoefficients& k, float x, float, float&) const {
        const float code = rounded<dorefa>(k, x, levels), lowest = static_cast<float>(this->lowest);
        return fmaxf(dorefa ? code : code + (lowest - k.low), lowest);  // NaN: the lowest
    }
    __device__ __forceinline__ void store(int64_t at, const float (&results)[vector], bool aligned) const {
        unsigned words[vector / 4] = {};
#pragma unroll
        for (int i = 0; i < vector; ++i) words[i / 4] |= byte_of(results[i]) << (8 * (i % 4));
        if (!aligned) {
#pragma unroll
            for (int i = 0; i < vector; ++i) codes[at + i] = static_cast<uint8_t>(words[i / 4] >> (8 * (i % 4)));
        } else if constexpr (vector == 4) {
            *reinterpret_cast<unsigned*>(codes + at) = words[0];
        } else {
            *reinterpret_cast<uint2*>(codes + at) = make_uint2(words[0], words[1]);
        }
    }
    __device__ __forceinline__ void store_one(int64_t at, float value) const {
        codes[at] = static_cast<uint8_t>(byte_of(value));
    }
    __device__ __forceinline__ static unsigned byte_of(float code) { return __float2int_rn(code) & 0xff; }
};

template <typename T, QuantizeMethod method>
struct Backward : QuantizePass<T, 2, std::conditional_t<method == QuantizeMethod::dorefa, None, Sum>> {
    using Base = QuantizePass<T, 2, std::conditional_t<method == QuantizeMethod::dorefa, None, Sum>>;
    using Base::vector;
    T* dx;

    Backward(const FakeQuantize& shape, const void* dy, const void* x, const float* scale, const int32_t* zero_point,
             void* dx, float* dscale)
        : Base(shape, x, scale, zero_point), dx(static_cast<T*>(dx)) {
        this->dy = static_cast<const T*>(dy);
        this->result = dscale;
        const double governed = static_cast<double>(shape.outer * shape.inner) * std::max(shape.high, 1);
        if (method == QuantizeMethod::lsq) this->factor = 1 / std::sqrt(governed);
    }

    __device__ __forceinline__ float visit(const QuantizeCoefficients& k, float x, float dy, float& sum) const {
        if constexpr (method == QuantizeMethod::dorefa) {
            const float tanh = tanhf(x);
            return dy * k.bound * fmaf(-tanh, tanh, 1.0f);
        } else if constexpr (method == QuantizeMethod::pact) {
            if (x >= k.bound) sum += dy;
            return 0.0f < x && x < k.bound ? dy : 0.0f;
        } else {
            const float v = __fdiv_rn(x, k.divisor);
            const float coefficient = v <= k.low ? k.low : v >= k.high ? k.high : rintf(v) - v;
            sum = fmaf(dy, coefficient, sum);
            return k.low <= v && v <= k.high ? dy : 0.0f;
        }
    }
    __device__ __forceinline__ void store(int64_t at, const float (&results)[vector], bool aligned) const {
        if (dx) store_some(dx + at, vector, aligned, results);
    }
    __device__ __forceinline__ void store_one(int64_t at, float value) const {
        if (dx) dx[at] = from_float<T>(value);
    }
};

template <typename T>
struct Maximum : QuantizePass<T, 1, LargestTanh> {
    using Base = QuantizePass<T, 1, LargestTanh>;
    struct Coefficients {};  // it reads no scale

    Maximum(const FakeQuantize& shape, const void* x, float* maximum) : Base(shape, x, nullptr, nullptr) {
        this->result = maximum;
    }

    __device__ __forceinline__ Coefficients coefficients(int64_t) const { return {}; }
    __device__ __forceinline__ float visit(const Coefficients&, float x, float, float& largest) const {
        return largest = Largest::add(largest, fabsf(x));
    }
    __device__ __forceinline__ void store(int64_t, const float (&)[Base::vector], bool) const {}
    __device__ __forceinline__ void store_one(int64_t, float) const {}
};

template <typename T>
PassPlan plan_of(const FakeQuantize& shape, bool reduces) {
    return PassPlan(shape.outer, shape.channels, shape.inner, vector_of<T>, reduces);
}

bool multiple_of(int bytes, std::initializer_list<const void*> pointers) {
    return std::all_of(pointers.begin(), pointers.end(),
                       [=](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; });
}

}  // namespace

int64_t fake_quantize_workspace(const FakeQuantize& shape, Element element) {
    return with_element(element, [&](auto zero) {
        const PassPlan plan = plan_of<decltype(zero)>(shape, true);
        return plan.needs_second_kernel() ? plan.partials(vector_of<decltype(zero)>) : 0;
    });
}

int fake_quantize_forward(const FakeQuantize& shape, Element element, const void* x, const float* scale,
                          const int32_t* zero_point, void* y, void* stream) {
    return with_element(element, [&](auto zero) {
        using T = decltype(zero);
        PassPlan plan = plan_of<T>(shape, false);
        plan.aligned = multiple_of(16, {x, y});
        const auto run = [&](const auto& op) { return run_pass(op, plan, nullptr, static_cast<cudaStream_t>(stream)); };
        return shape.method == QuantizeMethod::dorefa ? run(Forward<T, true>(shape, x, scale, zero_point, y))
                                                      : run(Forward<T, false>(shape, x, scale, zero_point, y));
    });
}

int fake_quantize_codes(const FakeQuantize& shape, Element element, const void* x, const float* scale,
                        const int32_t* zero_point, uint8_t* codes, void* stream) {
    return with_element(element, [&](auto zero) {
        using T = decltype(zero);
        PassPlan plan = plan_of<T>(shape, false);
        plan.aligned = multiple_of(16, {x}) && multiple_of(vector_of<T>, {codes});
        const auto run = [&](const auto& op) { return run_pass(op, plan, nullptr, static_cast<cudaStream_t>(stream)); };
        return shape.method == QuantizeMethod::dorefa ? run(Codes<T, true>(shape, x, scale, zero_point, codes))
                                                      : run(Codes<T, false>(shape, x, scale, zero_point, codes));
    });
}

int fake_quantize_backward(const FakeQuantize& shape, Element element, const void* dy, const void* x,
                           const float* scale, const int32_t* zero_point, void* dx, float* dscale, float* workspace,
                           void* stream) {
    return with_element(element, [&](auto zero) {
        using T = decltype(zero);
        using Method = QuantizeMethod;
        PassPlan plan = plan_of<T>(shape, dscale != nullptr);
        plan.aligned = multiple_of(16, {dy, x, dx});
        const auto run = [&](const auto& op) {
            return run_pass(op, plan, workspace, static_cast<cudaStream_t>(stream));
        };
        switch (shape.method) {
            case Method::dorefa:
                return run(Backward<T, Method::dorefa>(shape, dy, x, scale, zero_point, dx, nullptr));
            case Method::pact:
                return run(Backward<T, Method::pact>(shape, dy, x, scale, zero_point, dx, dscale));
            default:
                return run(Backward<T, Method::lsq>(shape, dy, x, scale, zero_point, dx, dscale));
        }
    });
}

int fake_quantize_maximum(const FakeQuantize& shape, Element element, const void* x, float* maximum, float* workspace,
                          void* stream) {
    return with_element(element, [&](auto zero) {
        using T = decltype(zero);
        PassPlan plan = plan_of<T>(shape, true);
        plan.aligned = multiple_of(16, {x});
        return run_pass(Maximum<T>(shape, x, maximum), plan, workspace, static_cast<cudaStream_t>(stream));
    });
}

}  // namespace spos::cuda
