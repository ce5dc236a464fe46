// tanh of a vector of floats to within two units in the last place, in multiply-adds and two divisions.
//
// Method  Below 0.625 an odd polynomial in x; above, 1 - 2 / (exp(2 |x|) + 1) with the sign of x. Both polynomials are
//         those of S. Moshier's Cephes library (tanhf.c, expf.c).
#pragma once

#include "core/unroll.h"

namespace spos {
namespace {

template <class V>
SPOS_INLINE typename V::Value tanh_polynomial(typename V::Value x) {
    using Value = typename V::Value;
    const auto all = [](float value) { return V::broadcast(&value); };

    const Value square = V::multiply(x, x);
    Value odd = V::multiply_add(square, all(-5.70498872745e-3f), all(2.06390887954e-2f));
    odd = V::multiply_add(odd, square, all(-5.37397155531e-2f));
    odd = V::multiply_add(odd, square, all(1.33314422036e-1f));
    odd = V::multiply_add(odd, square, all(-3.33332819422e-1f));
    const Value near = V::multiply_add(V::multiply(odd, square), x, x);

    // From 9.02 on the result is 1. NaN passes: a minimum takes its second argument then.
    const Value magnitude = V::absolute(x);
    const Value twice = V::add(V::minimum(all(10.0f), magnitude), V::minimum(all(10.0f), magnitude));
    const Value exponent = V::round(V::multiply(twice, all(1.44269504089f)));
    Value rest = V::multiply_add(exponent, all(-0.693359375f), twice);
    rest = V::multiply_add(exponent, all(2.12194440e-4f), rest);
    Value exp = V::multiply_add(rest, all(1.9875691500e-4f), all(1.3981999507e-3f));
    exp = V::multiply_add(exp, rest, all(8.3334519073e-3f));
    exp = V::multiply_add(exp, rest, all(4.1665795894e-2f));
    exp = V::multiply_add(exp, rest, all(1.6666665459e-1f));
    exp = V::multiply_add(exp, rest, all(5.0000001201e-1f));
    exp = V::add(V::multiply_add(exp, V::multiply(rest, rest), rest), all(1.0f));
    exp = V::times_power_of_two(exp, exponent);
    const Value far = V::subtract(all(1.0f), V::divide(all(2.0f), V::add(exp, all(1.0f))));

    return V::select(V::less(magnitude, all(0.625f)), near, V::with_sign_of(far, x));
}

}  // namespace
}  // namespace spos
