// The products that forward and dgrad of a sliced convolution are made of, how they are cut, and their scratch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/sliced_conv2d_plan.h"

namespace spos {

// One product: the destination pixels of the two windows.
template <typename T>
struct RowsProduct {
    Map<const T> source;
    Map<T> destination;
    Window rows, columns;
    int64_t batch, groups;
    int64_t k, n;  // channels of a group on either side
    const T* weight;
    int64_t weight_group, weight_n, weight_k, weight_h, weight_w;  // element strides
    const T* bias;

    int taps() const { return rows.taps * columns.taps; }
    int64_t depth() const { return taps() * k; }
    int64_t pixels() const { return batch * rows.count * columns.count; }
    T* pixel(int64_t image, int64_t row, int64_t column) const {
        return destination.data + image * destination.n + (rows.to_start + row * rows.to_step) * destination.h +
               (columns.to_start + column * columns.to_step) * destination.w;
    }
    int64_t pixel_step() const { return columns.to_step * destination.w; }
};

// Calls visit(destination pixel, r, count) for stretches of `count` pixels of a row that begin with pixel first + r.
template <typename T, typename Visit>
void for_stretches(const RowsProduct<T>& product, int64_t first, int64_t end, const Visit& visit) {
    for (int64_t at = first; at < end;) {
        const int64_t column = at % product.columns.count, flat = at / product.columns.count;
        const int64_t row = flat % product.rows.count, n = flat / product.rows.count;
        const int64_t count = std::min(end - at, product.columns.count - column);
        visit(product.pixel(n, row, column), at - first, count);
        at += count;
    }
}

// A window that is the pixel itself.
inline bool is_whole(const Window& window, int64_t source_size) {
    return window.taps == 1 && window.step == 1 && window.start == 0 && window.count == source_size;
}

// How a product of one tap is cut and where its operands lie, by its shape (and the vectors of the instruction set)
// alone.
struct RowsPlan {
    Cut m, n;
    bool packs;        // every task packs its own columns, and does all rows
    int64_t a_stride;  // of the source itself, or 0: gathered
    bool asks;         // for the rows of a block, which come from far away
    int64_t c_stride;  // of the destination itself, or 0: scattered from scratch
    int64_t gathered_stride;

    template <typename T>
    RowsPlan(const RowsProduct<T>& product, int lanes) {
        const bool direct =
            is_whole(product.rows, product.source.height) && is_whole(product.columns, product.source.width);
        a_stride = direct ? pixel_stride(product.source, product.batch) : 0;
        c_stride = product.rows.to_step == 1 ? pixel_stride(product.destination, product.batch) : 0;
        gathered_stride = scratch_stride(product.k);

        constexpr int64_t size = sizeof(T), l2 = 1 << 20;
        const int64_t pixels = product.pixels();
        const int64_t a_bytes = pixels * product.k * size, b_bytes = product.n * product.k * size;
        constexpr int64_t least_columns = 32, columns = 160, least_rows = 48;
        const Cut narrow = cut(product.n, std::clamp(ceil_div(product.n, 8), least_columns, columns), INT64_MAX, lanes);
        n = cut(product.n, columns, enough_tasks, lanes);
        constexpr int64_t long_row = 64;  // elements; shorter ones lie together
        asks = a_stride > 0 && product.k >= long_row && a_bytes > l2;
        // Gathered rows that are met by few columns should not leave L1; those that many meet, or that are read in
        // place, should be many, for each block of them reads all columns.
        const bool small = !a_stride && b_bytes <= 256 << 10;
        const int64_t row_bytes = product.k * size;
        const int64_t rows = small ? std::clamp<int64_t>((24 << 10) / row_bytes, 24, 480)
                                   : std::clamp<int64_t>((192 << 10) / row_bytes, 96, 480);
        const int64_t wanted = round_up(ceil_div(enough_tasks, n.chunks * product.groups), 2);
        const int64_t chunks = std::max(ceil_div(pixels, rows), std::min(wanted, pixels / least_rows));
        // Packing first and for all costs a trip of the weight to memory and back, and the blocks of rows read all of
        // it again; packing for each task alone makes the tasks read all rows again.
        const int64_t alone = b_bytes + (a_bytes > l2 ? narrow.chunks * a_bytes : a_bytes);
        const int64_t first = 3 * b_bytes + a_bytes + (b_bytes > l2 ? (chunks - 1) * b_bytes : 0);
        constexpr int64_t few_pixels = 256;
        packs = alone < first && (pixels <= few_pixels || narrow.chunks * product.groups >= enough_tasks / 2);
        if (packs) n = narrow;
        m = {pixels, std::max<int64_t>(packs ? ceil_div(pixels * product.k * size, l2) : chunks, 1), 1};
    }
};

// Scratch: packed columns, of a task for each thread or of all; for each thread the rows it has gathered, and results
// to be scattered.
template <typename T>
struct RowsScratch {
    int64_t packed_size, gathered_size, c_stride, c_size;  // of one block, in elements
    T* packed;
    T* gathered;
    T* results;
    size_t bytes;

    RowsScratch(const RowsProduct<T>& product, const RowsPlan& plan, const GemmBody<T>& gemm, void* workspace,
                int threads) {
        packed_size = gemm.packed_size(plan.n.largest(), product.k);
        gathered_size = plan.a_stride ? 0 : plan.m.largest() * plan.gathered_stride;
        c_stride = round_up(plan.n.largest(), gemm.lanes);
        c_size = plan.c_stride ? 0 : plan.m.largest() * c_stride;
        Carver carver(workspace);
        packed = carver.take<T>(packed_size * (plan.packs ? threads : plan.n.chunks * product.groups));
        gathered = carver.take<T>(gathered_size * threads);
        results = carver.take<T>(c_size * threads);
        bytes = carver.bytes();
    }
};

}  // namespace spos
