// Products of k x k windows without im2row: how they are cut, and their scratch. See sliced_conv2d_direct.inl.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/sliced_conv2d_band.h"
#include "cpu/sliced_conv2d_rows.h"

namespace spos {

// By the shape (and the vectors of the instruction set) alone.
struct DirectPlan {
    Band band;
    int64_t k_block;  // channels whose weight, for two vectors of columns, is about as large as L1
    Cut n;            // in panels of two vectors
    bool packs;       // every task packs its own columns, and does all pixels
    bool heavy;       // the weight does not fit into L2: all pixels pass by one chunk of columns, then by the next
    PixelBlocks blocks;

    template <typename T>
    DirectPlan(const RowsProduct<T>& product, int lanes)
        : band(product.rows, product.columns, product.source.height, product.source.width),
          blocks(product.batch, product.rows.count, product.columns.count, 1) {
        const int64_t panel = 2 * lanes, panels = ceil_div(product.n, panel);
        constexpr int64_t size = sizeof(T), block_bytes = 37 << 10, least_channels = 8;
        k_block = std::max(power_of_two(block_bytes / (product.taps() * panel * size)), least_channels);
        // With few pixels the weight is most of the memory that is met: a panel is packed, used and forgotten.
        constexpr int64_t few_pixels = 512, least_panels = 4, half_l2 = 512 << 10;
        const int64_t pixels = product.pixels(), b_bytes = product.n * product.depth() * size;
        packs = pixels <= few_pixels && panels * product.groups >= least_panels;
        heavy = !packs && b_bytes > half_l2;
        const int64_t least_block = heavy ? 200 : 96, most_block = 448;
        const int64_t target = packs ? few_pixels : std::clamp<int64_t>(pixels / enough_tasks, least_block, most_block);
        blocks = PixelBlocks(product.batch, product.rows.count, product.columns.count, target);
        const int64_t tasks = std::max<int64_t>(blocks.count * product.groups, 1);
        const int64_t chunks = std::max(ceil_div(enough_tasks, tasks), heavy ? ceil_div(b_bytes, half_l2) : 1);
        const int64_t chunk = packs ? 1 : std::max<int64_t>(panels / chunks, 1);  // panels: as many in each
        n = cut(product.n, 1, ceil_div(panels, chunk), panel);
    }
};

// Scratch: packed columns, of a task for each thread or of all; a band for each thread.
template <typename T>
struct DirectScratch {
    int64_t packed_size, band_size;  // of one chunk of columns and of one thread, in elements
    T* packed;
    T* bands;
    size_t bytes;

    DirectScratch(const RowsProduct<T>& product, const DirectPlan& plan, const GemmBody<T>& gemm, void* workspace,
                  int threads) {
        packed_size = gemm.packed_size(plan.n.largest(), product.depth());
        band_size = plan.band.most_pixels(plan.blocks) * product.k;
        Carver carver(workspace);
        packed = carver.take<T>(packed_size * (plan.packs ? threads : plan.n.chunks * product.groups));
        bands = carver.take<T>(round_up(band_size, 16) * threads);
        bytes = carver.bytes();
    }
};

template <typename T>
void run_direct(Isa isa, const RowsProduct<T>& product, void* workspace, int threads);

}  // namespace spos
