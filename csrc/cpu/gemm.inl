// Matrix product: one body for every vector type V, included by the per-instruction-set files.
//
// Shapes    A [m, k] at any strides, B [k, n] packed or in rows, C [m, n] in rows; see gemm_body.h.
// Work      m*n*k multiply-adds. B is read from L1 once a row tile, A once a panel, C once a block of k.
// Method    Register tile as in Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008): MR
//           rows x NV vectors of sums; for one k, NV vectors of B are loaded and meet MR broadcast elements of A. A is
//           not packed: its elements are broadcast, so that any stride (every second channel, a transposed matrix)
//           costs the same.
// Tile      AVX-512: 5x5, 6x4, 8x3, 12x2 or 12x1 (rows x vectors), 24 or 25 sums of 32 registers, chosen by how n
//           divides; a multiply-add needs 0.4 to 0.6 loads, the load ports give 1. AVX2: 6x2, 12x1 of 16 registers.
// Blocks    k is cut so that a panel's block of B takes at most half of L1, and every row of A passes by it.
#pragma once

#include "core/transpose.h"
#include "core/unroll.h"
#include "cpu/gemm_body.h"

namespace spos {
namespace {

template <class V>
constexpr int widest_panel = V::registers == 32 ? 5 : 2;  // vectors

template <class V, int NV>
constexpr int tile_rows = NV == 5                           ? 5
                          : NV == 4                         ? 6
                          : NV == 3                         ? 8
                          : (V::registers == 32 || NV == 1) ? 12
                                                            : 6;

// Where a call stands: one panel of columns, one block of k.
template <class V>
struct Panel {
    using T = typename V::Scalar;
    const T* a;
    int64_t a_m, a_k;
    const T* b;
    int64_t b_k, k;
    T* c;
    int64_t c_m;
    int count;       // columns in the last vector
    bool load, end;  // add to C; this is the last block of k
    const T* bias;
    bool relu;
    ColumnSums<T> sums;
};

template <class V, bool Full>
SPOS_INLINE typename V::Value load_columns(const typename V::Scalar* from, int count) {
    return Full ? V::load(from) : V::load_first(from, count);
}

template <class V, bool Full>
SPOS_INLINE void store_columns(typename V::Scalar* to, typename V::Value value, int count) {
    if (Full)
        V::store(to, value);
    else
        V::store_first(to, value, count);
}

template <class V, int MR, int NV, bool Full>
SPOS_INLINE void finish_tile(const Panel<V>& panel, typename V::Value (&sum)[MR][NV], bool first_rows) {
    using T = typename V::Scalar;
    using Value = typename V::Value;
    if (panel.bias) {
        SPOS_UNROLL
        for (int j = 0; j < NV; ++j) {
            const Value bias = load_columns<V, Full>(panel.bias + j * V::lanes, panel.count);
            SPOS_UNROLL
            for (int r = 0; r < MR; ++r) sum[r][j] = V::add(sum[r][j], bias);
        }
    }
    if (panel.relu) {
        SPOS_UNROLL
        for (int j = 0; j < NV; ++j) {
            SPOS_UNROLL
            for (int r = 0; r < MR; ++r) sum[r][j] = V::relu(sum[r][j]);
        }
    }
    if (panel.sums.sum) {
        SPOS_UNROLL
        for (int j = 0; j < NV; ++j) {
            const int at = j * V::lanes;
            Value total = V::zero(), square = V::zero(), shift;
            if (first_rows) {
                // Close to the mean already: one row would be some deviations off in some columns.
                const T share = T(1) / MR;
                shift = V::zero();
                SPOS_UNROLL
                for (int r = 0; r < MR; ++r) shift = V::multiply_add(sum[r][j], V::broadcast(&share), shift);
                store_columns<V, Full>(panel.sums.shift + at, shift, panel.count);
            } else {
                shift = load_columns<V, Full>(panel.sums.shift + at, panel.count);
                total = load_columns<V, Full>(panel.sums.sum + at, panel.count);
                square = load_columns<V, Full>(panel.sums.square + at, panel.count);
            }
            SPOS_UNROLL
            for (int r = 0; r < MR; ++r) {
                const Value difference = V::subtract(sum[r][j], shift);
                total = V::add(total, difference);
                square = V::multiply_add(difference, difference, square);
            }
            store_columns<V, Full>(panel.sums.sum + at, total, panel.count);
            store_columns<V, Full>(panel.sums.square + at, square, panel.count);
        }
    }
}

template <class V, int MR, int NV, bool Full>
void tile(const Panel<V>& panel, int64_t row) {
    using T = typename V::Scalar;
    using Value = typename V::Value;
    Value sum[MR][NV];
    T* const c = panel.c + row * panel.c_m;
    const int64_t c_m = panel.c_m, a_m = panel.a_m, a_k = panel.a_k, b_k = panel.b_k;
    SPOS_UNROLL
    for (int r = 0; r < MR; ++r) {
        SPOS_UNROLL
        for (int j = 0; j < NV; ++j)
            sum[r][j] = panel.load ? load_columns<V, Full>(c + r * c_m + j * V::lanes, panel.count) : V::zero();
    }
    // Three rows a pointer: an address is then base + {0, 1, 2} * a_m, which needs no register of its own.
    constexpr int pointers = (MR + 2) / 3;
    const T* a[pointers];
    SPOS_UNROLL
    for (int i = 0; i < pointers; ++i) a[i] = panel.a + (row + 3 * i) * a_m;
    const T* b = panel.b;
    for (int64_t k = 0; k < panel.k; ++k) {
        Value column[NV];
        SPOS_UNROLL
        for (int j = 0; j < NV; ++j) column[j] = load_columns<V, Full>(b + j * V::lanes, panel.count);
        SPOS_UNROLL
        for (int r = 0; r < MR; ++r) {
            const Value value = V::broadcast(a[r / 3] + r % 3 * a_m);
            SPOS_UNROLL
            for (int j = 0; j < NV; ++j) sum[r][j] = V::multiply_add(value, column[j], sum[r][j]);
        }
        SPOS_UNROLL
        for (int i = 0; i < pointers; ++i) a[i] += a_k;
        b += b_k;
    }
    if (panel.end) finish_tile<V, MR, NV, Full>(panel, sum, row == 0);
    SPOS_UNROLL
    for (int r = 0; r < MR; ++r) {
        SPOS_UNROLL
        for (int j = 0; j < NV; ++j) store_columns<V, Full>(c + r * c_m + j * V::lanes, sum[r][j], panel.count);
    }
}

template <class V, int MR, int NV, bool Full>
SPOS_INLINE void tiles(const Panel<V>& panel, int64_t& row, int64_t m) {
    for (; row + MR <= m; row += MR) tile<V, MR, NV, Full>(panel, row);
}

template <class V, int NV, bool Full>
void all_rows(const Panel<V>& panel, int64_t m) {
    constexpr int most = tile_rows<V, NV>;
    int64_t row = 0;
    tiles<V, most, NV, Full>(panel, row, m);
    if constexpr (most > 6) tiles<V, 6, NV, Full>(panel, row, m);
    if constexpr (most > 4) tiles<V, 4, NV, Full>(panel, row, m);
    if constexpr (most > 3) tiles<V, 3, NV, Full>(panel, row, m);
    if constexpr (most > 2) tiles<V, 2, NV, Full>(panel, row, m);
    tiles<V, 1, NV, Full>(panel, row, m);
}

// The columns of B as panels: whole vectors spread evenly over as few panels as possible, then a partial vector.
template <class V, typename Visit>
void for_panels(int64_t n, const Visit& visit) {
    const int64_t vectors = n / V::lanes, panels = (vectors + widest_panel<V> - 1) / widest_panel<V>;
    for (int64_t p = 0; p < panels; ++p) {
        const int64_t first = vectors * p / panels, end = vectors * (p + 1) / panels;
        visit(first * V::lanes, static_cast<int>(end - first), V::lanes);
    }
    const int rest = static_cast<int>(n % V::lanes);
    if (rest) visit(vectors * V::lanes, 1, rest);
}

template <class V>
void run_panel(const Panel<V>& panel, int vectors, int64_t m) {
    if (panel.count != V::lanes) return all_rows<V, 1, false>(panel, m);
    if (vectors == 1) return all_rows<V, 1, true>(panel, m);
    if constexpr (widest_panel<V> > 2) {
        if (vectors == 3) return all_rows<V, 3, true>(panel, m);
        if (vectors == 4) return all_rows<V, 4, true>(panel, m);
        if (vectors == 5) return all_rows<V, 5, true>(panel, m);
    }
    all_rows<V, 2, true>(panel, m);
}

template <class V>
void gemm(const Gemm<typename V::Scalar>& call) {
    using T = typename V::Scalar;
    constexpr int64_t block_bytes = 24 << 10;
    if (call.m == 0) return;
    for_panels<V>(call.n, [&](int64_t column, int vectors, int count) {
        const int64_t width = vectors * V::lanes;
        const int64_t most = block_bytes / (width * static_cast<int64_t>(sizeof(T)));
        const int64_t blocks = (call.k + most - 1) / most;
        const int64_t b_k = call.b_k ? call.b_k : width;
        const T* const b = call.b_k ? call.b + column : call.b + column * call.k;
        const auto at = [column](auto* from) { return from ? from + column : from; };
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t first = call.k * block / blocks, end = call.k * (block + 1) / blocks;
            const Panel<V> panel{call.a + first * call.a_k,
                                 call.a_m,
                                 call.a_k,
                                 b + first * b_k,
                                 b_k,
                                 end - first,
                                 call.c + column,
                                 call.c_m,
                                 count,
                                 call.accumulate || block > 0,
                                 end == call.k,
                                 at(call.bias),
                                 call.relu,
                                 {at(call.sums.shift), at(call.sums.sum), at(call.sums.square)}};
            run_panel<V>(panel, vectors, call.m);
        }
    });
}

// A partial vector is packed as a whole one, filled up with zeros.
template <class V>
int64_t packed_size(int64_t n, int64_t k) {
    return (n + V::lanes - 1) / V::lanes * V::lanes * k;
}

// One vector of columns, `count` of which exist. A weight [n, k] (stride_k 1) is turned in squares of registers.
template <class V>
void pack_column(const PackB<typename V::Scalar>& call, int64_t column, int count, typename V::Scalar* to,
                 int64_t width) {
    using T = typename V::Scalar;
    const T* const from = call.weight + column * call.stride_n;
    const auto scale_k = [&call](int64_t k) { return call.scale_k ? call.scale_k[k] : T(1); };
    const T* const scale_n = call.scale_n ? call.scale_n + column : nullptr;
    int64_t k = 0;
    if (call.stride_k == 1 && count == V::lanes) {
        for (; k + V::lanes <= call.k; k += V::lanes) {
            typename V::Value rows[V::lanes];
            SPOS_UNROLL
            for (int i = 0; i < V::lanes; ++i) rows[i] = V::load(from + i * call.stride_n + k);
            transpose<V>(rows);
            SPOS_UNROLL
            for (int i = 0; i < V::lanes; ++i) {
                const T scale = scale_k(k + i);
                auto value = V::multiply_add(rows[i], V::broadcast(&scale), V::zero());
                if (scale_n) value = V::multiply_add(value, V::load(scale_n), V::zero());
                V::store(to + (k + i) * width, value);
            }
        }
    }
    if (call.stride_n == 1 && count == V::lanes) {
        for (; k < call.k; ++k) {
            const T scale = scale_k(k);
            auto value = V::multiply_add(V::load(from + k * call.stride_k), V::broadcast(&scale), V::zero());
            if (scale_n) value = V::multiply_add(value, V::load(scale_n), V::zero());
            V::store(to + k * width, value);
        }
    }
    for (; k < call.k; ++k) {
        const T scale = scale_k(k);
        for (int i = 0; i < V::lanes; ++i)
            to[k * width + i] =
                i < count ? from[k * call.stride_k + i * call.stride_n] * scale * (scale_n ? scale_n[i] : T(1)) : T(0);
    }
}

template <class V>
void pack(const PackB<typename V::Scalar>& call) {
    int64_t index = 0;
    for_panels<V>(call.n, [&](int64_t column, int vectors, int count) {
        if (index >= call.first_panel && index < call.end_panel) {
            const int64_t width = vectors * V::lanes;
            for (int64_t j = 0; j < width; j += V::lanes)
                pack_column<V>(call, column + j, count, call.packed + column * call.k + j, width);
        }
        ++index;
    });
}

template <class V>
int64_t panel_count(int64_t n) {
    int64_t count = 0;
    for_panels<V>(n, [&count](int64_t, int, int) { ++count; });
    return count;
}

template <class V>
GemmBody<typename V::Scalar> make_gemm_body() {
    return {V::lanes, panel_count<V>, packed_size<V>, pack<V>, gemm<V>};
}

}  // namespace
}  // namespace spos
