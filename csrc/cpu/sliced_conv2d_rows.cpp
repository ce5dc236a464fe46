// Sliced convolution, forward and dgrad: rows of pixels times a packed weight.
//
// Shapes    source [N, H, W, K] and a slice of the weight -> destination [N, H', W', n], per group.
// Work      taps * K multiply-adds an element of the destination; the weight's slice is read once and packed, the maps
//           cross memory once.
// Method    A pointwise convolution is a matrix product that reads the source itself, or rows gathered from it (at
//           stride 2). Windows of more taps are convolved directly (sliced_conv2d_direct.inl). dgrad at stride 1 is the
//           forward pass of dy with the taps turned round. At stride 2 the pixels of each parity (row, column) meet
//           only the taps of that parity: four products without the zeros of an upsampled dy.
// Tasks     Blocks of rows times blocks of columns, with the columns packed first; where rows are few, columns' blocks
//           alone, which pack what they use. A thread that goes on to the next columns keeps the rows it has gathered.
#include "cpu/sliced_conv2d_rows.h"

#include "core/parallel.h"
#include "cpu/sliced_conv2d_direct_rows.h"

namespace spos {
namespace {

template <typename T>
class Rows {
  public:
    Rows(Isa isa, const RowsProduct<T>& product, void* workspace, int threads)
        : product_(product),
          gemm_(gemm_body<T>(isa)),
          body_(sliced_conv2d_body<T>(isa)),
          plan_(product, gemm_.lanes),
          scratch_(product, plan_, gemm_, workspace, threads) {}

    void run(int threads) const {
        const int64_t packs = product_.groups * plan_.n.chunks;
        if (plan_.packs) {
            parallel_for(packs, threads, [this](int64_t begin, int64_t end, int slot) {
                int64_t gathered = -1;
                T* const packed = scratch_.packed + slot * scratch_.packed_size;
                for (int64_t task = begin; task < end; ++task) {
                    const int64_t group = task / plan_.n.chunks, chunk = task % plan_.n.chunks;
                    pack(group, chunk, packed);
                    for (int64_t block = 0; block < plan_.m.chunks; ++block)
                        multiply(group, block, chunk, packed, slot, gathered);
                }
            });
            return;
        }
        parallel_for(packs, threads, [this](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task)
                pack(task / plan_.n.chunks, task % plan_.n.chunks, scratch_.packed + task * scratch_.packed_size);
        });
        parallel_for(packs * plan_.m.chunks, threads, [this](int64_t begin, int64_t end, int slot) {
            int64_t gathered = -1;
            for (int64_t task = begin; task < end; ++task) {  // columns fastest: they meet the same rows
                const int64_t chunk = task % plan_.n.chunks, rest = task / plan_.n.chunks;
                const int64_t block = rest % plan_.m.chunks, group = rest / plan_.m.chunks;
                const T* const packed = scratch_.packed + (group * plan_.n.chunks + chunk) * scratch_.packed_size;
                multiply(group, block, chunk, packed, slot, gathered);
            }
        });
    }

  private:
    void pack(int64_t group, int64_t chunk, T* packed) const {
        const int64_t first = plan_.n.begin(chunk);
        PackWeight<T> call{};
        call.weight = product_.weight + group * product_.weight_group + first * product_.weight_n;
        call.n = plan_.n.end(chunk) - first;
        call.channels = product_.k;
        call.stride_n = product_.weight_n;
        call.stride_c = product_.weight_k;
        call.taps = call.together = 1;
        call.offset[0] = product_.rows.first_tap * product_.weight_h + product_.columns.first_tap * product_.weight_w;
        call.packed = packed;
        body_.pack(call);
    }

    // A block of rows times a block of columns. gathered: the rows that the slot holds.
    void multiply(int64_t group, int64_t block, int64_t chunk, const T* packed, int slot, int64_t& gathered) const {
        const int64_t first = plan_.m.begin(block), column = plan_.n.begin(chunk);
        const int64_t channel = group * product_.n + column;
        T* const rows = scratch_.gathered + slot * scratch_.gathered_size;
        T* const results = scratch_.results + slot * scratch_.c_size;
        Gather<T> gather{product_.source,    product_.rows, product_.columns,     product_.k, first,
                         plan_.m.end(block), rows,          plan_.gathered_stride};
        gather.source.data += group * product_.k;
        Gemm<T> call{};
        call.m = gather.end - first;
        call.n = plan_.n.end(chunk) - column;
        call.k = product_.k;
        call.a_k = 1;
        call.a = plan_.a_stride ? gather.source.data + first * plan_.a_stride : rows;
        call.a_m = plan_.a_stride ? plan_.a_stride : plan_.gathered_stride;
        call.b = packed;
        call.c = plan_.c_stride ? product_.destination.data + first * plan_.c_stride + channel : results;
        call.c_m = plan_.c_stride ? plan_.c_stride : scratch_.c_stride;
        call.bias = product_.bias ? product_.bias + channel : nullptr;
        const int64_t id = group * plan_.m.chunks + block;
        if (id != gathered) {
            if (!plan_.a_stride)
                body_.gather(gather);
            else if (plan_.asks)
                ask_for(call.a, call.m, call.a_m, call.k);
        }
        gathered = id;
        gemm_.gemm(call);
        if (plan_.c_stride) return;
        for_stretches(product_, first, gather.end, [&](T* pixel, int64_t r, int64_t count) {
            body_.copy(results + r * scratch_.c_stride, scratch_.c_stride, pixel + channel, product_.pixel_step(),
                       count, call.n);
        });
    }

    const RowsProduct<T>& product_;
    const GemmBody<T> gemm_;
    const SlicedConv2dBody<T> body_;
    const RowsPlan plan_;
    const RowsScratch<T> scratch_;
};

template <typename T>
void run_product(Isa isa, const RowsProduct<T>& product, void* workspace, int threads) {
    if (product.pixels() == 0) return;
    if (product.taps() > 1) return run_direct(isa, product, workspace, threads);
    if (product.taps() == 1) return Rows<T>(isa, product, workspace, threads).run(threads);
    for_stretches(product, 0, product.pixels(), [&](T* pixel, int64_t, int64_t count) {  // no tap reaches these
        for (int64_t i = 0; i < count; ++i)
            std::fill_n(pixel + i * product.pixel_step(), product.groups * product.n, T(0));
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
        most = std::max(most, product.taps() == 1
                                  ? RowsScratch<T>(product, {product, gemm.lanes}, gemm, nullptr, threads).bytes
                                  : DirectScratch<T>(product, {product, gemm.lanes}, gemm, nullptr, threads).bytes);
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
