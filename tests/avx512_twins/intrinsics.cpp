// Compares AVX-512 intrinsics with a statement of what each does to one lane, on random and special values. Compiled
// with the names of csrc/avx512_twins in front it is a test of the twins, and for AVX-512 one of the statements.
#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <type_traits>

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();

std::mt19937_64 generator(1);
uint64_t draw(uint64_t below) { return generator() % below; }

float draw_float() {
    const float special[] = {0.0f,  -0.0f,  infinity, -infinity, nan,     -nan,          1.0f,
                             -1.0f, 0.5f,   1.5f,     127.5f,    -2.5f,   2147483648.0f, -2147483648.0f,
                             3e9f,  1e-40f, -1e-45f,  3.4e38f,   -3.4e38f};
    if (draw(3) == 0) return special[draw(sizeof special / sizeof *special)];
    if (draw(2) == 0) return static_cast<float>(static_cast<int64_t>(draw(1024)) - 512) / 4;
    const uint32_t bits = static_cast<uint32_t>(generator());
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return std::isnan(value) ? nan : value;  // quiet ones
}

uint8_t draw_byte() { return static_cast<uint8_t>(draw(4) ? generator() : draw(2) ? 0xff : draw(2) ? 0x80 : 0x7f); }

// Lanes as numbers, and as what the intrinsics take.
template <typename T>
struct Lanes {
    alignas(64) T at[64 / sizeof(T)];
    T operator[](int i) const { return at[i]; }
    template <typename U>
    U as(int i) const {
        U value;
        std::memcpy(&value, reinterpret_cast<const char*>(at) + static_cast<size_t>(i) * sizeof(U), sizeof value);
        return value;
    }
    template <typename Vector>
    Vector vector() const {
        Vector to;
        std::memcpy(&to, at, sizeof to);
        return to;
    }
    operator __m512() const { return vector<__m512>(); }
    operator __m512d() const { return vector<__m512d>(); }
    operator __m512i() const { return vector<__m512i>(); }
};

Lanes<float> f, g, h;
Lanes<double> d, e, k;
Lanes<uint8_t> a, b, c;
uint64_t mask;
bool has(int lane) { return (mask >> lane & 1) != 0; }

void draw_lanes() {
    for (auto* lanes : {&f, &g, &h})
        for (float& lane : lanes->at) lane = draw_float();
    for (auto* lanes : {&d, &e, &k})
        for (double& lane : lanes->at) lane = draw(2) ? draw_float() / 3.0 : draw_float();
    for (auto* lanes : {&a, &b, &c})
        for (uint8_t& lane : lanes->at) lane = draw_byte();
    if (draw(4) == 0) g = f, b = a, e = d;
    mask = draw(4) ? generator() : draw(2) ? ~uint64_t{0} : 0;
}

template <typename T>
bool same(T x, T y) {
    if constexpr (std::is_floating_point_v<T>)
        if (std::isnan(x)) return std::isnan(y);
    return std::memcmp(&x, &y, sizeof x) == 0;
}

template <typename T, typename Result, typename Definition>
void check(const char* call, const Result& result, Definition definition) {
    T lanes[sizeof result / sizeof(T)];
    std::memcpy(lanes, &result, sizeof result);
    for (int i = 0; i < static_cast<int>(sizeof result / sizeof(T)); ++i) {
        if (same(lanes[i], static_cast<T>(definition(i)))) continue;
        std::printf("%s: lane %d is not as defined\n", call, i);
        std::exit(1);
    }
}
// T: the type of a lane of the result. `definition`: what lane i is.
#define CHECK(T, call, definition) check<T>(#call, call, [&]([[maybe_unused]] int i) { return definition; })

void check_floats() {
    const auto m = static_cast<__mmask16>(mask);
    CHECK(float, _mm512_add_ps(f, g), f[i] + g[i]);
    CHECK(float, _mm512_sub_ps(f, g), f[i] - g[i]);
    CHECK(float, _mm512_mul_ps(f, g), f[i] * g[i]);
    CHECK(float, _mm512_div_ps(f, g), f[i] / g[i]);
    CHECK(float, _mm512_fmadd_ps(f, g, h), std::fma(f[i], g[i], h[i]));
    CHECK(double, _mm512_add_pd(d, e), d[i] + e[i]);
    CHECK(double, _mm512_mul_pd(d, e), d[i] * e[i]);
    CHECK(double, _mm512_fmadd_pd(d, e, k), std::fma(d[i], e[i], k[i]));
    CHECK(uint32_t, _mm512_abs_ps(a), a.as<uint32_t>(i) & 0x7fffffff);
    CHECK(uint32_t, _mm512_and_ps(a, b), a.as<uint32_t>(i) & b.as<uint32_t>(i));
    CHECK(uint32_t, _mm512_or_ps(a, b), a.as<uint32_t>(i) | b.as<uint32_t>(i));
    CHECK(float, _mm512_mask_mov_ps(f, m, g), has(i) ? g[i] : f[i]);
    CHECK(float, _mm512_maskz_mov_ps(m, g), has(i) ? g[i] : 0);
    CHECK(float, _mm512_mask_max_ps(h, m, f, g), !has(i) ? h[i] : f[i] > g[i] ? f[i] : g[i]);
    CHECK(float, _mm512_mask_min_ps(h, m, f, g), !has(i) ? h[i] : f[i] < g[i] ? f[i] : g[i]);
    CHECK(double, _mm512_mask_max_pd(k, static_cast<__mmask8>(m), d, e), !has(i) ? k[i] : d[i] > e[i] ? d[i] : e[i]);
    // std::nearbyint rounds a half to even, as nobody has changed the mode.
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    CHECK(float, _mm512_mask_roundscale_ps(h, m, f, nearest), has(i) ? std::nearbyint(f[i]) : h[i]);
    CHECK(int32_t, _mm512_maskz_cvtps_epi32(m, f),
          !has(i) ? 0
          : std::nearbyint(f[i]) >= -2147483648.0f && std::nearbyint(f[i]) < 2147483648.0f
              ? static_cast<int32_t>(std::nearbyint(f[i]))
              : std::numeric_limits<int32_t>::min());
    const auto bits = [&](auto predicate) {
        unsigned to = 0;
        for (int i = 0; i < 16; ++i) to |= static_cast<unsigned>(predicate(f[i], g[i])) << i;
        return to;
    };
    CHECK(uint16_t, _mm512_cmp_ps_mask(f, g, _CMP_LT_OQ), bits([](float x, float y) { return x < y; }));
    CHECK(uint16_t, _mm512_cmp_ps_mask(f, g, _CMP_LE_OQ), bits([](float x, float y) { return x <= y; }));
    CHECK(uint16_t, _mm512_cmp_ps_mask(f, g, _CMP_GT_OQ), bits([](float x, float y) { return x > y; }));
}

// The manual's table of special cases, and where there is none, double precision, which rounds to float once.
float scaled(float x, float y) {
    if (std::isnan(x)) return y == infinity ? infinity : y == -infinity ? 0.0f : nan;
    if (std::isnan(y)) return nan;
    if (std::isinf(x)) return y == -infinity ? nan : x;
    if (x == 0) return y == infinity ? nan : x;
    if (std::isinf(y)) return std::copysign(y > 0 ? infinity : 0.0f, x);
    const double limited = std::fmax(-500.0, std::fmin(500.0, std::floor(static_cast<double>(y))));
    return static_cast<float>(x * std::exp2(limited));
}

void check_scalef() {
    const auto m = static_cast<__mmask16>(mask);
    CHECK(float, _mm512_mask_scalef_ps(h, m, f, g), has(i) ? scaled(f[i], g[i]) : h[i]);
}

void check_integers() {
    const auto m = static_cast<__mmask16>(mask);
    const auto a32 = [](int i) { return a.as<uint32_t>(i); };
    const auto b32 = [](int i) { return b.as<uint32_t>(i); };
    const auto a64 = [](int i) { return a.as<uint64_t>(i); };
    const auto b64 = [](int i) { return b.as<uint64_t>(i); };
    CHECK(uint64_t, _mm512_and_si512(a, b), a64(i) & b64(i));
    CHECK(uint32_t, _mm512_add_epi32(a, b), a32(i) + b32(i));
    CHECK(uint64_t, _mm512_add_epi64(a, b), a64(i) + b64(i));
    CHECK(uint8_t, _mm512_sub_epi8(a, b), a[i] - b[i]);
    for (const unsigned by : {0u, 3u, 15u, 16u})
        CHECK(uint16_t, _mm512_sll_epi16(a, _mm_cvtsi32_si128(static_cast<int>(by))),
              by < 16 ? a.as<uint16_t>(i) << by : 0);
    for (const unsigned by : {0u, 3u, 7u, 31u, 40u})
        CHECK(int32_t, _mm512_srai_epi32(a, by), a.as<int32_t>(i) >> (by < 31 ? by : 31));
    CHECK(int32_t, _mm512_maskz_max_epi32(m, a, b), has(i) ? std::max(a.as<int32_t>(i), b.as<int32_t>(i)) : 0);
    CHECK(uint64_t, _mm512_popcnt_epi64(a), __builtin_popcountll(a64(i)));
    CHECK(uint64_t, _mm512_reduce_add_epi64(a),
          a64(0) + a64(1) + a64(2) + a64(3) + a64(4) + a64(5) + a64(6) + a64(7) + 0 * static_cast<uint64_t>(i));
    CHECK(uint32_t, _mm512_cvtepi64_epi32(a), a32(2 * i));
    CHECK(uint32_t, _mm512_unpacklo_epi32(a, b), (i % 2 ? b32 : a32)(i / 4 * 4 + i % 4 / 2));
    CHECK(uint32_t, _mm512_unpackhi_epi32(a, b), (i % 2 ? b32 : a32)(i / 4 * 4 + i % 4 / 2 + 2));
    CHECK(uint64_t, _mm512_unpacklo_epi64(a, b), (i % 2 ? b64 : a64)(i / 2 * 2));
    CHECK(uint64_t, _mm512_unpackhi_epi64(a, b), (i % 2 ? b64 : a64)(i / 2 * 2 + 1));
    CHECK(uint32_t, _mm512_castsi512_ps(a), a32(i));
    CHECK(uint32_t, _mm512_castps_si512(a), a32(i));
    CHECK(uint32_t, _mm512_castsi512_si256(a), a32(i));
    CHECK(uint32_t, _mm512_extracti64x4_epi64(a, 0), a32(i));
    CHECK(uint32_t, _mm512_extracti64x4_epi64(a, 1), a32(i + 8));
    const auto differences = [](int i) {
        uint64_t sum = 0;
        for (int j = 8 * i; j < 8 * i + 8; ++j) sum += static_cast<uint64_t>(std::abs(a[j] - b[j]));
        return sum;
    };
    CHECK(uint64_t, _mm512_sad_epu8(a, b), differences(i));
    const auto products = [](int i) {
        uint32_t sum = c.as<uint32_t>(i);
        for (int j = 4 * i; j < 4 * i + 4; ++j) sum += static_cast<uint32_t>(a[j] * static_cast<int8_t>(b[j]));
        return sum;
    };
    CHECK(uint32_t, _mm512_dpbusd_epi32(c, a, b), products(i));
    uint64_t common = 0;
    for (int i = 0; i < 64; ++i) common |= static_cast<uint64_t>((a[i] & b[i]) != 0) << i;
    CHECK(uint64_t, _mm512_test_epi8_mask(a, b), common);
    CHECK(uint8_t, _mm512_permutexvar_epi8(b, a), a[b[i] % 64]);
    const auto shifted = [&](int i) {
        unsigned byte = 0;
        for (int bit = 0; bit < 8; ++bit) byte |= static_cast<unsigned>(a64(i / 8) >> (b[i] + bit) % 64 & 1) << bit;
        return byte;
    };
    CHECK(uint8_t, _mm512_multishift_epi64_epi8(b, a), shifted(i));
    CHECK(float, _mm512_permutex2var_ps(f, b, g),
          b32(i) % 32 < 16 ? f[static_cast<int>(b32(i) % 16)] : g[static_cast<int>(b32(i) % 16)]);
}

void check_constants() {
    CHECK(float, _mm512_setzero_ps(), 0.0f);
    CHECK(double, _mm512_setzero_pd(), 0.0);
    CHECK(uint64_t, _mm512_setzero_si512(), 0);
    CHECK(float, _mm512_set1_ps(f[0]), f[0]);
    CHECK(double, _mm512_set1_pd(d[0]), d[0]);
    CHECK(uint8_t, _mm512_set1_epi8(static_cast<char>(a[0])), a[0]);
    CHECK(int32_t, _mm512_set1_epi32(a.as<int32_t>(0)), a.as<int32_t>(0));
    CHECK(int64_t, _mm512_set1_epi64(a.as<int64_t>(0)), a.as<int64_t>(0));
    CHECK(int32_t, _mm512_setr_epi32(3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, -3),
          "314159265358979"[i % 15] - '0' - (i == 15 ? 6 : 0));
}

// `page`: memory with none behind it. Lanes without a bit in the mask lie there.
void check_memory(char* page) {
    alignas(64) uint8_t bytes[128];
    for (const int offset : {0, 1, 7, 33}) {
        std::memcpy(bytes + offset, a.at, 64);
        CHECK(uint8_t, _mm512_loadu_ps(bytes + offset), a[i]);
        CHECK(uint8_t, _mm512_loadu_pd(bytes + offset), a[i]);
        CHECK(uint8_t, _mm512_loadu_si512(bytes + offset), a[i]);
        _mm512_storeu_ps(bytes + offset, b);
        CHECK(uint8_t, _mm512_loadu_si512(bytes + offset), b[i]);
        _mm512_storeu_pd(bytes + offset, c);
        CHECK(uint8_t, _mm512_loadu_si512(bytes + offset), c[i]);
        _mm512_storeu_si512(bytes + offset, a);
        CHECK(uint8_t, _mm512_loadu_si512(bytes + offset), a[i]);
    }
    _mm512_stream_ps(reinterpret_cast<float*>(bytes), b);
    _mm_sfence();
    CHECK(uint8_t, _mm512_load_si512(bytes), b[i]);

    // Only the lanes up to `lanes`, the last before the page's end.
    const auto first = [&](int lanes) { return lanes < 64 ? mask & ((uint64_t{1} << lanes) - 1) : mask; };
    const int lanes = static_cast<int>(draw(17)), some = static_cast<int>(draw(65)), few = static_cast<int>(draw(5));
    const auto there = [&](uint64_t m, int i) { return (m >> i & 1) != 0; };
    char* at = page - lanes * 4;
    std::memcpy(at, a.at, static_cast<size_t>(lanes) * 4);
    uint64_t m = first(lanes);
    CHECK(uint32_t, _mm512_maskz_loadu_ps(static_cast<__mmask16>(m), at), there(m, i) ? a.as<uint32_t>(i) : 0);
    _mm512_mask_storeu_ps(at, static_cast<__mmask16>(m), b);
    CHECK(uint32_t, _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << lanes) - 1), at),
          i >= lanes ? 0 : (there(m, i) ? b : a).as<uint32_t>(i));
    at = page - few * 4;
    m = first(few);
    std::memcpy(at, a.at, static_cast<size_t>(few) * 4);
    CHECK(uint32_t, _mm_maskz_loadu_epi32(static_cast<__mmask8>(m), at), there(m, i) ? a.as<uint32_t>(i) : 0);
    _mm_mask_storeu_epi32(at, static_cast<__mmask8>(m), b.vector<__m128i>());
    CHECK(uint32_t, _mm_maskz_loadu_epi32(static_cast<__mmask8>((1u << few) - 1), at),
          i >= few ? 0 : (there(m, i) ? b : a).as<uint32_t>(i));
    at = page - some;
    m = first(some);
    const __mmask64 all = some == 64 ? ~uint64_t{0} : (uint64_t{1} << some) - 1;
    std::memcpy(at, a.at, static_cast<size_t>(some));
    CHECK(uint8_t, _mm512_maskz_loadu_epi8(m, at), there(m, i) ? a[i] : 0);
    _mm512_mask_storeu_epi8(at, m, b);
    CHECK(uint8_t, _mm512_maskz_loadu_epi8(all, at), i >= some ? 0 : (there(m, i) ? b : a)[i]);
    at = page - lanes;
    m = first(lanes);
    std::memcpy(at, a.at, static_cast<size_t>(lanes));
    _mm512_mask_cvtepi32_storeu_epi8(at, static_cast<__mmask16>(m), b);
    CHECK(uint8_t, _mm512_maskz_loadu_epi8((uint64_t{1} << lanes) - 1, at),
          i >= lanes    ? 0
          : there(m, i) ? b[4 * i]
                        : a[i]);
}

}  // namespace

int main() {
    constexpr size_t size = 1 << 16;
    char* const memory =
        static_cast<char*>(mmap(nullptr, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory == MAP_FAILED || mprotect(memory + size, size, PROT_NONE) != 0) return 2;
    for (int round = 0; round < 2000; ++round) {
        draw_lanes();
        check_floats();
        check_scalef();
        check_integers();
        check_constants();
        check_memory(memory + size);
    }
    std::puts("all as defined");
}
