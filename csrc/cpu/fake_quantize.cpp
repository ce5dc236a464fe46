// The passes of fake_quantize.h: how a tensor is cut into pieces, what is computed once for each channel, how the sums
// of the pieces come together.
#include "cpu/fake_quantize.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "core/parallel.h"
#include "cpu/fake_quantize_body.h"

namespace spos {
namespace {

constexpr int64_t widest_vector = 16;
constexpr int64_t coefficient_arrays = 4;

// From this size on, what a pass writes leaves the caches before anyone reads it, and is written past them: otherwise
// each of its lines would be read first.
constexpr int64_t stream_bytes = 32 << 20;

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

template <typename T>
FakeQuantizeBody<T> body_for([[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
    if constexpr (std::is_same_v<T, float>) {
        if (isa >= Isa::avx512) return fake_quantize_body_avx512();
        if (isa == Isa::avx2) return fake_quantize_body_avx2();
    }
#endif
    return fake_quantize_body_portable<T>();
}

// One pass with its workspace: the pieces' sums, a total for every channel, then the arrays of coefficients.
template <typename T>
class Call {
  public:
    Call(Isa isa, const FakeQuantize& shape, const T* x, void* workspace)
        : job{FakeQuantizePlan(shape)}, body(body_for<T>(isa)), sums_(static_cast<double*>(workspace)) {
        const int64_t length = round_up(job.plan.coefficients(), widest_vector);
        totals_ = sums_ + job.plan.sums();
        job.divisor = reinterpret_cast<T*>(totals_ + job.plan.channels);
        job.low = job.divisor + length;
        job.high = job.low + length;
        job.bound = job.high + length;
        std::fill_n(job.divisor, coefficient_arrays * length, T(1));
        job.method = shape.method;
        job.lowest_code = shape.low;
        job.levels = shape.high - shape.low;
        job.x = x;
    }

    void set_coefficients(const FakeQuantize& shape, const T* scale, const T* zero_point) {
        for_coefficients([&](int64_t i, int64_t channel) {
            const T value = scale[channel], zero = zero_point ? zero_point[channel] : T(0);
            if (shape.method == QuantizeMethod::dorefa) {
                // Factors of tanh(x) and dy; NaN stays NaN.
                const bool zeros = value < std::numeric_limits<T>::min();
                job.divisor[i] = zeros ? 0 : 1 / (2 * value);
                job.bound[i] = zeros ? 0 : 1 / value;
            } else {
                job.divisor[i] = shape.method == QuantizeMethod::pact ? value / static_cast<T>(shape.high) : value;
                job.bound[i] = value;
            }
            job.low[i] = static_cast<T>(shape.low) - zero;
            job.high[i] = static_cast<T>(shape.high) - zero;
        });
    }

    void write_past_caches_if_large(const T* output) {
        const bool large = job.plan.size * static_cast<int64_t>(sizeof(T)) >= stream_bytes;
        const int64_t row = job.plan.by_columns ? job.plan.columns : job.plan.run;
        const bool aligned = reinterpret_cast<uintptr_t>(output) % (widest_vector * sizeof(T)) == 0;
        job.stream = large && aligned && (row % widest_vector == 0 || row == job.plan.size);
    }

    void run(void (*pieces)(const FakeQuantizeJob<T>&, int64_t, int64_t), int threads) const {
        parallel_for(job.plan.pieces(), threads, [&](int64_t begin, int64_t end) { pieces(job, begin, end); });
    }

    void ask_for_sums() { job.sums = sums_; }

    // The sums of each channel, combined in an order that the shape fixes. They are used up.
    template <typename Combine>
    const double* totals(const Combine& combine) {
        const FakeQuantizePlan& plan = job.plan;
        std::fill_n(totals_, plan.channels, 0.0);
        if (plan.by_columns) {
            for (const double* row = sums_ + plan.columns; row < sums_ + plan.sums(); row += plan.columns)
                for (int64_t i = 0; i < plan.columns; ++i) sums_[i] = combine(sums_[i], row[i]);
            for_coefficients(
                [&](int64_t i, int64_t channel) { totals_[channel] = combine(totals_[channel], sums_[i]); });
        } else {
            const int64_t rows = plan.size / (plan.run * plan.channels);
            const double* next = sums_;
            for (int64_t row = 0; row < rows; ++row)
                for (int64_t channel = 0; channel < plan.channels; ++channel)
                    for (int64_t split = 0; split < plan.splits; ++split, ++next)
                        totals_[channel] = combine(totals_[channel], *next);
        }
        return totals_;
    }

    FakeQuantizeJob<T> job;
    const FakeQuantizeBody<T> body;

  private:
    // Calls visit(index of a coefficient, its channel) for all of them.
    template <typename Visit>
    void for_coefficients(const Visit& visit) const {
        const int64_t count = job.plan.coefficients(), run = job.plan.by_columns ? job.plan.run : 1;
        for (int64_t i = 0; i < count;)
            for (int64_t channel = 0; channel < job.plan.channels; ++channel)
                for (const int64_t end = i + run; i < end; ++i) visit(i, channel);
    }

    double *sums_, *totals_;
};

}  // namespace

FakeQuantizePlan::FakeQuantizePlan(const FakeQuantize& shape)
    : size(shape.size()), run(shape.inner), channels(shape.channels) {
    const int64_t period = channels * run;
    by_columns = channels > 1 && (run == 1 || (run <= longest_short_run && period <= most_columns));
    if (!by_columns) {
        columns = rows = 0;
        splits = (run + run_piece - 1) / run_piece;
        return;
    }
    // As many periods in a row as make its vectors whole, and more than a few of them.
    int64_t times = 1;
    while (times * period < 4 * widest_vector || times * period % widest_vector != 0) ++times;
    columns = times <= shape.outer && times * period <= most_columns ? times * period : period;
    splits = (columns + most_columns - 1) / most_columns;
    rows = std::max<int64_t>(block_size / std::min(columns, most_columns), 1);
}

int64_t FakeQuantizePlan::pieces() const {
    return by_columns ? (size + rows * columns - 1) / (rows * columns) * splits : size / run * splits;
}

int64_t FakeQuantizePlan::sums() const { return by_columns ? pieces() / splits * columns : pieces(); }

size_t fake_quantize_workspace(const FakeQuantize& shape, size_t element_size) {
    const FakeQuantizePlan plan(shape);
    const int64_t coefficients = coefficient_arrays * round_up(plan.coefficients(), widest_vector);
    return static_cast<size_t>(plan.sums() + plan.channels) * sizeof(double) +
           static_cast<size_t>(coefficients) * element_size;
}

template <typename T>
void fake_quantize_forward(Isa isa, const FakeQuantize& shape, const T* x, const T* scale, const T* zero_point, T* y,
                           void* workspace, int threads) {
    Call<T> call(isa, shape, x, workspace);
    call.set_coefficients(shape, scale, zero_point);
    call.job.y = y;
    call.write_past_caches_if_large(y);
    call.run(call.body.forward, threads);
}

template <typename T>
void fake_quantize_codes(Isa isa, const FakeQuantize& shape, const T* x, const T* scale, const T* zero_point,
                         uint8_t* codes, void* workspace, int threads) {
    Call<T> call(isa, shape, x, workspace);
    call.set_coefficients(shape, scale, zero_point);
    call.job.codes = codes;
    call.run(call.body.codes, threads);
}

template <typename T>
void fake_quantize_backward(Isa isa, const FakeQuantize& shape, const T* dy, const T* x, const T* scale,
                            const T* zero_point, T* dx, T* dscale, void* workspace, int threads) {
    Call<T> call(isa, shape, x, workspace);
    call.set_coefficients(shape, scale, zero_point);
    call.job.dy = dy;
    call.job.dx = dx;
    if (dx) call.write_past_caches_if_large(dx);
    if (dscale) call.ask_for_sums();
    call.run(call.body.backward, threads);
    if (!dscale) return;
    const double* totals = call.totals([](double a, double b) { return a + b; });
    const double governed = static_cast<double>(shape.outer * shape.inner) * std::max(shape.high, 1);
    const double factor = shape.method == QuantizeMethod::lsq ? 1 / std::sqrt(governed) : 1;
    for (int64_t channel = 0; channel < shape.channels; ++channel)
        dscale[channel] = static_cast<T>(factor * totals[channel]);
}

template <typename T>
void fake_quantize_maximum(Isa isa, const FakeQuantize& shape, const T* x, T* maximum, void* workspace, int threads) {
    Call<T> call(isa, shape, x, workspace);
    call.ask_for_sums();
    call.run(call.body.maximum, threads);
    const double* totals = call.totals([](double a, double b) { return b > a || b != b ? b : a; });
    for (int64_t channel = 0; channel < shape.channels; ++channel) maximum[channel] = static_cast<T>(totals[channel]);
    // tanh grows with x: the tanh of the largest magnitude is the largest, to the bit that the other passes see there.
    call.body.tanh(maximum, shape.channels);
}

#define SPOS_INSTANTIATE(T)                                                                                          \
    template void fake_quantize_forward(Isa, const FakeQuantize&, const T*, const T*, const T*, T*, void*, int);     \
    template void fake_quantize_codes(Isa, const FakeQuantize&, const T*, const T*, const T*, uint8_t*, void*, int); \
    template void fake_quantize_backward(Isa, const FakeQuantize&, const T*, const T*, const T*, const T*, T*, T*,   \
                                         void*, int);                                                                \
    template void fake_quantize_maximum(Isa, const FakeQuantize&, const T*, T*, void*, int);
SPOS_INSTANTIATE(float)
SPOS_INSTANTIATE(double)
#undef SPOS_INSTANTIATE

}  // namespace spos
