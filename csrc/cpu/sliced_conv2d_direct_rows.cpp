// Sliced convolution, forward and dgrad of windows of more than one tap: see sliced_conv2d_direct.inl.
//
// Tasks     Blocks of pixels times chunks of columns, with the columns packed first. Where pixels are few, chunks
//           alone, each of which packs what it uses; the next columns of one call keep the band.
#include "cpu/sliced_conv2d_direct_rows.h"

#include "core/parallel.h"

namespace spos {
namespace {

template <typename T>
class Direct {
  public:
    Direct(Isa isa, const RowsProduct<T>& product, void* workspace, int threads)
        : product_(product),
          gemm_(gemm_body<T>(isa)),
          body_(sliced_conv2d_body<T>(isa)),
          plan_(product, gemm_.lanes),
          scratch_(product, plan_, gemm_, workspace, threads) {}

    void run(int threads) const {
        const int64_t packs = product_.groups * plan_.n.chunks, blocks = plan_.blocks.count;
        if (plan_.packs) {
            parallel_for(packs, threads, [this, blocks](int64_t begin, int64_t end, int slot) {
                int64_t filled = -1;
                T* const packed = scratch_.packed + slot * scratch_.packed_size;
                for (int64_t task = begin; task < end; ++task) {
                    const int64_t group = task / plan_.n.chunks, chunk = task % plan_.n.chunks;
                    pack(group, chunk, packed);
                    for (int64_t block = 0; block < blocks; ++block)
                        multiply(group, block, chunk, packed, slot, filled);
                }
            });
            return;
        }
        parallel_for(packs, threads, [this](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task)
                pack(task / plan_.n.chunks, task % plan_.n.chunks, scratch_.packed + task * scratch_.packed_size);
        });
        parallel_for(packs * blocks, threads, [this, blocks](int64_t begin, int64_t end, int slot) {
            int64_t filled = -1;
            for (int64_t task = begin; task < end; ++task) {
                // Columns fastest, which meet the same band, unless that would fetch the weight from afar every time.
                const int64_t group = task / (plan_.n.chunks * blocks), rest = task % (plan_.n.chunks * blocks);
                const int64_t chunk = plan_.heavy ? rest / blocks : rest % plan_.n.chunks;
                const int64_t block = plan_.heavy ? rest % blocks : rest / plan_.n.chunks;
                const T* const packed = scratch_.packed + (group * plan_.n.chunks + chunk) * scratch_.packed_size;
                multiply(group, block, chunk, packed, slot, filled);
            }
        });
    }

  private:
    int64_t panel() const { return 2 * gemm_.lanes; }

    // Panel after panel, block of channels after block: in the order of their use.
    void pack(int64_t group, int64_t chunk, T* packed) const {
        const Window &rows = product_.rows, &columns = product_.columns;
        PackWeight<T> call{};
        call.taps = call.together = product_.taps();
        call.stride_n = product_.weight_n;
        call.stride_c = product_.weight_k;
        for (int h = 0; h < rows.taps; ++h)
            for (int w = 0; w < columns.taps; ++w)
                call.offset[h * columns.taps + w] = (rows.first_tap + h * rows.tap_step) * product_.weight_h +
                                                    (columns.first_tap + w * columns.tap_step) * product_.weight_w;
        const T* const weight = product_.weight + group * product_.weight_group;
        for (int64_t column = plan_.n.begin(chunk); column < plan_.n.end(chunk); column += panel()) {
            call.n = std::min(panel(), product_.n - column);
            for (int64_t k = 0; k < product_.k; k += plan_.k_block) {
                call.weight = weight + column * product_.weight_n + k * product_.weight_k;
                call.channels = std::min(plan_.k_block, product_.k - k);
                call.packed = packed;
                body_.pack(call);
                packed += gemm_.packed_size(call.n, call.taps * call.channels);
            }
        }
    }

    // A block of pixels times a chunk of columns. filled: what the slot's band holds.
    void multiply(int64_t group, int64_t block, int64_t chunk, const T* packed, int slot, int64_t& filled) const {
        const PixelBlocks::Block pixels = plan_.blocks.at(block);
        const int64_t id = group * plan_.blocks.count + block, image_pixels = plan_.band.image_pixels(pixels);
        T* const band = scratch_.bands + slot * round_up(scratch_.band_size, 16);
        if (id != filled) {
            Map<const T> source = product_.source;
            source.data += group * product_.k;
            plan_.band.fill(body_, source, pixels, product_.k, plan_.k_block, false, band);
            filled = id;
        }
        DirectRows<T> call{};
        call.band_first = plan_.band.first_row(pixels);
        call.height = product_.source.height;
        call.rows = product_.rows;
        call.edges = plan_.band.has_edges();
        call.first = pixels.first;
        call.end = pixels.end;
        call.count = product_.columns.count;
        call.c_row = product_.rows.to_step * product_.destination.h;
        call.c_pixel = product_.pixel_step();
        for (int64_t column = plan_.n.begin(chunk); column < plan_.n.end(chunk); column += panel()) {
            const int64_t channel = group * product_.n + column;
            call.n = std::min(panel(), product_.n - column);
            for (int64_t k = 0; k < product_.k; k += plan_.k_block) {
                const int64_t channels = std::min(plan_.k_block, product_.k - k);
                call.k = product_.columns.taps * channels;
                call.band_pixel = product_.columns.step * channels;
                call.band_row = plan_.band.pitch * channels;
                call.packed = packed;
                call.accumulate = k > 0;
                call.bias = product_.bias && k + channels == product_.k ? product_.bias + channel : nullptr;
                for (int64_t image = 0; image < pixels.images; ++image) {
                    call.band = band + image_pixels * (k * pixels.images + image * channels);
                    call.c = product_.pixel(pixels.image + image, pixels.first, 0) + channel;
                    body_.direct_rows(call);
                }
                packed += gemm_.packed_size(call.n, product_.taps() * channels);
            }
        }
    }

    const RowsProduct<T>& product_;
    const GemmBody<T> gemm_;
    const SlicedConv2dBody<T> body_;
    const DirectPlan plan_;
    const DirectScratch<T> scratch_;
};

}  // namespace

template <typename T>
void run_direct(Isa isa, const RowsProduct<T>& product, void* workspace, int threads) {
    Direct<T>(isa, product, workspace, threads).run(threads);
}

template void run_direct(Isa, const RowsProduct<float>&, void*, int);
template void run_direct(Isa, const RowsProduct<double>&, void*, int);

}  // namespace spos
