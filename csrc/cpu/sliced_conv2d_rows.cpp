// Sliced convolution, forward and dgrad: rows of pixels times a packed weight.
//
// Shapes    source [N, H, W, K] and a slice of the weight -> destination [N, H', W', n], per group.
// Work      taps * K multiply-adds an element of the destination; the weight's slice is read once and packed, the maps
//           cross memory once (the source of a k x k window once a tap from cache, by im2row).
// Method    Implicit matrix product, as in Chetlur et al., "cuDNN: Efficient Primitives for Deep Learning" (2014): the
//           rows of A are pixels with their window, gathered for a block of rows that stays in L2; a pointwise
//           convolution reads the source itself. dgrad at stride 1 is the forward pass of dy with the taps turned
//           round. At stride 2 the pixels of each parity (row, column) meet only the taps of that parity: four products
//           without the zeros of an upsampled dy.
// Tasks     Blocks of rows times blocks of columns. First the columns' blocks of the weight are packed, then each task
//           does its product; a thread that goes on to the next columns keeps the rows it has gathered.
#include <cstring>

#include "core/parallel.h"
#include "cpu/sliced_conv2d_plan.h"

namespace spos {
namespace {

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
};

template <typename T>
bool is_whole(const Window& window, int64_t source_size) {
    return window.taps == 1 && window.step == 1 && window.start == 0 && window.count == source_size;
}

// How a product is cut and where its operands lie, by its shape (and the vectors of the instruction set) alone.
template <typename T>
struct RowsPlan {
    Cut m, n;
    int64_t a_stride;  // of the source itself, or 0: gathered
    int64_t c_stride;  // of the destination itself, or 0: scattered from scratch
    int64_t gathered_stride;

    RowsPlan(const RowsProduct<T>& product, int lanes) {
        const bool direct =
            is_whole<T>(product.rows, product.source.height) && is_whole<T>(product.columns, product.source.width);
        a_stride = direct ? pixel_stride(product.source, product.batch) : 0;
        c_stride = product.rows.to_step == 1 ? pixel_stride(product.destination, product.batch) : 0;
        gathered_stride = scratch_stride(product.depth());
        // Columns: a few panels each, so that packing is shared out. Rows: their windows fit into half of a small L2.
        constexpr int64_t columns = 160, least_rows = 48, block_bytes = 512 << 10;
        n = cut(product.n, columns, enough_tasks, lanes);
        const int64_t fitting = block_bytes / (product.depth() * static_cast<int64_t>(sizeof(T)));
        const int64_t pixels = product.pixels(), rows = std::clamp<int64_t>(fitting, least_rows, 1024);
        const int64_t wanted = round_up(ceil_div(enough_tasks, n.chunks * product.groups), 2);
        const int64_t chunks = std::max(ceil_div(pixels, rows), std::min(wanted, pixels / least_rows));
        m = {pixels, std::max<int64_t>(chunks, 1), 1};
    }
};

template <typename T>
PackWeight<T> packing(const RowsProduct<T>& product, int64_t group, int64_t first, int64_t end, T* packed) {
    PackWeight<T> pack{product.weight + group * product.weight_group + first * product.weight_n,
                       end - first,
                       product.k,
                       product.weight_n,
                       product.weight_k,
                       product.taps(),
                       {},
                       packed};
    for (int h = 0; h < product.rows.taps; ++h)
        for (int w = 0; w < product.columns.taps; ++w)
            pack.offset[h * product.columns.taps + w] =
                (product.rows.first_tap + h * product.rows.tap_step) * product.weight_h +
                (product.columns.first_tap + w * product.columns.tap_step) * product.weight_w;
    return pack;
}

// Calls visit(destination pixel, r) for the pixels first + r, r < count.
template <typename T, typename Visit>
void for_pixels(const RowsProduct<T>& product, int64_t first, int64_t count, const Visit& visit) {
    for (int64_t r = 0; r < count; ++r) {
        const int64_t column = (first + r) % product.columns.count, flat = (first + r) / product.columns.count;
        const int64_t row = flat % product.rows.count, n = flat / product.rows.count;
        visit(product.destination.data + n * product.destination.n +
                  (product.rows.to_start + row * product.rows.to_step) * product.destination.h +
                  (product.columns.to_start + column * product.columns.to_step) * product.destination.w,
              r);
    }
}

// Scratch: the packed columns' blocks; for each thread the rows it has gathered, and results to be scattered.
template <typename T>
struct RowsScratch {
    int64_t packed_size, gathered_size, c_stride, c_size;  // of one block, in elements
    T* packed;
    T* gathered;
    T* results;
    size_t bytes;

    RowsScratch(const RowsProduct<T>& product, const RowsPlan<T>& plan, const GemmBody<T>& gemm, void* workspace,
                int threads) {
        packed_size = gemm.packed_size(plan.n.largest(), product.depth());
        gathered_size = plan.a_stride ? 0 : plan.m.largest() * plan.gathered_stride;
        c_stride = round_up(plan.n.largest(), gemm.lanes);
        c_size = plan.c_stride ? 0 : plan.m.largest() * c_stride;
        Carver carver(workspace);
        packed = carver.take<T>(packed_size * plan.n.chunks * product.groups);
        gathered = carver.take<T>(gathered_size * threads);
        results = carver.take<T>(c_size * threads);
        bytes = carver.bytes();
    }
};

template <typename T>
void run_product(Isa isa, const RowsProduct<T>& product, void* workspace, int threads) {
    if (product.pixels() == 0) return;
    if (product.taps() == 0) {  // no tap reaches these pixels
        for_pixels(product, 0, product.pixels(),
                   [&](T* pixel, int64_t) { std::fill_n(pixel, product.groups * product.n, T(0)); });
        return;
    }
    const GemmBody<T> gemm = gemm_body<T>(isa);
    const SlicedConv2dBody<T> body = sliced_conv2d_body<T>(isa);
    const RowsPlan<T> plan(product, gemm.lanes);
    const RowsScratch<T> scratch(product, plan, gemm, workspace, threads);
    parallel_for(product.groups * plan.n.chunks, threads, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
            const int64_t group = task / plan.n.chunks, chunk = task % plan.n.chunks;
            body.pack(packing(product, group, plan.n.begin(chunk), plan.n.end(chunk),
                              scratch.packed + task * scratch.packed_size));
        }
    });
    const int64_t tasks = product.groups * plan.m.chunks * plan.n.chunks;
    parallel_for(tasks, threads, [&](int64_t begin, int64_t end, int slot) {
        T* const rows = scratch.gathered + slot * scratch.gathered_size;
        int64_t gathered_block = -1;
        for (int64_t task = begin; task < end; ++task) {
            const int64_t chunk = task % plan.n.chunks, block = task / plan.n.chunks;
            const int64_t group = block / plan.m.chunks, first = plan.m.begin(block % plan.m.chunks);
            const int64_t count = plan.m.end(block % plan.m.chunks) - first, column = plan.n.begin(chunk);
            Gemm<T> call{};
            call.m = count;
            call.n = plan.n.end(chunk) - column;
            call.k = product.depth();
            call.a_k = 1;
            Map<const T> source = product.source;
            source.data += group * product.k;
            if (plan.a_stride) {
                call.a = source.data + first * plan.a_stride;
                call.a_m = plan.a_stride;
            } else {
                if (block != gathered_block)
                    body.gather({source, product.rows, product.columns, product.k, first, first + count, rows,
                                 plan.gathered_stride});
                gathered_block = block;
                call.a = rows;
                call.a_m = plan.gathered_stride;
            }
            call.b = scratch.packed + (group * plan.n.chunks + chunk) * scratch.packed_size;
            const int64_t channel = group * product.n + column;
            call.bias = product.bias ? product.bias + channel : nullptr;
            T* const results = scratch.results + slot * scratch.c_size;
            call.c = plan.c_stride ? product.destination.data + first * plan.c_stride + channel : results;
            call.c_m = plan.c_stride ? plan.c_stride : scratch.c_stride;
            gemm.gemm(call);
            if (plan.c_stride) continue;
            for_pixels(product, first, count, [&](T* pixel, int64_t r) {
                std::memcpy(pixel + channel, results + r * scratch.c_stride, sizeof(T) * static_cast<size_t>(call.n));
            });
        }
    });
}

template <typename T>
RowsProduct<T> forward_product(const SlicedConv2d& shape, const T* x, const T* weight, const T* bias, T* y) {
    return {input_map(shape, x),
            output_map(shape, y),
            forward_window(shape, shape.out_height),
            forward_window(shape, shape.out_width),
            shape.batch,
            shape.groups,
            shape.in_channels,
            shape.out_channels,
            weight,
            shape.out_channels * shape.w_o,
            shape.w_o,
            shape.w_i,
            shape.w_h,
            shape.w_w,
            bias};
}

// The dx indices of one parity: to_start, to_start + stride, ..; they meet the taps first, first + stride, ..
Window dgrad_window(const SlicedConv2d& shape, int64_t size, int64_t parity) {
    const int64_t stride = shape.stride, first = (parity + shape.padding) % stride;
    const int taps = static_cast<int>(first < shape.kernel ? ceil_div(shape.kernel - first, stride) : 0);
    return {ceil_div(size - parity, stride),
            1,
            (parity + shape.padding - first) / stride - (taps - 1),
            parity,
            stride,
            taps,
            static_cast<int>(first + stride * (taps - 1)),
            static_cast<int>(-stride)};
}

template <typename T, typename Visit>
void for_dgrad_products(const SlicedConv2d& shape, const T* dy, const T* weight, T* dx, const Visit& visit) {
    for (int64_t h = 0; h < std::min<int64_t>(shape.stride, shape.in_height); ++h)
        for (int64_t w = 0; w < std::min<int64_t>(shape.stride, shape.in_width); ++w)
            visit(RowsProduct<T>{output_map(shape, dy), input_map(shape, dx), dgrad_window(shape, shape.in_height, h),
                                 dgrad_window(shape, shape.in_width, w), shape.batch, shape.groups, shape.out_channels,
                                 shape.in_channels, weight, shape.out_channels * shape.w_o, shape.w_i, shape.w_o,
                                 shape.w_h, shape.w_w, nullptr});
}

template <typename T>
size_t rows_workspace(Isa isa, const SlicedConv2d& shape, Pass pass, int threads) {
    const GemmBody<T> gemm = gemm_body<T>(isa);
    size_t most = 0;
    const auto consider = [&](const RowsProduct<T>& product) {
        if (product.taps() == 0) return;
        const RowsPlan<T> plan(product, gemm.lanes);
        most = std::max(most, RowsScratch<T>(product, plan, gemm, nullptr, threads).bytes);
    };
    if (pass == Pass::forward)
        consider(forward_product<T>(shape, nullptr, nullptr, nullptr, nullptr));
    else
        for_dgrad_products<T>(shape, nullptr, nullptr, nullptr, consider);
    return most;
}

}  // namespace

size_t sliced_conv2d_rows_workspace(Isa isa, const SlicedConv2d& shape, Pass pass, size_t element_size, int threads) {
    return element_size == sizeof(float) ? rows_workspace<float>(isa, shape, pass, threads)
                                         : rows_workspace<double>(isa, shape, pass, threads);
}

template <typename T>
void sliced_conv2d_forward(Isa isa, const SlicedConv2d& shape, const T* x, const T* weight, const T* bias, T* y,
                           void* workspace, int threads) {
    run_product<T>(isa, forward_product(shape, x, weight, bias, y), workspace, threads);
}

template <typename T>
void sliced_conv2d_dgrad(Isa isa, const SlicedConv2d& shape, const T* dy, const T* weight, T* dx, void* workspace,
                         int threads) {
    for_dgrad_products(shape, dy, weight, dx,
                       [&](const RowsProduct<T>& product) { run_product<T>(isa, product, workspace, threads); });
}

template void sliced_conv2d_forward(Isa, const SlicedConv2d&, const float*, const float*, const float*, float*, void*,
                                    int);
template void sliced_conv2d_forward(Isa, const SlicedConv2d&, const double*, const double*, const double*, double*,
                                    void*, int);
template void sliced_conv2d_dgrad(Isa, const SlicedConv2d&, const float*, const float*, float*, void*, int);
template void sliced_conv2d_dgrad(Isa, const SlicedConv2d&, const double*, const double*, double*, void*, int);

}  // namespace spos
